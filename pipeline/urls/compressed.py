"""Readers for compressed files: gzip (`.gz`), bzip2 (`.bz2`), xz (`.xz`) and Zstandard (`.zst`)."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import zlib
from typing import BinaryIO, cast

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdError, ZstdFile
else:
    from backports.zstd import DecompressionParameter, ZstdError, ZstdFile

COMPRESSIONS = ("gz", "bz2", "xz", "zst")
"""File name endings of the supported compressions."""
COMPRESSION_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, ZstdError)
"""Exceptions that the readers raise if a file is damaged or not compressed."""
MAGIC_BYTES = 10
"""Number of bytes at the start of a file that `compression_of` needs."""

_ZSTD_WINDOW_LOG = 31
"""Base-2 logarithm of the largest accepted zstd window: 2 GiB, which `zstd --long=31` uses. Only files that were
compressed with such a window need that much memory."""
_MAGIC = {"gz": b"\x1f\x8b", "xz": b"\xfd7zXZ\x00", "zst": b"\x28\xb5\x2f\xfd"}
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")
"""Magic numbers of the first block of a bzip2 file: of a data block, and of the end of an empty file."""


def compression_of(start: bytes) -> str | None:
    """Return the compression of a file, such as `gz`, or None if the file is not compressed.

    Args:
        start: the first `MAGIC_BYTES` bytes of the file, or fewer if the file is shorter.
    """
    if start.startswith(b"BZh") and start[4:10] in _BZIP2_BLOCKS:
        return "bz2"
    return next((name for name, magic in _MAGIC.items() if start.startswith(magic)), None)


def open_compressed(file: BinaryIO, compression: str) -> BinaryIO:
    """Return a file object that reads the decompressed content of a file.

    Args:
        file: compressed file, positioned at its start.
        compression: one of `COMPRESSIONS`.
    """
    if compression == "gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if compression == "bz2":
        return cast(BinaryIO, bz2.BZ2File(file))
    if compression == "xz":
        return cast(BinaryIO, lzma.LZMAFile(file))
    options: dict[int, int] = {DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    return cast(BinaryIO, ZstdFile(file, options=options))
