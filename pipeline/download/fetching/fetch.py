"""Asynchronous fetching of single URLs. A failed fetch raises a `FetchError` that names the kind of failure.

All attempts of a fetch share one deadline. Body sizes are limited, and each redirect target is checked, including its
IP address. `retry.py` defines the retry policy, and `../outcomes.py` the names of the outcomes.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from ..outcomes import FetchError
from ..settings import DownloadSettings
from .addresses import AddressGuard, BlockedAddress, is_local_name, literal_address
from .connections import Connections, ProxyFailure, affordable
from .content_coding import BodyTooLarge, CodingError, decode_beginning, decode_body, known_codings
from .paths import PathReader, is_http, paths_hint
from .response_head import BadResponse
from .retry import retry_after, retry_wait
from .robots import MAX_ROBOTS_BYTES, opted_out
from .robots_cache import RobotsCache

_MAX_REDIRECTS = 10
"""Maximum number of redirects followed for one URL."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
"""HTTP statuses whose Location header is followed."""
_DECODED_AT_ONCE = 8
"""Maximum number of compressed bodies decoded in parallel. It limits memory use, since decoded bodies can be large."""
_CONTENT_RANGE = re.compile(r"\s*bytes\s+0-(\d{1,18})/(\d{1,18})\s*", re.IGNORECASE)
_LEGAL_URL = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")
"""Pattern for URLs that consist only of the characters and percent-escapes that RFC 3986 allows."""
_ERROR_CHARACTERS = 200
"""Maximum number of characters that an error message quotes from an exception's text."""


class Fetcher:
    """Client that fetches URLs within the limits of the download settings. Use it as an asynchronous context manager.

    Memory use is at most the sum of three amounts: the buffers of `concurrency` connections, the amount of body data
    that the network can deliver in `timeout_seconds`, and a few times `max_bytes` for decoding compressed bodies.

    Args:
        settings: download settings.
        tls: TLS context for all connections.
        base: location that relative paths in the list are relative to, as `paths.base_of` returns it. It is used only
            if the setting `allow_paths` is on.
    """

    def __init__(self, settings: DownloadSettings, tls: ssl.SSLContext, base: str | None = None) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(affordable(settings.concurrency))
        self._turn = asyncio.Lock()
        self._host_slots: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()
        self._decoding = asyncio.Semaphore(_DECODED_AT_ONCE)
        self._guard = AddressGuard(allow_private=settings.allow_private_addresses, allowed=settings.allow_addresses)
        self._connections = Connections(settings, tls, self._guard)
        self._robots = RobotsCache(settings.user_agent, self._read_robots) if settings.robots_txt else None
        self._paths = PathReader(settings, base) if settings.allow_paths else None

    async def __aenter__(self) -> Fetcher:
        await self._connections.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._robots is not None:
            await self._robots.close()
        if self._paths is not None:
            self._paths.close()
        await self._connections.__aexit__(kind, error, trace)

    async def fetch(self, url: str | None) -> bytes:
        """Fetch `url` and return the response body, decoded as its Content-Encoding header declares.

        If the setting `allow_paths` is on, `url` may also be a path, whose file is read instead.

        The time limit `timeout_seconds` does not include the wait for a free connection, which depends on
        `connections_per_host` and `concurrency`.

        Raises:
            FetchError: the fetch failed, or `url` is None or invalid. Its `outcome` names the kind of failure.
        """
        if self._paths is not None and url and url.strip() and not is_http(url.strip()):
            url = self._paths.locate(url.strip())
            if not is_http(url):  # a path in a list on the web is relative to the URL of the list
                return await self._paths.read(url)
        checked = self._check(url, paths_hint(url))
        host = checked.raw_host or ""
        host_slots = self._host_slots.setdefault(host, asyncio.Semaphore(self._settings.connections_per_host))
        seconds = self._settings.timeout_seconds
        async with host_slots, self._slots:
            # start at most one fetch per event loop iteration, so that a burst of starts does not delay running fetches
            async with self._turn:
                await asyncio.sleep(0)
            try:
                return await asyncio.wait_for(self._attempts(checked), seconds)
            except asyncio.TimeoutError:
                raise FetchError("timeout", f"no whole body within {seconds:g} s") from None

    async def _attempts(self, url: URL) -> bytes:
        """Fetch a URL, retrying as the retry policy allows, and return the body.

        Raises:
            FetchError: the last attempt failed.
        """
        deadline = time.monotonic() + self._settings.timeout_seconds
        attempt = 0
        while True:
            try:
                with _named_failures():
                    async with self._get(url) as response:
                        self._check_response(response)
                        return await self._decode(await self._read(response), response)
            except FetchError as error:
                wait = retry_wait(
                    url,
                    error,
                    attempt=attempt,
                    retries=self._settings.retries,
                    seconds_left=deadline - time.monotonic(),
                )
                if wait is None:
                    raise
            await asyncio.sleep(wait)
            attempt += 1

    @contextlib.asynccontextmanager
    async def _get(self, url: URL, *, obey_robots: bool = True) -> AsyncIterator[aiohttp.ClientResponse]:
        """Context manager that requests a URL, follows redirects, and yields the final response.

        Each redirect target must pass the same checks as the first URL.

        Args:
            url: first URL.
            obey_robots: True to check each URL against the site's robots.txt if the setting `robots_txt` is on; False
                to skip this check, which is necessary when a robots.txt itself is fetched.

        Raises:
            FetchError: robots.txt forbids a URL, a redirect target is not allowed, or there are too many redirects.
        """
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

    def _check(self, url: str | None, hint: str = "") -> URL:
        """Parse a URL and check its scheme and host. A URL with credentials is refused.

        The address guard checks IP addresses and `localhost` names here. The resolver later checks the addresses of
        other names, unless a proxy does the name lookup.

        Args:
            url: URL to check.
            hint: text to append to the error message for a URL with another scheme.

        Raises:
            FetchError: the URL cannot or must not be fetched.
        """
        if not url or not url.strip():
            raise FetchError("empty_url")
        try:
            # send a valid URL unchanged, because quoting it again would break URL signatures
            checked = URL(url.strip(), encoded=_LEGAL_URL.fullmatch(url.strip()) is not None)
            host, port, credentials = checked.raw_host, checked.port, checked.raw_user or checked.raw_password
        except ValueError as error:
            raise FetchError("bad_url", _short(error)) from None
        if checked.scheme not in ("http", "https"):
            raise FetchError("bad_scheme", f"{checked.scheme or 'none'} is not http or https{hint}")
        if not host or not port:
            raise FetchError("bad_url", "no host" if not host else "port 0")
        if credentials is not None:  # in a list from the web, credentials are stolen or disguise the real host
            raise FetchError("bad_url", "a user name or password before the host")
        address = literal_address(host)
        if address is None:
            if is_local_name(host) and self._guard.refusal("127.0.0.1") is not None:
                raise FetchError("blocked_address", host)  # a proxy would resolve the name to its own address
            return checked  # the resolver checks the addresses of a name, unless a proxy does the name lookup
        if (refusal := self._guard.refusal(address)) is not None:
            raise FetchError("blocked_address", refusal)
        return checked if address == host else checked.with_host(address)

    def _check_response(self, response: aiohttp.ClientResponse) -> None:
        """Check the status and the X-Robots-Tag headers of a response.

        Raises:
            FetchError: the status means that there is no image, or the server forbids using the image.
        """
        status = response.status
        if status == 429 or 500 <= status < 600:
            wait = retry_after(response.headers.get("Retry-After", ""))
            detail = str(status) if wait is None else f"{status}, to be tried again after {wait:.0f} s"
            raise FetchError("http_429" if status == 429 else "http_5xx", detail, transient=True, retry_after=wait)
        if not 200 <= status < 300 or status in (204, 205):
            raise FetchError("http_4xx" if 400 <= status < 500 else "http_other", str(status))
        if opted_out(response.headers.getall("X-Robots-Tag", []), self._settings.user_agent):
            raise FetchError("opted_out", "X-Robots-Tag")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """Read the response body.

        Raises:
            FetchError: the body exceeds `max_bytes`, or the connection broke.
        """
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
                # without a stated length, the end of the connection ends the body, and aiohttp treats a reset as an end
                raise FetchError("connection", _short(protocol.exception()), transient=True)
            return b"".join(blocks)
        finally:
            blocks.clear()  # an exception's traceback would keep the body alive until the next garbage collection

    async def _decode(self, body: bytes, response: aiohttp.ClientResponse) -> bytes:
        """Check that a body is complete, and decode it as its Content-Encoding header declares.

        Raises:
            FetchError: the body is incomplete or too large, or it cannot be decoded. Also raised if the response's
                status is not 200 and the body is not an image.
        """
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
            if failure is not None:  # raised outside `except`, so that no traceback keeps the body alive
                del body
                raise failure
        if response.status != 200 and not is_image(body):  # such as 202, which bot protection services send
            raise FetchError("http_other", str(response.status))
        return body

    async def _read_robots(self, url: URL) -> bytes:
        """Return at most the first `MAX_ROBOTS_BYTES` bytes of a robots.txt.

        If the server answers with a 4xx status other than 429, or redirects too often, return empty bytes, because an
        empty robots.txt allows all URLs. The time limit is half of `timeout_seconds`, so that the fetches that wait for
        the file can report a failure to read it before their own deadlines.

        Raises:
            FetchError: the file cannot be read. The fetches that wait for the file fail with this error.
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
        """Fetch a URL and return at most the first `MAX_ROBOTS_BYTES` bytes of its decoded body.

        Raises:
            FetchError: the fetch failed.
        """
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
    """Context manager that replaces a network or protocol error in its block with a `FetchError`.

    The `outcome` of the `FetchError` names the kind of error. Its `transient` is True if another attempt may succeed.
    """
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
    except (aiohttp.InvalidURL, ValueError) as error:  # ValueError: a host name that cannot be encoded
        raise FetchError("bad_url", _short(error)) from None
    except ProxyFailure as error:
        raise FetchError("proxy", str(error), transient=error.transient) from None
    except BadResponse as error:
        raise FetchError("bad_response", _short(error)) from None
    except (aiohttp.ClientError, OSError) as error:
        raise FetchError("connection", _short(error), transient=True) from None


def _is_whole(content_range: str, size: int) -> bool:
    """Return True if a Content-Range header describes a complete body of `size` bytes.

    Args:
        content_range: value of the header, such as `bytes 0-999/1000`.
        size: number of body bytes that were received.
    """
    match = _CONTENT_RANGE.fullmatch(content_range)
    return match is not None and int(match[1]) + 1 == int(match[2]) == size


def _short(error: BaseException | None) -> str:
    """Return an exception's text, or the name of its type if it has no text.

    The result is truncated to `_ERROR_CHARACTERS` characters.
    """
    return (str(error) or type(error).__name__)[:_ERROR_CHARACTERS]
