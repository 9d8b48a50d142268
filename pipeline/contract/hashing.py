"""SHA-256 of files, computed while they are written or read."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any, BinaryIO

_BLOCK_BYTES = 1 << 20
"""Number of bytes per read."""


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of a file in a shard, as stored in the shard's record."""

    bytes: int
    sha256: str


class HashingFile(io.RawIOBase):
    """Writable binary file that passes all bytes on to another file, and counts and hashes them."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._digest = hashlib.sha256()
        self._bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._target.write(view)
        self._digest.update(view)
        self._bytes += len(view)
        return len(view)

    def tell(self) -> int:
        return self._bytes

    def record(self) -> FileRecord:
        """Return the number of bytes written so far, and their SHA-256."""
        return FileRecord(self._bytes, self._digest.hexdigest())


def hash_bytes(data: bytes) -> str:
    """Return the SHA-256 of bytes as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def hash_file(file: BinaryIO) -> str:
    """Return the SHA-256 of an open file as hexadecimal digits, reading it in 1 MiB blocks."""
    digest = hashlib.sha256()
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


_LFS_HEADER = b"version https://git-lfs.github.com/spec/"
"""First bytes of a Git LFS pointer file."""


def is_lfs_pointer(file: BinaryIO) -> bool:
    """Return True if an open file is a Git LFS pointer instead of the real content. The file is rewound afterwards."""
    header = file.read(len(_LFS_HEADER))
    file.seek(0)
    return header == _LFS_HEADER
