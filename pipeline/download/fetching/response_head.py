"""Heads of responses as servers send them -> heads that aiohttp's strict parser takes.

Browsers and curl accept heads that break RFC 9112: names with spaces, lines without a colon, doubled lengths, bare line
feeds, lines of any length. A head is read here as tolerantly as they do, and written anew with the few headers that a
fetch uses. A tolerated response is the last one on its connection, so that its framing can confuse no other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import aiohttp

MAX_HEAD_BYTES = 262_144
"""Bytes of one head, as in Chrome."""

_END = re.compile(rb"\n\r?\n")
_STATUS = re.compile(rb"HTTP(?:/(\d+)(?:\.(\d+))?)?[ \t]+(\d{3})(?!\d)[ \t]*(.*)", re.IGNORECASE)
_LENGTH = re.compile(rb"\+?(\d+)")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROLS = bytes([*range(9), *range(10, 32), 127])
_PASSED_ON = (b"content-range", b"retry-after", b"x-robots-tag")
_REASON_BYTES = 100


class BadResponse(aiohttp.ClientError):
    """A response that browsers refuse too; the message says why."""


@dataclass(frozen=True)
class Head:
    """The head of one response."""

    status: int
    data: bytes
    """It in strict form."""
    length: int | None
    """Bytes of its body; None where chunks or the end of the connection end it."""
    chunked: bool


class HeadReader:
    """Collects the bytes of a connection until they hold a head."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        """Bytes received and not yet taken as a head."""
        self._searched = 0

    def take(self) -> Head | None:
        """Take the next head out of the buffer; None while it is not whole.

        Raises:
            BadResponse: the bytes are no head, or one that is too large.
        """
        if self._searched < 4:
            self.buffer = self.buffer.lstrip(b"\r\n \t")
            start = bytes(self.buffer[:4]).lower()
            if not b"http".startswith(start):
                raise BadResponse(f"no HTTP response, it begins with {bytes(self.buffer[:20])!r}")
        end = _END.search(self.buffer, max(0, self._searched - 3))
        self._searched = len(self.buffer)
        if (end.end() if end else len(self.buffer)) > MAX_HEAD_BYTES:
            raise BadResponse(f"a head of more than {MAX_HEAD_BYTES:,} bytes")
        if end is None:
            return None
        data = bytes(self.buffer[: end.start()])
        del self.buffer[: end.end()]
        self._searched = 0
        return parse_head(data)


def parse_head(data: bytes) -> Head:
    """Read a head, without the blank line that ends it.

    Raises:
        BadResponse: it has no status, or says two lengths.
    """
    first, *lines = data.split(b"\n")
    status_line = _STATUS.match(first.rstrip(b"\r"))
    if status_line is None or status_line[3] < b"100":
        raise BadResponse(f"no HTTP status in {first[:60]!r}")
    major, minor, status = int(status_line[1] or 1), int(status_line[2] or 0), int(status_line[3])
    values, strict = _fields(lines)
    tokens = {token.lower() for token in _listed(values, b"connection")}
    keep = strict and (major, minor) >= (1, 1) and b"close" not in tokens

    transfer = [token.lower() for token in _listed(values, b"transfer-encoding")]
    chunked = b"chunked" in transfer
    codings = _listed(values, b"content-encoding") + [each for each in transfer if each != b"chunked"]
    stated = _listed(values, b"content-length")
    length = None if chunked else _length(stated)
    if len(stated) > (not chunked) or (stated and not stated[0].isdigit()):
        keep = False

    head = [b"HTTP/1.1 %d %s" % (status, _clean(status_line[4])[:_REASON_BYTES])]
    head += [b"Content-Length: %d" % length] if length is not None else []
    head += [b"Transfer-Encoding: chunked"] if chunked else []
    head += [b"Content-Encoding: " + b", ".join(codings)] if codings else []
    head += [b"Location: " + _ascii_url(value) for value in values.get(b"location", [])[:1] if value]
    head += [name + b": " + value for name in _PASSED_ON for value in values.get(name, [])]
    head += [] if keep else [b"Connection: close"]
    bodiless = status < 200 or status in (204, 304)
    return Head(status, b"\r\n".join(head) + b"\r\n\r\n", 0 if bodiless else length, chunked and not bodiless)


def _fields(lines: list[bytes]) -> tuple[dict[bytes, list[bytes]], bool]:
    """The values of each header by its name in small letters, and whether all lines are as RFC 9112 has them."""
    fields: list[list[bytes]] = []
    strict, continued = True, False
    for line in lines:
        strict &= line.endswith(b"\r")
        if line[:1] in (b" ", b"\t"):
            strict = False
            if continued:
                fields[-1][1] += b" " + line
            continue
        name, colon, value = line.partition(b":")
        strict &= bool(colon) and _TOKEN.fullmatch(name) is not None
        continued = bool(colon)
        if colon:
            fields.append([name.strip().lower(), value])
    values: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        values.setdefault(name, []).append(_clean(value))
    return values, strict


def _clean(value: bytes) -> bytes:
    return value.translate(None, _CONTROLS).strip(b" \t")


def _listed(values: dict[bytes, list[bytes]], name: bytes) -> list[bytes]:
    """The parts between commas of all headers of a name."""
    parts = (part.strip(b" \t") for value in values.get(name, []) for part in value.split(b","))
    return [part for part in parts if part]


def _length(stated: list[bytes]) -> int | None:
    """The length that the values of Content-Length agree on; None where they say no number.

    Raises:
        BadResponse: they differ.
    """
    # 18 digits fit the parser's integers, and are too large for anybody
    numbers = {match and int(match[1].lstrip(b"0")[:18] or 0) for match in map(_LENGTH.fullmatch, stated)}
    if None in numbers:
        return None
    if len(numbers) > 1:
        both = b" and ".join(sorted(set(stated)))[:60].decode("latin-1")
        raise BadResponse(f"Content-Length is both {both}")
    return next(iter(numbers), None)


def _ascii_url(value: bytes) -> bytes:
    return b"".join(b"%%%02X" % byte if byte > 126 else bytes([byte]) for byte in value)
