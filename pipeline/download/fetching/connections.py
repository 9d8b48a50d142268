"""HTTP connection pools: one for direct connections, whose addresses are checked, and one for proxied connections."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import resource
import ssl
from collections.abc import AsyncIterator
from types import TracebackType

import aiohttp
from yarl import URL

from ..settings import DownloadSettings
from .addresses import AddressGuard, GuardedResolver
from .proxies import Proxies, Proxy
from .response_head import MAX_HEAD_BYTES
from .tolerant import TolerantHandler

_BLOCK_BYTES = 1 << 16
"""Value of aiohttp's `read_bufsize` in bytes. A connection may buffer up to three times this amount."""
_RESOLVER_THREADS = 256
"""Maximum number of simultaneous name lookups."""
_DNS_SECONDS, _DNS_NAMES = 300, 10_000
"""Lifetime of DNS cache entries in seconds, and maximum number of names in the cache."""
_IDLE_SECONDS = 2.0
"""Seconds that an idle connection stays open.

In a shuffled list, consecutive URLs are on different hosts. Idle connections are then rarely used again, so keeping
them open longer would only waste file descriptors.
"""


class ProxyFailure(Exception):
    """Raised when a proxy is unreachable or refuses a URL."""

    def __init__(self, proxy: Proxy, reason: str, *, transient: bool) -> None:
        super().__init__(f"{proxy.url} {reason}")
        self.transient = transient
        """True if another attempt may succeed."""


class Connections:
    """HTTP client with pools for direct and proxied connections. Use it as an asynchronous context manager.

    Args:
        settings: download settings.
        tls: TLS context for all connections.
        guard: rule that decides which server addresses are allowed. It does not apply to the address of a proxy.

    Raises:
        SettingsError: a proxy setting is invalid.
    """

    def __init__(self, settings: DownloadSettings, tls: ssl.SSLContext, guard: AddressGuard) -> None:
        self._settings, self._tls, self._guard = settings, tls, guard
        self._proxies = Proxies(settings.proxy, os.environ)
        self._pools = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Connections:
        async with contextlib.AsyncExitStack() as pools:
            self._direct = await pools.enter_async_context(self._open_session(self._guard))
            if self._proxies:  # a separate session without a guard, since all its connections go to a proxy
                self._proxied = await pools.enter_async_context(self._open_session(None))
            self._pools = pools.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pools.aclose()

    @contextlib.asynccontextmanager
    async def request(self, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
        """Context manager that sends a GET request and yields the response. Redirects are not followed.

        The request goes through a proxy if the settings or the environment variables name a proxy for the URL.

        Raises:
            ProxyFailure: the proxy is unreachable or refuses the URL.
        """
        proxy = self._proxies.for_url(url)
        if proxy is None:
            async with self._direct.get(url, allow_redirects=False) as response:
                yield response
            return
        tunnel = url.scheme == "https"  # in a tunnel, `headers` would send the credentials to the target
        try:
            async with self._proxied.get(
                url,
                allow_redirects=False,
                proxy=proxy.url,
                proxy_headers=proxy.headers if tunnel else None,
                headers=None if tunnel else proxy.headers,
            ) as response:
                if response.status == 407:
                    raise ProxyFailure(proxy, _refusal(407), transient=False)
                yield response
        except aiohttp.ClientHttpProxyError as error:
            transient = error.status == 429 or error.status >= 500
            raise ProxyFailure(proxy, _refusal(error.status), transient=transient) from None
        except (aiohttp.ClientConnectorDNSError, aiohttp.ClientProxyConnectionError) as error:
            raise ProxyFailure(proxy, f"is not reached: {error.os_error}", transient=True) from None

    @contextlib.asynccontextmanager
    async def _open_session(self, guard: AddressGuard | None) -> AsyncIterator[aiohttp.ClientSession]:
        """Context manager that opens an HTTP client session, yields it, and closes it on exit.

        Args:
            guard: rule that decides which addresses the session may connect to; None to allow all addresses.
        """
        resolver = GuardedResolver(threads=min(self._settings.concurrency, _RESOLVER_THREADS), guard=guard)
        connector = aiohttp.TCPConnector(
            limit=0,  # no limit here: `Fetcher` limits connections before the deadline starts
            ssl=self._tls,
            resolver=resolver,
            ttl_dns_cache=_DNS_SECONDS,
            dns_cache_max_size=_DNS_NAMES,
            keepalive_timeout=_IDLE_SECONDS,
        )
        connector._factory = functools.partial(TolerantHandler, loop=asyncio.get_running_loop())  # type: ignore[assignment]
        session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,  # the Content-Encoding header may be wrong
            max_line_size=MAX_HEAD_BYTES,
            max_field_size=MAX_HEAD_BYTES,
            max_headers=MAX_HEAD_BYTES,
            # images are already compressed; bodies that still arrive encoded are decoded within our own limits
            headers={"User-Agent": self._settings.user_agent, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None),  # the deadline of `Fetcher` covers attempts, redirects and body
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_BLOCK_BYTES,
        )
        try:
            yield session
        finally:
            await session.close()
            await resolver.close()


def _refusal(status: int) -> str:
    """Return the error text for a request that a proxy refused with the given HTTP status."""
    return f"answered {status}" + (": it wants a user and a password, in its URL" if status == 407 else "")


def affordable(concurrency: int) -> int:
    """Return the number of URLs that can be fetched at once without exceeding the limit on open files.

    The result is at least 1 and at most `concurrency`. If the process's soft limit on open files (RLIMIT_NOFILE) is too
    low, this function raises it as far as the hard limit allows. Each URL counts as four open files, because idle
    connections stay open for a while. The calculation reserves 512 files for other uses.

    Args:
        concurrency: desired number of URLs to fetch at once.
    """
    needed = 4 * concurrency + 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return concurrency if soft == resource.RLIM_INFINITY else max(1, min(concurrency, (soft - 512) // 4))
