"""Tolerant parser that rewrites HTTP response heads so that aiohttp's strict parser accepts them.

A head is the status line and the headers. Browsers and curl accept heads that violate RFC 9112, such as heads with
spaces in header names, lines without a colon, repeated Content-Length headers, bare line feeds or very long lines. This
parser accepts them too, and writes a new head that contains only the headers that a fetch uses. After a response that
violates the RFC, the connection is closed, so that a wrong body length cannot corrupt the next response.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import aiohttp

MAX_HEAD_BYTES = 262_144
"""Maximum size of one head in bytes, as in Chrome."""

_END = re.compile(rb"\n\r?\n")
_STATUS = re.compile(rb"HTTP(?:/(\d+)(?:\.(\d+))?)?[ \t]+(\d{3})(?!\d)[ \t]*(.*)", re.IGNORECASE)
_LENGTH = re.compile(rb"\+?(\d+)")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROLS = bytes([*range(9), *range(10, 32), 127])
_COPIED_HEADERS = (b"content-range", b"retry-after", b"x-robots-tag")
"""Names of the headers whose values are copied to the rewritten response head."""
_REASON_BYTES = 100
"""Maximum length in bytes of the reason phrase in the rewritten head; a longer phrase is truncated."""


class BadResponse(aiohttp.ClientError):
    """Raised when a response is so malformed that browsers refuse it too. The message gives the reason."""


@dataclass(frozen=True)
class Head:
    """Head of one HTTP response: its status, its rewritten headers, and how its body is delimited.

    `chunked` is True if the body is sent in chunks (`Transfer-Encoding: chunked`).
    """

    status: int
    data: bytes
    """Head rewritten to comply with RFC 9112."""
    length: int | None
    """Size of the body in bytes; None if the body is chunked or ends when the connection closes."""
    chunked: bool


class HeadReader:
    """Reader that collects received bytes until they contain a complete response head (status line and headers)."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        """Received bytes that `take` has not yet returned as part of a head."""
        self._searched = 0

    def take(self) -> Head | None:
        """Remove the next response head from the buffer, parse it and return it.

        Return None if the buffer does not contain a complete head yet.

        Raises:
            BadResponse: the received bytes are not a valid HTTP head, or the head is larger than `MAX_HEAD_BYTES`.
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
    """Parse a response head and rewrite it to comply with RFC 9112.

    Args:
        data: head without its final blank line.

    Raises:
        BadResponse: the head has no status, or its Content-Length values contradict each other.
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
    head += [name + b": " + value for name in _COPIED_HEADERS for value in values.get(name, [])]
    head += [] if keep else [b"Connection: close"]
    bodiless = status < 200 or status in (204, 304)
    return Head(status, b"\r\n".join(head) + b"\r\n\r\n", 0 if bodiless else length, chunked and not bodiless)


def _fields(lines: list[bytes]) -> tuple[dict[bytes, list[bytes]], bool]:
    """Parse the header lines of a response.

    A line that starts with a space or tab continues the value of the previous line. Other lines without a colon are
    skipped.

    Returns:
        The values of each header, keyed by lowercase name, and a flag that is True if all lines comply with RFC 9112.
    """
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
    """Remove control characters from a header value, and strip spaces and tabs from both ends."""
    return value.translate(None, _CONTROLS).strip(b" \t")


def _listed(values: dict[bytes, list[bytes]], name: bytes) -> list[bytes]:
    """Split the values of a header at commas, and return the non-empty items of all values in one list.

    Return an empty list if the response does not have the header.

    Args:
        values: values of each header, keyed by lowercase name.
        name: lowercase name of the header.
    """
    parts = (part.strip(b" \t") for value in values.get(name, []) for part in value.split(b","))
    return [part for part in parts if part]


def _length(stated: list[bytes]) -> int | None:
    """Parse all Content-Length values of a response, and return the body length in bytes.

    Return None if there are no values, or if at least one value is not a number.

    Raises:
        BadResponse: all values are numbers, but they are not all equal.
    """
    # longer numbers are cut to 18 digits, which fit into the integers of aiohttp's parser and exceed any size limit
    numbers = {match and int(match[1].lstrip(b"0")[:18] or 0) for match in map(_LENGTH.fullmatch, stated)}
    if None in numbers:
        return None
    if len(numbers) > 1:
        both = b" and ".join(sorted(set(stated)))[:60].decode("latin-1")
        raise BadResponse(f"Content-Length is both {both}")
    return next(iter(numbers), None)


def _ascii_url(value: bytes) -> bytes:
    """Percent-encode the non-ASCII bytes of a URL."""
    return b"".join(b"%%%02X" % byte if byte > 126 else bytes([byte]) for byte in value)
