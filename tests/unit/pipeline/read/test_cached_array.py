"""Cached arrays: made once, read again, and made again if the cached file does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.read.cached_array import cached_array

PARTS = [np.array([[1, 2], [3, 4]]), np.empty((0, 2), np.int64), np.array([[5, 6]])]
WHOLE = np.concatenate(PARTS)


class Maker:
    """Callable that returns the parts and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Iterator[np.ndarray]:
        self.calls += 1
        return iter(PARTS)


def read(store: Store, make: Maker, rows: int | None = 3) -> np.ndarray:
    return cached_array(store, "array", rows, np.dtype(np.int64), (2,), make)


@pytest.mark.parametrize("rows", [3, None])
@pytest.mark.parametrize("remote", [False, True])
def test_an_array_is_made_once(tmp_path: Path, rows: int | None, remote: bool) -> None:
    store, make = Store(f"memory://cached{rows}" if remote else str(tmp_path)), Maker()
    for _ in range(3):
        array = read(store, make, rows)
        assert array.dtype == np.int64
        assert np.array_equal(array, WHOLE)
    assert make.calls == 1
    assert store.names("selections") == ["selections/array.npy"]


@pytest.mark.parametrize(
    "other", [WHOLE[:2], WHOLE.astype(np.int32), WHOLE[:, :1], None], ids=["rows", "type", "shape", "damage"]
)
def test_a_file_that_does_not_fit_is_made_again(tmp_path: Path, other: np.ndarray | None) -> None:
    make, path = Maker(), tmp_path / "selections/array.npy"
    path.parent.mkdir()
    if other is None:
        path.write_bytes(b"\x93NUMPY damaged")
    else:
        np.save(path, other)
    assert np.array_equal(read(Store(str(tmp_path)), make), WHOLE)
    assert make.calls == 1
    assert np.array_equal(np.load(path), WHOLE)


def test_a_folder_that_cannot_be_written_caches_nothing(tmp_path: Path) -> None:
    (tmp_path / "selections").write_bytes(b"a file instead of the folder")
    store, make = Store(str(tmp_path)), Maker()
    assert np.array_equal(read(store, make), WHOLE)
    assert np.array_equal(read(store, make), WHOLE)
    assert make.calls == 2


def test_an_empty_array_is_cached(tmp_path: Path) -> None:
    store, calls = Store(str(tmp_path)), []

    def make() -> Iterator[np.ndarray]:
        calls.append(1)
        return iter(())

    for _ in range(2):
        assert cached_array(store, "array", None, np.dtype(np.int64), (4,), make).shape == (0, 4)
    assert len(calls) == 1
