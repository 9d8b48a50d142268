"""Response heads as servers send them, and the strict form that the parser writes."""

from __future__ import annotations

import random

import pytest

from priorkit.pipeline.download.fetching.response_head import MAX_HEAD_BYTES, BadResponse, HeadReader, parse_head


def strict(*lines: str, start: str = "HTTP/1.1 200 OK") -> list[str]:
    """Lines of a head in strict form."""
    head = parse_head("\r\n".join([start, *lines, ""]).encode("latin-1").removesuffix(b"\n"))
    return head.data.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")


CLOSED = "Connection: close"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["content-LENGTH:5", "Server: x"], ["Content-Length: 5"]),
        (["Content-Length: 5", "Connection: Keep-Alive, Close"], ["Content-Length: 5", CLOSED]),
        (["Content-Length: 5", "Content-Length: 05"], ["Content-Length: 5", CLOSED]),
        (["Content-Length: 5, 5"], ["Content-Length: 5", CLOSED]),
        (["Content-Length: +5"], ["Content-Length: 5", CLOSED]),
        (["Content-Length : 5"], ["Content-Length: 5", CLOSED]),
        (["Content-Length:\t5 \t"], ["Content-Length: 5"]),
        (["Content-Length: "], []),
        (["Content-Length: -5"], [CLOSED]),
        (["Content-Length: 5 5"], [CLOSED]),
        (["Content-Length: 0x5"], [CLOSED]),
        (["Content-Length: " + "0" * 30 + "5"], ["Content-Length: 5"]),
        (["Content-Length: " + "9" * 5000], ["Content-Length: " + "9" * 18]),
        (["Content-Length: 5", "Transfer-Encoding: CHUNKED"], ["Transfer-Encoding: chunked", CLOSED]),
        (["Content-Length: 5, 6", "Transfer-Encoding: chunked"], ["Transfer-Encoding: chunked", CLOSED]),
        (["Transfer-Encoding: gzip, chunked", "Content-Encoding: br"],
         ["Transfer-Encoding: chunked", "Content-Encoding: br, gzip"]),
        (["X Powered By: x", "Content-Length: 5"], ["Content-Length: 5", CLOSED]),
        (["no header", " and its fold", "Content-Length: 5"], ["Content-Length: 5", CLOSED]),
        (["X-Robots-Tag: all,", "\tnoai"], ["X-Robots-Tag: all, \tnoai", CLOSED]),
        (["X-Robots-Tag : noai", "x-robots-tag: none"], ["x-robots-tag: noai", "x-robots-tag: none", CLOSED]),
        (["X-Robots-Tag: no\x00ai\x01"], ["x-robots-tag: noai"]),
        (["Location: /caf\xe9?a b", "Location: /other"], ["Location: /caf%E9?a b"]),
        (["Location: "], []),
        (["Retry-After: 5", "Content-Range: bytes 0-1/2"], ["content-range: bytes 0-1/2", "retry-after: 5"]),
    ],
)  # fmt: skip
def test_headers_are_rewritten_in_strict_form(lines: list[str], expected: list[str]) -> None:
    assert [line.lower() for line in strict(*lines)[1:]] == [line.lower() for line in expected]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("HTTP/1.1 404 Not Found", "HTTP/1.1 404 Not Found"),
        ("HTTP/1.1 200", "HTTP/1.1 200 "),
        ("HTTP/1.1   200\tOK ", "HTTP/1.1 200 OK"),
        ("http/1.1 200 ok", "HTTP/1.1 200 ok"),
        ("HTTP/2 200", "HTTP/1.1 200 "),
        ("HTTP/1.1 999 Request denied", "HTTP/1.1 999 Request denied"),
    ],
)
def test_unusual_status_lines_are_accepted(start: str, expected: str) -> None:
    assert strict(start=start) == [expected]


def test_http_1_0_closes_the_connection() -> None:
    for start in ("HTTP/1.0 200 OK", "HTTP/0.9 200 OK"):
        assert strict(start=start) == ["HTTP/1.1 200 OK", CLOSED]


@pytest.mark.parametrize(
    "head",
    [b"", b"HTTP/1.1", b"HTTP/1.1 abc OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 99 OK", b"HTTP/1.1 050 OK", b"<html>"],
)
def test_a_head_without_a_status_is_refused(head: bytes) -> None:
    with pytest.raises(BadResponse, match="no HTTP status"):
        parse_head(head)


def test_two_lengths_are_refused() -> None:
    with pytest.raises(BadResponse, match="Content-Length is both 4 and 5"):
        strict("Content-Length: 5", "Content-Length: 4")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_heads_arrive_in_pieces(size: int) -> None:
    sent = b"\r\n HTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\nA: b\n\r\nbody"
    reader, statuses = HeadReader(), []
    for start in range(0, len(sent), size):
        reader.buffer += sent[start : start + size]
        while len(statuses) < 2 and (head := reader.take()) is not None:
            statuses.append(head.status)
    assert statuses == [103, 200]
    assert reader.buffer == b"body"


def test_another_protocol_is_refused_at_its_first_bytes() -> None:
    reader = HeadReader()
    reader.buffer += b"SSH-"
    with pytest.raises(BadResponse, match="no HTTP response, it begins with b'SSH-'"):
        reader.take()


def test_the_size_of_a_head_is_limited() -> None:
    reader = HeadReader()
    reader.buffer += b"HTTP/1.1 200 OK\r\nX: " + b"x" * (MAX_HEAD_BYTES - 24) + b"\r\n\r\n"
    head = reader.take()
    assert head is not None
    assert head.status == 200
    reader.buffer += b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES
    with pytest.raises(BadResponse, match="a head of more than 262,144 bytes"):
        reader.take()


def test_garbage_never_passes_as_strict() -> None:
    chance = random.Random(0)
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nLocation: /x\r\nX-Robots-Tag: all\r\nContent-Encoding: gzip\r"
    for _ in range(3000):
        head = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            start = chance.randrange(len(head))
            head[start : start + chance.randint(0, 6)] = chance.choice([b"", b"\n", b"\r", b":", chance.randbytes(4)])
        try:
            data = parse_head(bytes(head)).data
        except BadResponse:
            continue
        assert data.endswith(b"\r\n\r\n")
        assert all(line.partition(b":")[1] for line in data[:-4].split(b"\r\n")[1:])
        assert not set(data[:-4].replace(b"\r\n", b"")) & {0, 10, 13}
