"""Content-Encoding decoder: every encoding, wrong encodings, and bodies that expand without end."""

from __future__ import annotations

import contextlib
import gzip
import random
import sys
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest

from priorkit.pipeline.download.fetching.content_coding import (
    BodyTooLarge,
    CodingError,
    decode_beginning,
    decode_body,
    known_codings,
)

if sys.version_info >= (3, 14):
    from compression.zstd import CompressionParameter, compress
else:
    from backports.zstd import CompressionParameter, compress

LIMIT = 1_000_000
BODY = random.Random(0).randbytes(300_000) + bytes(300_000)


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "br": lambda data: bytes(brotli.compress(data, quality=5)),
    "zstd": compress,
}
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 20


@pytest.mark.parametrize("coding", PACKERS)
@pytest.mark.parametrize("body", [b"", b"x", BODY], ids=["empty", "one byte", "long"])
def test_encoded_bodies_are_decoded(coding: str, body: bytes) -> None:
    assert decode_body(PACKERS[coding](body), coding, LIMIT) == body


def test_nested_encodings_are_decoded() -> None:
    body = compress(gzip.compress(brotli.compress(BODY)))
    assert decode_body(body, "br, identity, gzip,zstd", LIMIT) == BODY
    with pytest.raises(CodingError, match="6 encodings"):
        decode_body(body, "gzip," * 6, LIMIT)


def test_an_encoding_stated_twice_but_applied_once_is_decoded_once() -> None:
    assert decode_body(gzip.compress(JPEG), "gzip, gzip", 100_000) == JPEG
    assert decode_body(gzip.compress(JPEG), "br, gzip", 100_000) == JPEG


@pytest.mark.parametrize("coding", [*PACKERS, "gzip, br", "zstd, deflate"])
@pytest.mark.parametrize("image", [JPEG, b"BM" + bytes(500), b"GIF89a" + JPEG, b"RIFF\0\0\0\0WEBP" + JPEG])
def test_an_image_without_its_stated_encoding_is_accepted(coding: str, image: bytes) -> None:
    assert decode_body(image, coding, LIMIT) == image


@pytest.mark.parametrize("header", ["", "none", "utf-8", "identity", "aws-chunked", "compress", ",, ,", "image/jpeg"])
def test_unknown_encodings_change_nothing(header: str) -> None:
    assert known_codings(header) == []
    assert decode_body(b"body", header, LIMIT) == b"body"


@pytest.mark.parametrize("coding", PACKERS)
@pytest.mark.parametrize("body", [b"<html>", b"\x1f\x8b", b"", bytes(range(255, 0, -1))])
def test_a_body_with_another_encoding_that_is_no_image_is_refused(coding: str, body: bytes) -> None:
    with pytest.raises(CodingError, match=r"Content-Encoding says|ends within"):
        decode_body(body, coding, LIMIT)


@pytest.mark.parametrize("coding", PACKERS)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_body_is_refused(coding: str, kept: float) -> None:
    packed = PACKERS[coding](BODY)
    with pytest.raises(CodingError, match="ends within"):
        decode_body(packed[: int(kept * len(packed))], coding, LIMIT)
    beginning = decode_beginning(packed[: int(kept * len(packed))], coding, 20_000)
    assert beginning == BODY[: len(beginning)]
    assert len(beginning) == 20_000


@pytest.mark.parametrize("coding", PACKERS)
def test_the_limit_is_exact_and_bombs_take_little_memory(coding: str) -> None:
    assert len(decode_body(PACKERS[coding](bytes(LIMIT)), coding, LIMIT)) == LIMIT
    with pytest.raises(BodyTooLarge, match="more than 1000000 bytes"):
        decode_body(PACKERS[coding](bytes(LIMIT + 1)), coding, LIMIT)
    bomb = PACKERS[coding](bytes(50 * LIMIT))
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            decode_body(bomb, coding, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 10 * LIMIT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("coding", "members"), [("gzip", 1000), ("zstd", 1000)])
def test_bodies_of_several_members_are_joined(coding: str, members: int) -> None:
    pack = PACKERS[coding]
    assert decode_body(pack(b"ab") * members, coding, LIMIT) == b"ab" * members
    assert decode_body(pack(BODY[:5000]) * 3 + bytes(10), coding, LIMIT) == BODY[:5000] * 3
    with pytest.raises(CodingError, match="more than 1,024 members"):
        decode_body(pack(b"") * 1025, coding, LIMIT)


def test_the_window_of_zstd_is_limited_as_its_standard_says() -> None:
    body = compress(
        bytes(1 << 25), options={CompressionParameter.window_log: 25, CompressionParameter.content_size_flag: 0}
    )
    with pytest.raises(CodingError, match="zstd"):
        decode_body(body, "zstd", 1 << 30)


@pytest.mark.parametrize("coding", PACKERS)
def test_garbage_raises_no_other_error(coding: str) -> None:
    chance = random.Random(1)
    packed = PACKERS[coding](BODY[:3000])
    for _ in range(300):
        body = bytearray(packed)
        for _ in range(chance.randint(1, 5)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        with contextlib.suppress(CodingError, BodyTooLarge):
            assert len(decode_body(bytes(body), coding, LIMIT)) <= LIMIT
        assert len(decode_beginning(bytes(body), coding, 1000)) <= 1000
