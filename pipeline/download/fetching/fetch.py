"""One URL -> bytes, or a named failure: asynchronous, with a total deadline, caps, retries, and guarded addresses."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import random
import re
import socket
import ssl
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from ...images.kinds import is_image
from ..settings import DownloadSettings
from .addresses import AddressGuard, BlockedAddress, is_local_name, literal_address
from .connections import Connections, ProxyFailure, affordable
from .content_coding import BodyTooLarge, CodingError, decode_beginning, decode_body, known_codings
from .response_head import BadResponse
from .robots import MAX_ROBOTS_BYTES, opted_out
from .robots_cache import RobotsCache

_MAX_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DECODED_AT_ONCE = 8
"""Compressed bodies that are decoded at once, since little traffic can fill much memory with them."""
_CONTENT_RANGE = re.compile(r"\s*bytes\s+0-(\d{1,18})/(\d{1,18})\s*", re.IGNORECASE)
_FIRST_BACKOFF_SECONDS = 0.5
_LEGAL_URL = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")


class FetchError(Exception):
    """A URL that gave no image bytes. `outcome` is one of the names that are counted."""

    def __init__(
        self, outcome: str, detail: str = "", *, transient: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(outcome, detail)
        self.outcome = outcome
        self.detail = detail
        self.transient = transient
        """Whether another attempt may end otherwise."""
        self.retry_after = retry_after
        """Seconds that the server asks to wait before it."""

    def __str__(self) -> str:
        return f"{self.outcome}: {self.detail}" if self.detail else self.outcome


class Fetcher:
    """A pool of connections with the limits of one set of download settings. Use as an asynchronous context.

    Memory is bounded by `concurrency` times the buffers of a connection, by what the line brings within one deadline,
    and for compressed bodies by a few of `max_bytes`.
    """

    def __init__(self, settings: DownloadSettings, tls: ssl.SSLContext) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(affordable(settings.concurrency))
        self._turn = asyncio.Lock()
        self._host_slots: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()
        self._decoding = asyncio.Semaphore(_DECODED_AT_ONCE)
        self._guard = AddressGuard(allow_private=settings.allow_private_addresses, allowed=settings.allow_addresses)
        self._connections = Connections(settings, tls, self._guard)
        self._robots = RobotsCache(settings.user_agent, self._read_robots) if settings.robots_txt else None

    async def __aenter__(self) -> Fetcher:
        await self._connections.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._robots is not None:
            await self._robots.close()
        await self._connections.__aexit__(kind, error, trace)

    async def fetch(self, url: str | None) -> bytes:
        """The body of `url`. The deadline begins when its host and the whole have a place free.

        Raises:
            FetchError: with the outcome that is counted for this URL.
        """
        checked = self._check(url)
        host = checked.raw_host or ""
        host_slots = self._host_slots.setdefault(host, asyncio.Semaphore(self._settings.connections_per_host))
        seconds = self._settings.timeout_seconds
        async with host_slots, self._slots:
            # one begins at each turn of the event loop: while it is busy, none is made late by more
            async with self._turn:
                await asyncio.sleep(0)
            try:
                return await asyncio.wait_for(self._attempts(checked), seconds)
            except asyncio.TimeoutError:
                raise FetchError("timeout", f"no whole body within {seconds:g} s") from None

    async def _attempts(self, url: URL) -> bytes:
        deadline = time.monotonic() + self._settings.timeout_seconds
        attempt = 0
        while True:
            try:
                with _named_failures():
                    async with self._get(url) as response:
                        self._check_response(response)
                        return await self._decode(await self._read(response), response)
            except FetchError as error:
                wait = max(_backoff(url, attempt), error.retry_after or 0.0)
                late = time.monotonic() + wait >= deadline
                if not error.transient or attempt >= self._settings.retries or late:
                    raise
            await asyncio.sleep(wait)
            attempt += 1

    @contextlib.asynccontextmanager
    async def _get(self, url: URL, *, obey_robots: bool = True) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response at the end of the redirects, each of which is checked as the first URL is."""
        for _ in range(_MAX_REDIRECTS + 1):
            if self._robots is not None and obey_robots and not await self._robots.allow(url):
                raise FetchError("robots", f"robots.txt of {url.raw_host}")
            async with self._connections.request(url) as response:
                location = response.headers.get("Location", "")
                if response.status not in _REDIRECTS or not location:
                    yield response
                    return
            url = self._check(urljoin(str(url), location))
        raise FetchError("redirect_loop", f"more than {_MAX_REDIRECTS} redirects")

    def _check(self, url: str | None) -> URL:
        if not url or not url.strip():
            raise FetchError("empty_url")
        try:
            # a legal URL is sent as it is written, since signatures in it do not survive another quoting
            checked = URL(url.strip(), encoded=_LEGAL_URL.fullmatch(url.strip()) is not None)
            host, port, credentials = checked.raw_host, checked.port, checked.raw_user or checked.raw_password
        except ValueError as error:
            raise FetchError("bad_url", _short(error)) from None
        if checked.scheme not in ("http", "https"):
            raise FetchError("bad_scheme", f"{checked.scheme or 'none'} is not http or https")
        if not host or not port:
            raise FetchError("bad_url", "no host" if not host else "port 0")
        if credentials is not None:  # in a list from the web they are stolen, or there to disguise the host
            raise FetchError("bad_url", "a user name or password before the host")
        address = literal_address(host)
        if address is None:
            if is_local_name(host) and self._guard.refusal("127.0.0.1") is not None:
                raise FetchError("blocked_address", host)  # which a proxy would resolve to itself
            return checked  # a name: its addresses are checked when it is resolved, unless a proxy resolves it
        if (refusal := self._guard.refusal(address)) is not None:
            raise FetchError("blocked_address", refusal)
        return checked if address == host else checked.with_host(address)

    def _check_response(self, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if status == 429 or 500 <= status < 600:
            wait = _retry_after(response.headers.get("Retry-After", ""))
            detail = str(status) if wait is None else f"{status}, to be tried again after {wait:.0f} s"
            raise FetchError("http_429" if status == 429 else "http_5xx", detail, transient=True, retry_after=wait)
        if not 200 <= status < 300 or status in (204, 205):
            raise FetchError("http_4xx" if 400 <= status < 500 else "http_other", str(status))
        if opted_out(response.headers.getall("X-Robots-Tag", []), self._settings.user_agent):
            raise FetchError("opted_out", "X-Robots-Tag")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self._settings.max_bytes
        if (response.content_length or 0) > limit:
            raise FetchError("too_large", f"Content-Length of {response.content_length} is more than {limit} bytes")
        connection = response.connection
        protocol = None if connection is None or response.content_length is not None else connection.protocol
        blocks: list[bytes] = []
        size = 0
        try:
            async for block in response.content.iter_any():
                blocks.append(block)
                size += len(block)
                if size > limit:
                    raise FetchError("too_large", f"more than {limit} bytes")
            if protocol is not None and isinstance(protocol.exception(), aiohttp.ClientOSError):
                # a body without a length ends with its connection, and aiohttp takes a reset for such an end
                raise FetchError("connection", _short(protocol.exception()), transient=True)
            return b"".join(blocks)
        finally:
            blocks.clear()  # the traceback of a failure would hold it until the next garbage collection

    async def _decode(self, body: bytes, response: aiohttp.ClientResponse) -> bytes:
        """The body without its Content-Encoding, if it is whole and its status says that it is what was asked for."""
        if response.status == 206 and not _is_whole(response.headers.get("Content-Range", ""), len(body)):
            raise FetchError("http_other", "206, a part of the body")
        header = response.headers.get("Content-Encoding", "")
        if known_codings(header):
            failure = None
            try:
                async with self._decoding:
                    body = await asyncio.to_thread(decode_body, body, header, self._settings.max_bytes)
            except (BodyTooLarge, CodingError) as error:
                failure = FetchError("too_large" if isinstance(error, BodyTooLarge) else "bad_response", str(error))
            if failure is not None:  # raised here, since tracebacks would hold the body until a garbage collection
                del body
                raise failure
        if response.status != 200 and not is_image(body):  # such as 202, of pages that keep robots out
            raise FetchError("http_other", str(response.status))
        return body

    async def _read_robots(self, url: URL) -> bytes:
        """The beginning of a robots.txt; empty where there is none.

        It gets half of a deadline, so that the URL that waits for it can still say what failed.

        Raises:
            FetchError: it cannot be read, so what it asks is not known, and its URLs fail as it does.
        """
        seconds = self._settings.timeout_seconds / 2
        try:
            return await asyncio.wait_for(self._first_bytes(url), seconds)
        except asyncio.TimeoutError:
            raise FetchError("timeout", f"no robots.txt within {seconds:g} s") from None
        except FetchError as error:
            if error.outcome in ("http_4xx", "redirect_loop"):
                return b""
            detail = f"{error.detail}, of robots.txt"
            raise FetchError(error.outcome, detail, transient=error.transient, retry_after=error.retry_after) from None

    async def _first_bytes(self, url: URL) -> bytes:
        with _named_failures():
            async with self._get(url, obey_robots=False) as response:
                if response.status != 200:
                    self._check_response(response)
                body = bytearray()
                async for block in response.content.iter_any():
                    body += block
                    if len(body) >= MAX_ROBOTS_BYTES:
                        break
        header = response.headers.get("Content-Encoding", "")
        if known_codings(header):
            async with self._decoding:
                return await asyncio.to_thread(decode_beginning, bytes(body), header, MAX_ROBOTS_BYTES)
        return bytes(body[:MAX_ROBOTS_BYTES])


@contextlib.contextmanager
def _named_failures() -> Iterator[None]:
    """Whatever can go wrong with a connection, as a FetchError."""
    try:
        yield
    except BlockedAddress as error:
        raise FetchError("blocked_address", str(error)) from None
    except aiohttp.ClientConnectorDNSError as error:
        again = isinstance(error.os_error, socket.gaierror) and error.os_error.errno == socket.EAI_AGAIN
        raise FetchError("dns", str(error.host), transient=again) from None
    except (aiohttp.ClientSSLError, ssl.SSLError) as error:
        raise FetchError("tls", _short(error)) from None
    except aiohttp.ClientConnectorError as error:
        broken = isinstance(error.os_error, ConnectionResetError | ConnectionAbortedError)
        raise FetchError("connection" if broken else "refused", _short(error.os_error), transient=True) from None
    except (aiohttp.InvalidURL, ValueError) as error:  # ValueError: a host that no look-up can take
        raise FetchError("bad_url", _short(error)) from None
    except ProxyFailure as error:
        raise FetchError("proxy", str(error), transient=error.transient) from None
    except BadResponse as error:
        raise FetchError("bad_response", _short(error)) from None
    except (aiohttp.ClientError, OSError) as error:
        raise FetchError("connection", _short(error), transient=True) from None


def _is_whole(content_range: str, size: int) -> bool:
    """Return whether a Content-Range says that a body of `size` bytes is all there is."""
    match = _CONTENT_RANGE.fullmatch(content_range)
    return match is not None and int(match[1]) + 1 == int(match[2]) == size


def _backoff(url: URL, attempt: int) -> float:
    """Seconds before the next attempt: doubled each time, spread by a jitter that belongs to the URL."""
    return _FIRST_BACKOFF_SECONDS * 2.0**attempt * random.Random(f"{url} {attempt}").uniform(0.5, 1.5)


def _retry_after(value: str) -> float | None:
    """The seconds of a Retry-After header, which states seconds or a date; None for anything else."""
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, date.timestamp() - time.time())


def _short(error: BaseException | None) -> str:
    return (str(error) or type(error).__name__)[:200]
