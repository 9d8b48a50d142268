"""Tolerant connections: the end of a body, and when the connection is closed."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import pytest

from priorkit.pipeline.download.fetching.fetch import Fetcher
from priorkit.pipeline.download.fetching.response_head import BadResponse
from priorkit.pipeline.download.fetching.tolerant import ChunkReader, LengthReader
from priorkit.pipeline.download.settings import DownloadSettings

CHUNKS = b"4;a=b\r\nbody\r\n2\r\n!?\r\n0\r\nTrailer: x\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
def test_chunks_arrive_in_pieces(size: int, line_end: bytes) -> None:
    sent, reader, strict = CHUNKS.replace(b"\r\n", line_end), ChunkReader(), b""
    for start in range(0, len(sent), size):
        assert not reader.done
        strict += reader.feed(sent[start : start + size])
    assert strict == b"4\r\nbody\r\n2\r\n!?\r\n0\r\n\r\n"
    assert reader.done
    assert not reader.excess


def test_bytes_after_the_last_chunk_are_dropped() -> None:
    reader = ChunkReader()
    assert reader.feed(CHUNKS + b"HTTP/1.1").endswith(b"0\r\n\r\n")
    assert reader.excess
    assert reader.feed(b"more") == b""


@pytest.mark.parametrize(
    "sent",
    [b"xyz\r\n", b"-4\r\n", b"0x4\r\n", b"\r\n", b"1" * 16 + b"\r\n", b"2\r\nbody\r\n", b"4" * 20_000,
     b"0\r\n" + b"A: b\r\n" * 100_000],
)  # fmt: skip
def test_bad_chunks_are_refused(sent: bytes) -> None:
    with pytest.raises(BadResponse):
        ChunkReader().feed(sent)


def test_a_body_ends_at_its_length() -> None:
    reader = LengthReader(5)
    assert reader.feed(b"bod") == b"bod"
    assert not reader.done
    assert reader.feed(b"y!HTTP") == b"y!"
    assert reader.done
    assert reader.excess


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", 1),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", 1),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody and more", 3),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nbody", 3),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX Y: z\r\n\r\nbody", 3),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", 3),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody", 3),
    ],
)
def test_a_tolerated_response_is_the_last_on_its_connection(answer: bytes, connections: int) -> None:
    made = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal made
        made += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
        settings = DownloadSettings(allow_private_addresses=True)
        async with server, Fetcher(settings, ssl.create_default_context()) as fetcher:
            for _ in range(3):
                assert await fetcher.fetch(url) == b"body"

    asyncio.run(run())
    assert made == connections
