"""Connections to servers, directly or through proxies, under one guard of addresses."""

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
"""Bytes read in one step; a connection buffers up to three times as many."""
_RESOLVER_THREADS = 256
_DNS_SECONDS, _DNS_NAMES = 300, 10_000
"""How long addresses are kept, and of how many names."""
_IDLE_SECONDS = 2.0
"""How long a connection waits for the next URL of its host; lists are shuffled, and longer only holds files open."""


class ProxyFailure(Exception):
    """A proxy that cannot be reached, or refuses a URL."""

    def __init__(self, proxy: Proxy, reason: str, *, transient: bool) -> None:
        super().__init__(f"{proxy.url} {reason}")
        self.transient = transient
        """Whether another attempt may end otherwise."""


class Connections:
    """Pools of connections for one set of download settings. Use as an asynchronous context.

    Args:
        guard: the rule for addresses of servers; the proxy of the settings, or of the environment, may be anywhere.

    Raises:
        SettingsError: a proxy cannot be used.
    """

    def __init__(self, settings: DownloadSettings, tls: ssl.SSLContext, guard: AddressGuard) -> None:
        self._settings, self._tls, self._guard = settings, tls, guard
        self._proxies = Proxies(settings.proxy, os.environ)
        self._pools = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Connections:
        async with contextlib.AsyncExitStack() as pools:
            self._direct = await pools.enter_async_context(self._open_session(self._guard))
            if self._proxies:  # a session of its own, whose connections go to the proxy only
                self._proxied = await pools.enter_async_context(self._open_session(None))
            self._pools = pools.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pools.aclose()

    @contextlib.asynccontextmanager
    async def request(self, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response of a URL itself, redirects not followed, directly or through its proxy.

        Raises:
            ProxyFailure: the proxy refuses it, or is not there.
        """
        proxy = self._proxies.for_url(url)
        if proxy is None:
            async with self._direct.get(url, allow_redirects=False) as response:
                yield response
            return
        tunnel = url.scheme == "https"  # then the target must not see the proxy's credentials
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
            again = error.status == 429 or error.status >= 500
            raise ProxyFailure(proxy, _refusal(error.status), transient=again) from None
        except (aiohttp.ClientConnectorDNSError, aiohttp.ClientProxyConnectionError) as error:
            raise ProxyFailure(proxy, f"is not reached: {error.os_error}", transient=True) from None

    @contextlib.asynccontextmanager
    async def _open_session(self, guard: AddressGuard | None) -> AsyncIterator[aiohttp.ClientSession]:
        """Connections to addresses that the guard lets through; to any without a guard."""
        resolver = GuardedResolver(threads=min(self._settings.concurrency, _RESOLVER_THREADS), guard=guard)
        connector = aiohttp.TCPConnector(
            limit=0,  # the slots limit, before the deadline begins
            ssl=self._tls,
            resolver=resolver,
            ttl_dns_cache=_DNS_SECONDS,
            dns_cache_max_size=_DNS_NAMES,
            keepalive_timeout=_IDLE_SECONDS,
        )
        connector._factory = functools.partial(TolerantHandler, loop=asyncio.get_running_loop())  # type: ignore[assignment]
        session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,  # a body may be an image whatever its header says
            max_line_size=MAX_HEAD_BYTES,
            max_field_size=MAX_HEAD_BYTES,
            max_headers=MAX_HEAD_BYTES,
            # images are compressed already; a body that is compressed nevertheless is decoded under the caps
            headers={"User-Agent": self._settings.user_agent, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None),  # the deadline below covers attempts, redirects and body
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_BLOCK_BYTES,
        )
        try:
            yield session
        finally:
            await session.close()
            await resolver.close()


def _refusal(status: int) -> str:
    return f"answered {status}" + (": it wants a user and a password, in its URL" if status == 407 else "")


def affordable(concurrency: int) -> int:
    """As many URLs at once as this process may open files for, after it has asked for more.

    Each takes a connection, and as many again may be idle for a moment.
    """
    needed = 4 * concurrency + 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return concurrency if soft == resource.RLIM_INFINITY else max(1, min(concurrency, (soft - 512) // 4))
