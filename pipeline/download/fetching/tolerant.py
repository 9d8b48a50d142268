"""HTTP connections that tolerate malformed responses, as browsers and curl do. aiohttp's own parser rejects them."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from aiohttp.client_proto import ResponseHandler

from .response_head import MAX_HEAD_BYTES, BadResponse, Head, HeadReader

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
"""Pattern for the line that starts a chunk: size in hexadecimal, optionally followed by extensions."""
_CHUNK_LINE_BYTES = 16_384
"""Maximum length in bytes of the line that starts a chunk, including extensions, as in Chrome."""


class LengthReader:
    """Reader for a response body whose length is known, for example from its Content-Length header.

    It returns the bytes of the body and drops all bytes that follow.

    Args:
        length: length of the body in bytes.
    """

    def __init__(self, length: int) -> None:
        self._left = length
        self.excess = False
        """True if bytes arrived after the end of the body."""

    @property
    def done(self) -> bool:
        """True once the whole body has arrived."""
        return not self._left

    def feed(self, data: bytes) -> bytes:
        """Return the part of the received bytes that belongs to the body."""
        self.excess |= len(data) > self._left
        data = data[: self._left]
        self._left -= len(data)
        return data


class ChunkReader:
    """Reader for a response body that is sent in chunks (`Transfer-Encoding: chunked`).

    `feed` rewrites the chunks in the strict form that aiohttp's parser accepts: with CRLF line endings, and without
    chunk extensions and trailers. `done` is True once the whole body has arrived. `excess` is True if bytes arrived
    after the end of the body.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._state = "size"
        self._left = 0
        self._trailer_bytes = 0
        self.done = self.excess = False

    def feed(self, data: bytes) -> bytes:
        """Rewrite received bytes of the body in strict form, and return them.

        An incomplete line at the end of the bytes is kept, and is processed once a later call completes it.

        Raises:
            BadResponse: the bytes are not valid chunks.
        """
        self._buffer += data
        strict: list[bytes] = []
        while not self.done and self._buffer:
            if self._state == "data":
                block = bytes(self._buffer[: self._left])
                del self._buffer[: self._left]
                strict.append(block)
                self._left -= len(block)
                if not self._left:
                    strict.append(b"\r\n")
                    self._state = "end"
                continue
            end = self._buffer.find(b"\n")
            if (end if end >= 0 else len(self._buffer)) > _CHUNK_LINE_BYTES:
                raise BadResponse(f"a line of more than {_CHUNK_LINE_BYTES:,} bytes between chunks")
            if end < 0:
                break
            line = bytes(self._buffer[:end]).strip(b"\r \t")
            del self._buffer[: end + 1]
            strict.append(self._line(line))
        self.excess = self.done and bool(self._buffer)
        return b"".join(strict)

    def _line(self, line: bytes) -> bytes:
        """Process a line that is not chunk data, and return it in strict form.

        The line is a chunk size, the empty line after the data of a chunk, a trailer, or the empty line that ends the
        body. Return empty bytes if there is nothing to pass on.

        Args:
            line: line without its line break.

        Raises:
            BadResponse: the line is invalid, or the trailers are too large.
        """
        if self._state == "end":
            if line:
                raise BadResponse("a chunk is longer than it says")
            self._state = "size"
            return b""
        if self._state == "trailer":
            self._trailer_bytes += len(line)
            if self._trailer_bytes > MAX_HEAD_BYTES:
                raise BadResponse(f"trailers of more than {MAX_HEAD_BYTES:,} bytes")
            self.done = not line
            return b"\r\n" if self.done else b""
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            raise BadResponse(f"{line[:20]!r} is no size of a chunk")
        self._left = int(size[1], 16)
        self._state = "data" if self._left else "trailer"
        return b"%x\r\n" % self._left


class TolerantHandler(ResponseHandler):
    """Connection protocol that extends aiohttp's `ResponseHandler` to accept malformed responses.

    It rewrites response heads and chunks before aiohttp's parser receives them, so that the parser accepts them. Excess
    bytes after a body are dropped.

    Args:
        loop: event loop of the connection.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._heads: HeadReader | None = None
        """Reader for the next head; None while a body is read."""
        self._body: LengthReader | ChunkReader | None = None
        """Reader for the current body; None if no body has started, or if the body ends when the connection closes."""

    def set_response_params(self, **options: Any) -> None:
        """Prepare for the next response: create a new head reader, and discard the body reader.

        Args:
            options: options of aiohttp's method, which are passed on unchanged.
        """
        self._heads, self._body = HeadReader(), None
        super().set_response_params(**options)

    def data_received(self, data: bytes) -> None:
        """Process received bytes: pass each complete response head, and then the body bytes, to aiohttp's parser."""
        try:
            if self._heads is None or self._parser is None:
                self._body_received(data)
                return
            self._heads.buffer += data
            while self._heads is not None and (head := self._heads.take()) is not None:
                if head.status >= 200 or head.status == 101:  # after an informational response, another head follows
                    rest, self._heads = bytes(self._heads.buffer), None
                    self._body = _body_reader(head)
                    super().data_received(head.data)
                    if rest:
                        self._body_received(rest)
                else:
                    super().data_received(head.data)
        except BadResponse as error:
            self._fail(error)

    def _body_received(self, data: bytes) -> None:
        """Pass body bytes to aiohttp's parser. If more bytes follow the body, drop them and close the connection."""
        reader = self._body
        if reader is None or not data:
            super().data_received(data)
            return
        was_done = reader.done
        body = reader.feed(data)
        if reader.excess:  # if the connection were reused, the next response would start at the wrong byte
            self.force_close()
        if was_done and self.transport is not None:
            self.transport.close()
        elif body:
            super().data_received(body)

    def _fail(self, error: BadResponse) -> None:
        """Close the connection, and make the current response raise `error`."""
        if self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(error)
        # aiohttp's later errors for this connection are less precise, so they must not replace `error`
        self._heads = self._payload = self._parser = None
        if self.transport is not None:
            self.transport.close()
        self.set_exception(error)


def _body_reader(head: Head) -> LengthReader | ChunkReader | None:
    """Return the reader for a response body, or None if the body ends when the connection closes."""
    if head.chunked:
        return ChunkReader()
    return None if head.length is None else LengthReader(head.length)
