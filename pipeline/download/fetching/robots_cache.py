"""The robots.txt of each origin, read once while it is remembered."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Awaitable, Callable

from yarl import URL

from .robots import RobotsRules

_MOST_ORIGINS = 10_000
_MOST_BYTES = 100_000_000
"""Of all rules that are remembered together; a hostile site's take more than 10 MB."""


class RobotsCache:
    """Asks once per origin, however many of its URLs wait for the answer. The oldest are forgotten.

    A failure to read one is raised to all that wait for it, and not remembered, since it may pass.
    """

    def __init__(self, user_agent: str, read: Callable[[URL], Awaitable[bytes]]) -> None:
        self._user_agent = user_agent
        self._read = read
        self._rules: collections.OrderedDict[str, RobotsRules] = collections.OrderedDict()
        self._size = 0
        self._reading: dict[str, asyncio.Task[RobotsRules]] = {}

    async def allow(self, url: URL) -> bool:
        """Whether the robots.txt of the origin of `url` lets us fetch it."""
        origin = str(url.origin())
        rules = self._rules.get(origin)
        if rules is None:
            if origin not in self._reading:
                self._reading[origin] = asyncio.create_task(self._load(url.origin(), origin))
            rules = await asyncio.shield(self._reading[origin])  # it may be waited for by others
        return rules.allow(url.raw_path_qs)

    async def close(self) -> None:
        """Stop reading."""
        for task in self._reading.values():
            task.cancel()
        await asyncio.gather(*self._reading.values(), return_exceptions=True)

    async def _load(self, url: URL, origin: str) -> RobotsRules:
        try:
            body = await self._read(url.with_path("/robots.txt"))
            # in a thread, since the longest takes half a second, in which other deadlines pass
            rules = await asyncio.to_thread(RobotsRules.parse, body, self._user_agent)
        finally:
            del self._reading[origin]
        self._rules[origin] = rules
        self._size += rules.size
        while len(self._rules) > _MOST_ORIGINS or self._size > _MOST_BYTES:
            _, forgotten = self._rules.popitem(last=False)
            self._size -= forgotten.size
        return rules
