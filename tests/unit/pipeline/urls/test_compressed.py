"""Compressed lists: every kind is read, and recognised by its first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
from collections.abc import Callable

import pytest

from priorkit.pipeline.urls.compressed import (
    COMPRESSION_ERRORS,
    COMPRESSIONS,
    MAGIC_BYTES,
    compression_of,
    open_compressed,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd.compress
}  # fmt: skip
TEXT = b"url,caption\n" + b"".join(b"http://h/%d.jpg,caption %d\n" % (number, number) for number in range(5000))


@pytest.mark.parametrize("kind", COMPRESSIONS)
@pytest.mark.parametrize("text", [b"", b"a", TEXT])
def test_every_compression_is_read_and_recognised(kind: str, text: bytes) -> None:
    data = COMPRESS[kind](text)
    assert open_compressed(io.BytesIO(data), kind).read() == text
    assert compression_of(data[:MAGIC_BYTES]) == kind
    # parts that were compressed one after another, as parallel programs write them
    assert open_compressed(io.BytesIO(data + data), kind).read() == text + text


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_a_cut_or_plain_file_is_an_error(kind: str) -> None:
    data = COMPRESS[kind](TEXT)
    for damaged in (data[: len(data) // 2], b"url,caption\n"):
        with pytest.raises(COMPRESSION_ERRORS):
            open_compressed(io.BytesIO(damaged), kind).read()


def test_a_large_zstd_window_is_accepted() -> None:
    """`zstd --long=31` writes such files; readers refuse windows of more than 128 MB by default."""
    options = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.enable_long_distance_matching: 1}
    compressor = zstd.ZstdCompressor(options=options)
    data = compressor.compress(TEXT) + compressor.flush()
    assert open_compressed(io.BytesIO(data), "zst").read() == TEXT


@pytest.mark.parametrize("start", [b"", b"url,caption", b"BZh9,BZh1", b"\x1f", b"PAR1"])
def test_other_files_are_not_compressed(start: bytes) -> None:
    assert compression_of(start) is None
