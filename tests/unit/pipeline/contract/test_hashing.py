"""SHA-256 of files that are written or read."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest

from priorkit.pipeline.contract import hashing
from priorkit.pipeline.contract.hashing import FileRecord, HashingFile, hash_file, is_lfs_pointer

DATA = bytes(range(256)) * 5


def test_all_written_bytes_are_counted_and_hashed() -> None:
    target = io.BytesIO()
    file = HashingFile(target)
    assert file.write(DATA[:100]) == 100
    assert file.write(np.frombuffer(DATA[100:], np.uint16)) == len(DATA) - 100
    assert file.tell() == len(DATA)
    assert target.getvalue() == DATA
    assert file.record() == FileRecord(len(DATA), hashlib.sha256(DATA).hexdigest())


@pytest.mark.parametrize("block", [1, 7, 1280, 5000])
def test_the_hash_does_not_depend_on_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(hashing, "_BLOCK_BYTES", block)
    assert hash_file(io.BytesIO(DATA)) == hashlib.sha256(DATA).hexdigest()


def test_a_pointer_of_git_lfs_is_recognised_and_the_file_rewound() -> None:
    pointer = io.BytesIO(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert is_lfs_pointer(pointer)
    assert pointer.tell() == 0
    assert not is_lfs_pointer(io.BytesIO(b"version https://git-lfs"))
