"""Cache of robots.txt rules, with one entry per origin (scheme, host and port)."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Awaitable, Callable

from yarl import URL

from .robots import RobotsRules

_MOST_ORIGINS = 10_000
"""Maximum number of cached origins."""
_MOST_BYTES = 100_000_000
"""Maximum memory use of all cached rules in bytes. The rules of one hostile site can exceed 10 MB."""


class RobotsCache:
    """Cache of the rules in robots.txt files.

    A file is not read again while its rules are cached or while a read of it is in progress, even if many URLs need it.
    When the cache is full, the oldest rules are removed.

    If reading a file fails, all calls of `allow` that wait for the file raise the exception. Failures are not cached,
    because they may be transient.

    Args:
        user_agent: value of our User-Agent header.
        read: coroutine function that takes the URL of a robots.txt and returns the content of the file.
    """

    def __init__(self, user_agent: str, read: Callable[[URL], Awaitable[bytes]]) -> None:
        self._user_agent = user_agent
        self._read = read
        self._rules: collections.OrderedDict[str, RobotsRules] = collections.OrderedDict()
        self._size = 0
        self._reading: dict[str, asyncio.Task[RobotsRules]] = {}

    async def allow(self, url: URL) -> bool:
        """Return True if the robots.txt of the URL's origin allows fetching the URL."""
        origin = str(url.origin())
        rules = self._rules.get(origin)
        if rules is None:
            if origin not in self._reading:
                self._reading[origin] = asyncio.create_task(self._load(url.origin(), origin))
            rules = await asyncio.shield(
                self._reading[origin]
            )  # cancelling one caller must not cancel the read for other callers
        return rules.allow(url.raw_path_qs)

    async def close(self) -> None:
        """Cancel all reads in progress."""
        for task in self._reading.values():
            task.cancel()
        await asyncio.gather(*self._reading.values(), return_exceptions=True)

    async def _load(self, url: URL, origin: str) -> RobotsRules:
        """Read and parse the robots.txt of an origin, cache its rules, and return them."""
        try:
            body = await self._read(url.with_path("/robots.txt"))
            # parse in a thread, because the largest file takes half a second
            rules = await asyncio.to_thread(RobotsRules.parse, body, self._user_agent)
        finally:
            del self._reading[origin]
        self._rules[origin] = rules
        self._size += rules.size
        while len(self._rules) > _MOST_ORIGINS or self._size > _MOST_BYTES:
            _, evicted = self._rules.popitem(last=False)
            self._size -= evicted.size
        return rules
