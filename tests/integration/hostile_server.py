"""A web server that does what servers on the web do, and worse, each behaviour at a path of its own.

It runs inside a test, or as a process: `python hostile_server.py FOLDER` prints its places as JSON and serves until its
input ends.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import datetime
import email.utils
import gzip
import io
import ipaddress
import json
import socket
import ssl
import struct
import sys
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import brotli
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

if sys.version_info >= (3, 14):
    from compression.zstd import compress as zstd_compress
else:
    from backports.zstd import compress as zstd_compress

MAX_BYTES = 1_000_000
"""The cap with which the outcomes below are to be expected."""


@dataclass
class Visit:
    """One request, and the connection to answer it on."""

    target: str
    number: int
    """How often this target was asked for before."""
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def wait_for_the_end(self) -> None:
        """Say nothing until the client gives up."""
        while await self.reader.read(1 << 16):
            pass

    def reset(self) -> None:
        """Cut the connection with a TCP reset."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


Answer = bytes | Callable[[Visit], Awaitable[None]]


@dataclass(frozen=True)
class Behaviour:
    """What is answered, and what must come of it."""

    outcome: str
    """Of the fetch, with one retry and `MAX_BYTES`."""
    answer: Answer
    image_outcomes: tuple[str, ...] = ("success",)
    """Of the whole download, where the fetch succeeds."""
    requests: int | None = None
    """How many there are, where it matters."""


def response(status: str = "200 OK", body: bytes = b"", **headers: str) -> bytes:
    """The bytes of a proper response, after which the connection stays open."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines])
    return head.encode("latin-1") + b"\r\n\r\n" + body


def raw(head: str, body: bytes = b"") -> bytes:
    """The bytes of a response whose end is the connection's."""
    return f"HTTP/1.1 200 OK\r\nConnection: close\r\n{head}\r\n".encode("latin-1") + body


def picture(encoding: str = "JPEG") -> bytes:
    """A small image."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(file, encoding)
    return file.getvalue()


def pixel_bomb() -> bytes:
    """A PNG of a hundred bytes that says it has 2.5 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def raw_deflate(data: bytes) -> bytes:
    """Deflate without its header, as some servers send it."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


IMAGE = picture()
HTML = b"<!DOCTYPE html><html><body>Image not found</body></html>"
SVG = b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg><text>&x;</text></svg>'
ZEROS = bytes(30 * MAX_BYTES)
GZIP_ZEROS = gzip.compress(ZEROS, 1)


def after(seconds: float, answer: bytes) -> Answer:
    async def late(visit: Visit) -> None:
        await asyncio.sleep(seconds)
        await visit.send(answer)

    return late


def first(failure: Answer, then: bytes) -> Answer:
    """Fail the first time only."""

    async def recovering(visit: Visit) -> None:
        if visit.number:
            await visit.send(then)
        elif isinstance(failure, bytes):
            await visit.send(failure)
        else:
            await failure(visit)

    return recovering


def repeating(head: bytes, part: bytes, pause: float) -> Answer:
    """Never end."""

    async def endless(visit: Visit) -> None:
        await visit.send(head)
        while True:
            await visit.send(part)
            await asyncio.sleep(pause)

    return endless


def stalling(head: bytes) -> Answer:
    async def stall(visit: Visit) -> None:
        await visit.send(head)
        await visit.wait_for_the_end()

    return stall


def resetting(head: bytes) -> Answer:
    async def reset(visit: Visit) -> None:
        await visit.send(head)
        await asyncio.sleep(0.02)
        visit.reset()

    return reset


async def endless_redirects(visit: Visit) -> None:
    await visit.send(response("302 Found", Location=f"/redirect-chain?{int('0' + visit.target.partition('?')[2]) + 1}"))


async def retry_at_a_date(visit: Visit) -> None:
    await visit.send(
        response("429 Too Many Requests", Retry_After=email.utils.formatdate(time.time() + 1, usegmt=True))
    )


def redirect(location: str, status: str = "302 Found") -> bytes:
    return response(status, Location=location)


HUGE = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"
UNBOUND = b"HTTP/1.1 200 OK\r\n\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
OPTED_OUT = {
    "noai": ["noai"],
    "none": ["none"],
    "named": ["img2dataset: noai"],
    "star": ["*: noindex"],
    "dated": ["unavailable_after: 25 Jun 2030 15:00:00 PST, noimageai"],
    "second": ["all", "otherbot: all, priorkit: NoImageIndex"],
}
CHUNKS = b"3;x=y\r\n%s\r\n%x\r\n%s\r\n0\r\nTrailer: x\r\n\r\n" % (IMAGE[:3], len(IMAGE) - 3, IMAGE[3:])
LF_CHUNKS = b"3\n%s\n%x\n%s\n0\n\n" % (IMAGE[:3], len(IMAGE) - 3, IMAGE[3:])
LENGTH = b"Content-Length: %d\r\n\r\n" % len(IMAGE)
MEMBERS = gzip.compress(bytes(200_000)) * 100
BUSY, DOWN = "429 Too Many Requests", "503 Service Unavailable"

BEHAVIOURS: dict[str, Behaviour] = {
    # bodies that arrive, as images do
    "image": Behaviour("success", response(body=IMAGE)),
    "image-png": Behaviour("success", response(body=picture("PNG"))),
    "http-1.0": Behaviour("success", b"HTTP/1.0 200 OK\r\n\r\n" + IMAGE),
    "until-close": Behaviour("success", raw("", IMAGE)),
    "chunked": Behaviour("success", raw(CHUNKED, CHUNKS)),
    "gzip": Behaviour("success", response(body=gzip.compress(IMAGE), Content_Encoding="gzip")),
    "deflate": Behaviour("success", response(body=zlib.compress(IMAGE), Content_Encoding="deflate")),
    "deflate-raw": Behaviour("success", response(body=raw_deflate(IMAGE), Content_Encoding="deflate")),
    "early-hints": Behaviour("success", b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + response(body=IMAGE)),
    "latin-1-header": Behaviour("success", response(body=IMAGE, Server="caf\xe9")),
    "cookies": Behaviour("success", response(body=IMAGE, **{f"X_{n}": "Set-Cookie: a=b" * 20 for n in range(50)})),
    "late": Behaviour("success", after(0.3, response(body=IMAGE))),
    # bodies that arrive and are no image
    "empty": Behaviour("success", response(), ("not_image",)),
    "html-as-jpeg": Behaviour("success", response(body=HTML, Content_Type="image/jpeg"), ("not_image",)),
    "svg-entities": Behaviour("success", response(body=SVG, Content_Type="image/svg+xml"), ("not_image",)),
    "pixel-bomb": Behaviour("success", response(body=pixel_bomb()), ("too_many_pixels", "decode")),
    "half-a-png": Behaviour("success", response(body=picture("PNG")[:60]), ("decode",)),
    "jpeg-of-noise": Behaviour("success", response(body=IMAGE[:4] + bytes(5000)), ("decode",)),
    # bodies that do not end
    "endless": Behaviour("too_large", repeating(UNBOUND, b"x" * 65536, 0)),
    "endless-chunks": Behaviour("too_large", repeating(raw(CHUNKED), b"8000\r\n" + b"x" * 0x8000 + b"\r\n", 0)),
    "huge-length": Behaviour("too_large", stalling(HUGE), requests=1),
    "gzip-bomb": Behaviour("too_large", response(body=GZIP_ZEROS, Content_Encoding="gzip")),
    "deflate-bomb": Behaviour("too_large", response(body=zlib.compress(ZEROS, 1), Content_Encoding="deflate")),
    "bomb-of-members": Behaviour("too_large", response(body=MEMBERS, Content_Encoding="gzip")),
    # servers that take their time
    "silent": Behaviour("timeout", stalling(b"")),
    "slow-headers": Behaviour("timeout", repeating(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", 0.05)),
    "dribble": Behaviour("timeout", repeating(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x", 0.2)),
    "stall-after-headers": Behaviour("timeout", stalling(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")),
    "stall-in-body": Behaviour("timeout", stalling(UNBOUND + IMAGE)),
    "endless-hints": Behaviour("timeout", repeating(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.01)),
    "slow-chunks": Behaviour("timeout", repeating(raw(CHUNKED), b"1\r\nx\r\n", 0.1)),
    # connections that break
    "reset-before": Behaviour("connection", resetting(b"")),  # aiohttp asks again at once, of itself
    "reset-in-headers": Behaviour("connection", resetting(b"HTTP/1.1 200 OK\r\nContent")),
    "reset-in-length": Behaviour("connection", resetting(response(body=IMAGE)[:-9]), requests=2),
    "reset-in-body": Behaviour("connection", resetting(UNBOUND + b"body"), requests=2),
    "close-before": Behaviour("connection", first(b"", b"")),
    "short-body": Behaviour("connection", raw("Content-Length: 100\r\n", b"body")),
    "short-chunk": Behaviour("connection", raw(CHUNKED, b"100\r\nbody")),
    "chunk-without-end": Behaviour("connection", raw(CHUNKED, b"4\r\nbody\r\n")),
    "reset-then-image": Behaviour("success", first(resetting(b"HTTP/1.1"), response(body=IMAGE)), requests=2),
    # responses that browsers and curl take
    "long-header": Behaviour("success", raw(f"X: {'x' * 70_000}\r\n", IMAGE), requests=1),
    "many-headers": Behaviour("success", raw("X: x\r\n" * 2000, IMAGE), requests=1),
    "space-in-name": Behaviour("success", response(body=IMAGE, **{"X Powered By": "foo"}), requests=1),
    "space-after-name": Behaviour("success", raw(f"Content-Length : {len(IMAGE)}\r\n", IMAGE), requests=1),
    "no-colon": Behaviour("success", raw("this is no header\r\n", IMAGE), requests=1),
    "no-name": Behaviour("success", raw(": x\r\n", IMAGE), requests=1),
    "folded-header": Behaviour("success", raw("X: a\r\n b\r\n\tc: d\r\n", IMAGE), requests=1),
    "control-in-header": Behaviour("success", raw("X: a\x01\x00b\rc\r\n", IMAGE), requests=1),
    "same-length-twice": Behaviour("success", raw(f"Content-Length: {len(IMAGE)}\r\n" * 2, IMAGE), requests=1),
    "same-length-listed": Behaviour("success", raw(f"Content-Length: {len(IMAGE)}, {len(IMAGE)}\r\n", IMAGE)),
    "length-and-chunks": Behaviour("success", raw(f"Content-Length: 7\r\n{CHUNKED}", CHUNKS), requests=1),
    "length-with-plus": Behaviour("success", raw(f"Content-Length: +{len(IMAGE)} \r\n", IMAGE), requests=1),
    "length-of-letters": Behaviour("success", raw("Content-Length: ten\r\n", IMAGE), requests=1),
    "negative-length": Behaviour("success", raw("Content-Length: -1\r\n", IMAGE), requests=1),
    "no-length-after-all": Behaviour("success", raw("Content-Length: \r\n", IMAGE), requests=1),
    "more-than-length": Behaviour("success", response(body=IMAGE) + b"and more", requests=1),
    "more-than-chunks": Behaviour("success", raw(CHUNKED, CHUNKS + b"and more"), requests=1),
    "bare-line-feeds": Behaviour("success", b"HTTP/1.1 200 OK\n" + LENGTH.replace(b"\r", b"") + IMAGE, requests=1),
    "chunks-of-line-feeds": Behaviour("success", b"HTTP/1.1 200\nTransfer-Encoding: Chunked\n\n" + LF_CHUNKS),
    "no-reason": Behaviour("success", b"HTTP/1.1 200\r\n" + LENGTH + IMAGE, requests=1),
    "small-http": Behaviour("success", b"http/1.1 200 ok\r\n" + LENGTH + IMAGE, requests=1),
    "http-2": Behaviour("success", b"HTTP/2 200\r\n" + LENGTH + IMAGE, requests=1),
    "not-gzip": Behaviour("success", response(body=IMAGE, Content_Encoding="gzip"), requests=1),
    "not-deflate": Behaviour("success", response(body=IMAGE, Content_Encoding="deflate"), requests=1),
    "not-brotli": Behaviour("success", response(body=IMAGE, Content_Encoding="br"), requests=1),
    "not-zstd": Behaviour("success", response(body=IMAGE, Content_Encoding="zstd"), requests=1),
    "brotli": Behaviour("success", response(body=brotli.compress(IMAGE), Content_Encoding="br"), requests=1),
    "zstd": Behaviour("success", response(body=zstd_compress(IMAGE), Content_Encoding="zstd"), requests=1),
    "twice-encoded": Behaviour(
        "success", response(body=gzip.compress(brotli.compress(IMAGE)), Content_Encoding="br, x-gzip"), requests=1
    ),
    **{
        f"encoding-{name or 'empty'}": Behaviour("success", response(body=IMAGE, Content_Encoding=name), requests=1)
        for name in ("none", "utf-8", "identity", "", "aws-chunked", "compress")
    },
    "gzip-with-rest": Behaviour("success", response(body=gzip.compress(IMAGE) + bytes(9), Content_Encoding="gzip")),
    "201": Behaviour("success", response("201 Created", IMAGE), requests=1),
    "203": Behaviour("success", response("203 Non-Authoritative Information", IMAGE), requests=1),
    "206-whole": Behaviour(
        "success",
        response("206 Partial Content", IMAGE, Content_Range=f"bytes 0-{len(IMAGE) - 1}/{len(IMAGE)}"),
        requests=1,
    ),
    "redirect-beyond-ascii": Behaviour("http_4xx", redirect("/404?caf\xe9 au lait"), requests=1),
    # responses that nobody takes
    "two-lengths": Behaviour("bad_response", raw("Content-Length: 4\r\nContent-Length: 5\r\n", b"body!"), requests=1),
    "not-http": Behaviour("bad_response", b"SSH-2.0-OpenSSH_9.0\r\n", requests=1),
    "bad-status": Behaviour("bad_response", b"HTTP/1.1 abc OK\r\n\r\n", requests=1),
    "endless-header": Behaviour("bad_response", repeating(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65536, 0), requests=1),
    "bad-chunk-size": Behaviour("bad_response", raw(CHUNKED, b"xyz\r\nbody\r\n0\r\n\r\n"), requests=1),
    "negative-chunk": Behaviour("bad_response", raw(CHUNKED, b"-4\r\nbody\r\n0\r\n\r\n"), requests=1),
    "chunk-too-long": Behaviour("bad_response", raw(CHUNKED, b"2\r\nbody\r\n0\r\n\r\n"), requests=1),
    "page-not-in-gzip": Behaviour("bad_response", response(body=HTML, Content_Encoding="gzip"), requests=1),
    "cut-gzip": Behaviour("bad_response", response(body=gzip.compress(IMAGE)[:-20], Content_Encoding="gzip")),
    "too-many-members": Behaviour("bad_response", response(body=gzip.compress(b"") * 5000, Content_Encoding="gzip")),
    "brotli-bomb": Behaviour("too_large", response(body=brotli.compress(ZEROS, quality=1), Content_Encoding="br")),
    "zstd-bomb": Behaviour("too_large", response(body=zstd_compress(ZEROS), Content_Encoding="zstd")),
    # statuses
    "202": Behaviour("http_other", response("202 Accepted", HTML), requests=1),
    "206-part": Behaviour("http_other", response("206 Part", IMAGE, Content_Range="bytes 0-9/100"), requests=1),
    "206-later": Behaviour("http_other", response("206 Part", IMAGE, Content_Range="bytes 9-99/100"), requests=1),
    "206-unknown": Behaviour(
        "http_other", response("206 Partial Content", IMAGE, Content_Range=f"bytes 0-{len(IMAGE) - 1}/*"), requests=1
    ),
    "400": Behaviour("http_4xx", response("400 Bad Request", Retry_After="0"), requests=1),
    "403": Behaviour("http_4xx", response("403 Forbidden"), requests=1),
    "404": Behaviour("http_4xx", response("404 Not Found", HTML), requests=1),
    "410": Behaviour("http_4xx", response("410 Gone"), requests=1),
    "204": Behaviour("http_other", b"HTTP/1.1 204 No Content\r\n\r\n"),
    "206": Behaviour("http_other", response("206 Partial Content", IMAGE)),
    "304": Behaviour("http_other", b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    "101": Behaviour("http_other", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    "999": Behaviour("http_other", response("999 Request denied")),
    "500": Behaviour("http_5xx", response("500 Internal Server Error"), requests=2),
    "503": Behaviour("http_5xx", response(DOWN), requests=2),
    "503-for-long": Behaviour("http_5xx", response(DOWN, Retry_After="3600"), requests=1),
    "503-then-image": Behaviour("success", first(response(DOWN), response(body=IMAGE)), requests=2),
    "429": Behaviour("http_429", response(BUSY), requests=2),
    "429-for-long": Behaviour("http_429", response(BUSY, Retry_After="120"), requests=1),
    "429-bad-wait": Behaviour("http_429", response(BUSY, Retry_After="soon")),
    "429-a-second": Behaviour("success", first(response(BUSY, Retry_After="1"), response(body=IMAGE)), requests=2),
    "429-a-date": Behaviour("success", first(retry_at_a_date, response(body=IMAGE)), requests=2),
    # redirects
    "redirect": Behaviour("success", redirect("/image")),
    "redirect-308": Behaviour("success", redirect("image?x=%2F#part", "308 Permanent Redirect")),
    "redirect-to-itself": Behaviour("redirect_loop", redirect("/redirect-to-itself"), requests=11),
    "redirect-to-the-other": Behaviour("redirect_loop", redirect("/redirect-back")),
    "redirect-back": Behaviour("redirect_loop", redirect("/redirect-to-the-other")),
    "redirect-chain": Behaviour("redirect_loop", endless_redirects),
    "redirect-nowhere": Behaviour("http_other", response("302 Found")),
    "redirect-to-file": Behaviour("bad_scheme", redirect("file:///etc/passwd"), requests=1),
    "redirect-to-data": Behaviour("bad_scheme", redirect("data:image/png;base64,AAAA"), requests=1),
    "redirect-to-ftp": Behaviour("bad_scheme", redirect("ftp://127.0.0.1/x"), requests=1),
    "redirect-to-script": Behaviour("bad_scheme", redirect("javascript:alert(1)"), requests=1),
    "redirect-to-user": Behaviour("bad_url", redirect("http://user:word@127.0.0.1/x"), requests=1),
    "redirect-to-garbage": Behaviour("bad_url", redirect("http://[::1"), requests=1),
    # opt-outs
    **{
        f"opt-out-{name}": Behaviour(
            "opted_out",
            b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n"
            % (b"".join(f"X-Robots-Tag: {value}\r\n".encode() for value in values), len(IMAGE)) + IMAGE,
            requests=1,
        )
        for name, values in OPTED_OUT.items()
    },
    "opt-out-of-others": Behaviour("success", response(body=IMAGE, X_Robots_Tag="otherbot: noai, nofollow")),
}  # fmt: skip

FORBID = b"User-agent: *\nDisallow: /"
ROBOTS: dict[str, tuple[str, Answer]] = {
    "127.0.1.1": ("robots", response(body=b"User-agent: *\nDisallow: /image\n")),
    "127.0.1.2": ("success", response(body=b"User-agent: *\nDisallow: /\n\nUser-agent: priorkit\nAllow: /\n")),
    "127.0.1.3": ("robots", response(body=b"user-agent: img2dataset\ndisallow: /*mage$\n")),
    "127.0.1.4": ("success", response(body=b"User-agent: otherbot\nDisallow: /\n")),
    "127.0.1.5": ("success", response("404 Not Found")),
    "127.0.1.6": ("http_5xx", response("500 Internal Server Error")),
    "127.0.1.7": ("http_429", response(BUSY)),
    "127.0.1.8": ("success", response(body=b"# \n" * 3_000_000 + FORBID)),
    "127.0.1.9": ("robots", response(body=FORBID + b"\n#" * 5_000_000)),
    "127.0.1.10": ("timeout", stalling(b"")),
    "127.0.1.11": ("connection", resetting(b"")),
    "127.0.1.12": ("success", redirect("/robots.txt")),
    "127.0.1.13": ("refused", redirect("http://127.0.1.1/robots.txt")),
    "127.0.1.14": ("success", response(body=b"\xff\xfe\x00<html>")),
    "127.0.1.15": ("bad_scheme", redirect("file:///etc/passwd")),
    "127.0.1.17": ("success", repeating(UNBOUND, b"# nothing\n" * 5000, 0)),
    "127.0.1.16": ("success", response(body=GZIP_ZEROS, Content_Encoding="gzip")),
}
"""By host: what comes of `/image` with its robots.txt, which is that."""
NO_ROBOTS = ("success", response("404 Not Found"))


@dataclass(frozen=True)
class Places:
    """Ports of the server."""

    plain: int
    trusted: int
    """TLS with a certificate by `authority`."""
    expired: int
    unknown: int
    """TLS with a certificate by nobody."""
    other: int
    """TLS with the certificate of another host."""
    mute: int
    """Never answers the first message of TLS."""
    rude: int
    """Hangs up at it."""


class HostileServer:
    """All behaviours at once, on every address of this machine's loopback network."""

    def __init__(self, folder: Path) -> None:
        self.authority = folder / "authority.pem"
        self.requests: collections.deque[str] = collections.deque(maxlen=10_000)
        """Host and target of the last ones."""
        self._folder = folder
        self._visits: dict[str, int] = {}
        self._handlers: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Places]:
        """Serve within this context."""
        contexts = write_certificates(self._folder)
        async with contextlib.AsyncExitStack() as stack:
            ports = {}
            for name in Places.__dataclass_fields__:
                accept = {"mute": self._mute, "rude": self._rude}.get(name, self._serve)
                server = await asyncio.start_server(
                    self._handler(accept), "0.0.0.0", 0, ssl=contexts.get(name), backlog=4096
                )
                stack.callback(server.close)
                ports[name] = server.sockets[0].getsockname()[1]
            try:
                yield Places(**ports)
            finally:
                for handler in self._handlers:
                    handler.cancel()
                await asyncio.gather(*self._handlers, return_exceptions=True)

    def _handler(
        self, accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._handlers.add(task)
            task.add_done_callback(self._handlers.discard)
            try:
                await accept(reader, writer)
            except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                writer.close()

        return handle

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            if (start := await reader.readexactly(1)) != b"G":  # such as a handshake of TLS
                writer.write(response("400 Bad Request"))
                return
            lines = (start + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            target = lines[0].split(" ")[1]
            host = next(line[6:] for line in lines if line.lower().startswith("host: ")).partition(":")[0]
            self.requests.append(f"{host}{target}")
            number = self._visits.pop(target, 0)
            self._visits[target] = number + 1
            if len(self._visits) > 20_000:
                del self._visits[next(iter(self._visits))]
            if target == "/robots.txt":
                answer = ROBOTS.get(host, NO_ROBOTS)[1]
            else:
                answer = BEHAVIOURS[target[1:].partition("?")[0]].answer
            if not isinstance(answer, bytes):
                await answer(Visit(target, number, reader, writer))
                return
            writer.write(answer)
            await writer.drain()
            if not answer.startswith(b"HTTP/1.1 ") or b"\r\nConnection: " in answer[:60]:
                return

    async def _mute(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            pass

    async def _rude(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)


def write_certificates(folder: Path) -> dict[str, ssl.SSLContext]:
    """Contexts of the places with TLS; the authority that the trusted one's clients need is `authority.pem`."""
    now = datetime.datetime.now(datetime.timezone.utc)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = _name("authority")

    def context(name: str, host: str, days: int, key: ec.EllipticCurvePrivateKey = authority_key) -> ssl.SSLContext:
        own_key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(host))
            .issuer_name(authority_name)
            .public_key(own_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=9))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return _server_context(folder / f"{name}.pem", certificate, own_key)

    authority = (
        x509.CertificateBuilder()
        .subject_name(authority_name)
        .issuer_name(authority_name)
        .public_key(authority_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now + datetime.timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    (folder / "authority.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    return {
        "trusted": context("trusted", "127.0.0.1", 9),
        "expired": context("expired", "127.0.0.1", -1),
        "unknown": context("unknown", "127.0.0.1", 9, ec.generate_private_key(ec.SECP256R1())),
        "other": context("other", "127.0.0.9", 9),
    }


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _server_context(path: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> ssl.SSLContext:
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*form) + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def main() -> None:
    """Serve until standard input ends."""
    server = HostileServer(Path(sys.argv[1]))
    async with server.running() as places:
        print(json.dumps(vars(places)), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
