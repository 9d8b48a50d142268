"""Content-Encoding decoder for gzip, deflate, br and zstd, with a limit on the number of decoded bytes.

Some servers declare an encoding that they did not apply, or declare the same encoding twice. Therefore the decoder
undoes one encoding at a time. It checks before and after each step whether the body is an image, and returns the last
image found. Unknown encodings, such as `none` or `utf-8`, are ignored, as in browsers.
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
"""Maximum number of bytes that a decoder consumes or returns in one step."""
_FIRST_WINDOW_BYTES = 1 << 10
"""Size in bytes of the first input block of each compressed stream, such as a gzip member or zstd frame.

Each later block is twice as large as the one before, up to `_BLOCK_BYTES`. If a stream ends inside a block, the decoder
copies the rest of the block to `unused_data`. Small first blocks keep these copies cheap for bodies with many short
streams.
"""
_MOST_MEMBERS = 1024
"""Maximum number of gzip members or zstd frames in one body. Real bodies have only a few."""
_MOST_CODINGS = 5
"""Maximum number of encodings applied to a body one after another, the same limit as in curl."""
_ZSTD_WINDOW_LOG = 23
"""Base-2 logarithm of the maximum zstd window size: 8 MiB, the limit in RFC 9659."""
_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class CodingError(Exception):
    """Raised when a body cannot be decoded as its Content-Encoding header declares. The message gives the reason."""


class BodyTooLarge(Exception):
    """Raised when a body decodes to more bytes than allowed."""


class _Decoder(Protocol):
    """Interface of a decoder for one compressed stream, such as a gzip member.

    `decompress` returns at most `max_length` decoded bytes, and keeps unprocessed input for the next call.
    `needs_input` is True if the next call needs new input. `eof` is True once the end of the stream has been reached.
    `unused_data` contains the input bytes after the end of the stream.
    """

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Zlib:
    """Decoder for one gzip member, zlib stream or raw deflate stream.

    Args:
        wbits: window size and stream format, as in `zlib.decompressobj`.
    """

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
    """Decoder for one brotli stream."""

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
    """Return a decoder for one zstd frame."""
    decoder: _Decoder = ZstdDecompressor(options={DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})
    return decoder


def _decoder(coding: str, body: bytes) -> tuple[Callable[[], _Decoder], bytes]:
    """Return a function that creates decoders for an encoding, and the magic number of the encoding.

    A gzip or zstd body may consist of several compressed streams (gzip members or zstd frames). Each stream starts with
    the magic number and needs a new decoder. In the other encodings, a body is a single stream, and the returned magic
    number is empty.

    Args:
        coding: name of one of the encodings in `_KNOWN`.
        body: encoded body. For `deflate`, its first bytes show whether it has a zlib header.
    """
    if coding in ("gzip", "x-gzip"):
        return functools.partial(_Zlib, 16 + zlib.MAX_WBITS), _GZIP_MAGIC
    if coding == "deflate":  # some servers omit the zlib header
        has_header = len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
        return functools.partial(_Zlib, zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS), b""
    return (_Brotli, b"") if coding == "br" else (_zstd, _ZSTD_MAGIC)


_KNOWN = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd"})
"""Names of the encodings that this module decodes."""


def known_codings(header: str) -> list[str]:
    """Return the supported encodings in a Content-Encoding header, in the order in which the server applied them.

    The names are in lowercase. Names of other encodings are ignored.
    """
    names = (name.strip().lower() for name in header.split(","))
    return [name for name in names if name in _KNOWN]


def decode_body(body: bytes, header: str, limit: int) -> bytes:
    """Decode a body according to its Content-Encoding header, and return the decoded bytes.

    Some servers declare encodings that they did not apply. The body is therefore checked for an image before and after
    each decoding step. If several of these checks find an image, the most decoded one is returned. It is also returned
    if a later decoding step fails.

    Args:
        body: body as received.
        header: value of the Content-Encoding header.
        limit: maximum number of decoded bytes.

    Raises:
        CodingError: the header lists too many encodings, or the body cannot be decoded as the header declares and no
            image was found.
        BodyTooLarge: the decoded body exceeds `limit` bytes, and no image was found.
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
    """Decode the beginning of a response body, and return at most `limit` bytes.

    The body may be incomplete. The encodings are undone one after another. If an error occurs while an encoding is
    being undone, decoding continues with the bytes obtained so far. If there are none, the encoding is ignored, because
    the server may not have applied it.

    Args:
        body: first bytes of a response body, as received.
        header: value of the Content-Encoding header.
        limit: maximum number of bytes to return.
    """
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
    """Decode a body that has one encoding, such as gzip, and return the decoded bytes.

    Raises:
        CodingError: the body is not valid in this encoding, is truncated, or has too many gzip members or zstd frames.
        BodyTooLarge: the decoded body exceeds `limit` bytes.
    """
    blocks: list[bytes] = []
    size = 0
    for block in _blocks(body, coding):
        blocks.append(block)
        size += len(block)
        if size > limit:
            blocks.clear()  # the exception's traceback would keep the blocks alive
            raise BodyTooLarge(f"more than {limit} bytes")
    return b"".join(blocks)


def _blocks(body: bytes, coding: str) -> Iterator[bytes]:
    """Decode a body that has one encoding, such as gzip, and yield blocks of at most `_BLOCK_BYTES` decoded bytes.

    Raises:
        CodingError: the body is not valid in this encoding, is truncated, or has too many gzip members or zstd frames.
    """
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
            return  # ignore the remaining bytes, as browsers do
    raise CodingError(f"more than {_MOST_MEMBERS:,} members of {coding}")
