"""One URL -> bytes, or a named failure: asynchronous, with a total deadline, a cap on bytes, and guarded addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from types import TracebackType
from urllib.parse import urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from .config import DownloadSettings

_MAX_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""X-Robots-Tag directives that keep an image out, as in img2dataset; `none` stands for noindex and nofollow."""
_VALUED_DIRECTIVES = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_AGENT = re.compile(r"^\s*([A-Za-z0-9_.*-]+)\s*:\s*(.*)$", re.DOTALL)
_BLOCK_BYTES = 1 << 16
_IPV4_IN_LAST_BITS = tuple(ipaddress.IPv6Network(net) for net in ("::/96", "::ffff:0:0/96", "64:ff9b::/96"))
"""IPv6 networks whose addresses stand for IPv4 ones: compatible, mapped, and NAT64."""
_LEGAL_URL = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")


class FetchError(Exception):
    """A URL that gave no image bytes. `outcome` is one of the names that are counted."""

    def __init__(self, outcome: str, detail: str = "") -> None:
        super().__init__(f"{outcome}: {detail}" if detail else outcome)
        self.outcome = outcome


class BlockedAddress(Exception):
    """A host that is, or resolves to, an address we must not reach; its only argument."""


class GuardedResolver(AbstractResolver):
    """Resolves names and refuses private addresses, so that the connection goes to the address that was checked."""

    def __init__(self) -> None:
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        results = await self._resolver.resolve(host, port, family)
        for result in results:
            if not is_public(result["host"]):
                raise BlockedAddress(result["host"])
        return results

    async def close(self) -> None:
        await self._resolver.close()


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet: not loopback, private, link-local, multicast or reserved."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in _IPV4_IN_LAST_BITS):
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.sixtofour is not None:
            return is_public(str(ip.sixtofour))
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast


class Fetcher:
    """A pool of connections with the limits of one set of download settings. Use as an asynchronous context."""

    def __init__(self, settings: DownloadSettings, tls: ssl.SSLContext) -> None:
        self._settings = settings
        self._tls = tls
        self._slots = asyncio.Semaphore(settings.concurrency)

    async def __aenter__(self) -> Fetcher:
        connector = aiohttp.TCPConnector(
            limit=self._settings.concurrency,
            ssl=self._tls,
            resolver=None if self._settings.allow_private_addresses else GuardedResolver(),
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": self._settings.user_agent},
            timeout=aiohttp.ClientTimeout(total=None),  # the deadline below covers redirects and body too
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def fetch(self, url: str | None) -> bytes:
        """The body of `url`.

        Raises:
            FetchError: with the outcome that is counted for this URL.
        """
        async with self._slots:
            try:
                return await asyncio.wait_for(self._follow(url), self._settings.timeout_seconds)
            except asyncio.TimeoutError:
                raise FetchError("timeout", f"no whole body within {self._settings.timeout_seconds:g} s") from None
            except BlockedAddress as error:
                raise FetchError("blocked_address", str(error)) from None
            except aiohttp.ClientConnectorDNSError as error:
                raise FetchError("dns", str(error.host)) from None
            except (aiohttp.ClientSSLError, ssl.SSLError) as error:
                raise FetchError("tls", _short(error)) from None
            except aiohttp.ClientConnectorError as error:
                raise FetchError("refused", _short(error.os_error)) from None
            except aiohttp.InvalidURL as error:
                raise FetchError("bad_url", _short(error)) from None
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise FetchError("connection", _short(error)) from None

    async def _follow(self, url: str | None) -> bytes:
        for _ in range(_MAX_REDIRECTS):
            checked = self._check(url)
            async with self._session.get(checked, allow_redirects=False) as response:
                if response.status in _REDIRECTS and "Location" in response.headers:
                    url = urljoin(str(checked), response.headers["Location"])
                    continue
                self._check_response(response)
                return await self._read(response)
        raise FetchError("redirect_loop", f"more than {_MAX_REDIRECTS} redirects")

    def _check(self, url: str | None) -> URL:
        if not url or not url.strip():
            raise FetchError("empty_url")
        try:
            # a legal URL is sent as it is written, since signatures in it do not survive another quoting
            checked = URL(url.strip(), encoded=_LEGAL_URL.fullmatch(url.strip()) is not None)
        except ValueError as error:
            raise FetchError("bad_url", _short(error)) from None
        if checked.scheme not in ("http", "https"):
            raise FetchError("bad_scheme", f"{checked.scheme or 'none'} is not http or https")
        if not checked.host:
            raise FetchError("bad_url", "no host")
        if not self._settings.allow_private_addresses:
            try:
                public = is_public(checked.host)
            except ValueError:
                return checked  # a name: its addresses are checked when it is resolved
            if not public:
                raise BlockedAddress(checked.host)
        return checked

    def _check_response(self, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if status == 429:
            raise FetchError("http_429")
        if status != 200:
            family = "http_5xx" if status >= 500 else "http_4xx" if status >= 400 else "http_other"
            raise FetchError(family, str(status))
        if opted_out(response.headers.getall("X-Robots-Tag", []), self._settings.user_agent):
            raise FetchError("opted_out", "X-Robots-Tag")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self._settings.max_bytes
        body = bytearray()
        async for block in response.content.iter_chunked(_BLOCK_BYTES):
            body += block
            if len(body) > limit:
                raise FetchError("too_large", f"more than {limit} bytes")
        return bytes(body)


def opted_out(headers: list[str], user_agent: str) -> bool:
    """Whether X-Robots-Tag headers forbid the use of an image by us.

    A header is a list of directives; `agent: ...` addresses those after it to one agent only. The colon of a directive
    with a value, such as `unavailable_after`, names no agent.
    """
    ours = user_agent.split("/")[0].strip().lower()
    for header in headers:
        agent = None
        for part in header.split(","):
            directive = part
            match = _AGENT.match(part)
            if match and match.group(1).lower() not in _VALUED_DIRECTIVES:
                agent, directive = match.group(1).lower(), match.group(2)
            if agent in (None, ours, "*") and directive.strip().lower() in _OPT_OUTS:
                return True
    return False


def _short(error: BaseException | None) -> str:
    return (str(error) or type(error).__name__)[:200]
