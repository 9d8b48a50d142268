"""Bodies of responses -> what was encoded, by gzip, deflate, br and zstd, within a limit of bytes.

Servers state encodings that a body does not have, or state one twice. A body that begins as an image, as it is or after
some of its encodings, is taken as one, unless the next encoding gives an image too; the name of an encoding that nobody
knows, such as `none` or `utf-8`, is ignored, as browsers do.
"""

from __future__ import annotations

import functools
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import brotli

from ...images.kinds import is_image

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdDecompressor, ZstdError
else:
    from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

_BLOCK_BYTES = 1 << 16
_FIRST_WINDOW_BYTES = 1 << 10
"""Bytes that a decoder is given first; doubled from there, since each end of a member copies what is left."""
_MOST_MEMBERS = 1024
"""Members of gzip, or frames of zstd, in one body; real bodies have a few."""
_MOST_CODINGS = 5
"""Encodings one upon the other, as in curl."""
_ZSTD_WINDOW_LOG = 23
"""Window of 8 MiB, the most that RFC 9659 lets a server ask for."""
_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class CodingError(Exception):
    """A body that is not in the encoding it states; the message says why."""


class BodyTooLarge(Exception):
    """A body that decodes to more bytes than allowed."""


class _Decoder(Protocol):
    """A decoder of one member, which keeps input that it has not used yet."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Zlib:
    def __init__(self, wbits: int) -> None:
        self._decoder = zlib.decompressobj(wbits)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


class _Brotli:
    unused_data = b""

    def __init__(self) -> None:
        self._decoder = brotli.Decompressor()

    @property
    def eof(self) -> bool:
        return bool(self._decoder.is_finished())

    @property
    def needs_input(self) -> bool:
        return bool(self._decoder.can_accept_more_data())

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return bytes(self._decoder.process(data, output_buffer_limit=max_length))


def _zstd() -> _Decoder:
    decoder: _Decoder = ZstdDecompressor(options={DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})
    return decoder


def _decoder(coding: str, body: bytes) -> tuple[Callable[[], _Decoder], bytes]:
    """What makes a decoder, and the bytes with which a further member begins; none where there is one member only."""
    if coding in ("gzip", "x-gzip"):
        return functools.partial(_Zlib, 16 + zlib.MAX_WBITS), _GZIP_MAGIC
    if coding == "deflate":  # some servers leave out the header of zlib
        has_header = len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
        return functools.partial(_Zlib, zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS), b""
    return (_Brotli, b"") if coding == "br" else (_zstd, _ZSTD_MAGIC)


_KNOWN = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd"})


def known_codings(header: str) -> list[str]:
    """The encodings of a Content-Encoding header that change the body, in the order in which they were applied."""
    names = (name.strip().lower() for name in header.split(","))
    return [name for name in names if name in _KNOWN]


def decode_body(body: bytes, header: str, limit: int) -> bytes:
    """Decode a body by its Content-Encoding.

    Raises:
        CodingError: it is not in that encoding, and no image as it is.
        BodyTooLarge: it becomes more than `limit` bytes.
    """
    codings = known_codings(header)
    if len(codings) > _MOST_CODINGS:
        raise CodingError(f"{len(codings)} encodings one upon the other")
    image = body if is_image(body) else None
    for coding in reversed(codings):
        try:
            body = _decode(body, coding, limit)
        except (CodingError, BodyTooLarge):
            if image is not None:
                return image
            raise
        image = body if is_image(body) else image
    return body if image is None else image


def decode_beginning(body: bytes, header: str, limit: int) -> bytes:
    """Decode up to `limit` bytes of a body that may be cut; the body itself if it is not in that encoding."""
    for coding in reversed(known_codings(header)[:_MOST_CODINGS]):
        decoded = bytearray()
        try:
            for block in _blocks(body, coding):
                decoded += block
                if len(decoded) >= limit:
                    break
        except CodingError:
            decoded = decoded or bytearray(body)
        body = bytes(decoded)
    return body[:limit]


def _decode(body: bytes, coding: str, limit: int) -> bytes:
    blocks: list[bytes] = []
    size = 0
    for block in _blocks(body, coding):
        blocks.append(block)
        size += len(block)
        if size > limit:
            blocks.clear()  # the traceback would hold them
            raise BodyTooLarge(f"more than {limit} bytes")
    return b"".join(blocks)


def _blocks(body: bytes, coding: str) -> Iterator[bytes]:
    """Decode one encoding, in blocks of bounded size."""
    make, magic = _decoder(coding, body)
    start = 0
    for _ in range(_MOST_MEMBERS):
        decoder, window = make(), _FIRST_WINDOW_BYTES
        try:
            while not decoder.eof:
                hungry = decoder.needs_input
                data = body[start : start + window] if hungry else b""
                start, window = start + len(data), min(2 * window, _BLOCK_BYTES)
                block = decoder.decompress(data, _BLOCK_BYTES)
                if hungry and not (data or block or decoder.eof):
                    raise CodingError(f"the body ends within its {coding}")
                yield block
        except (zlib.error, brotli.error, ZstdError) as error:
            raise CodingError(f"the body is not in {coding}, which Content-Encoding says: {error}") from None
        start -= len(decoder.unused_data)
        if not magic or not body.startswith(magic, start):
            return  # browsers ignore what follows
    raise CodingError(f"more than {_MOST_MEMBERS:,} members of {coding}")
