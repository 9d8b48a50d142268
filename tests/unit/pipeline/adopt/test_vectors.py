"""Streams of embeddings: any range of rows, from any kind of file, in blocks of one size."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.adopt.parts import describe_vectors
from priorkit.pipeline.adopt.vectors import block_rows, read_vectors
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError

from .conftest import fixed, save, units

N, D = 50, 6
VALUES = units(N, D)


def as_npy(folder: Path) -> tuple[str, str]:
    save(folder / "x.npy", VALUES)
    return "x.npy", ""


def as_half(folder: Path) -> tuple[str, str]:
    save(folder / "x.npy", VALUES.astype(np.float16))
    return "x.npy", ""


def as_npz(folder: Path) -> tuple[str, str]:
    np.savez(folder / "x.npz", a=VALUES, b=VALUES[:, :2])
    return "x.npz", "a"


def as_compressed(folder: Path) -> tuple[str, str]:
    np.savez_compressed(folder / "x.npz", a=VALUES.astype(np.float64))
    return "x.npz", "a"


def as_lists(folder: Path) -> tuple[str, str]:
    pq.write_table(pa.table({"v": VALUES.tolist()}), folder / "x.parquet", row_group_size=7)
    return "x.parquet", "v"


def as_fixed_lists(folder: Path) -> tuple[str, str]:
    pq.write_table(pa.table({"v": fixed(VALUES)}), folder / "x.parquet", row_group_size=13)
    return "x.parquet", "v"


def as_large_lists(folder: Path) -> tuple[str, str]:
    column = pa.array(VALUES.tolist(), pa.large_list(pa.float32()))
    pq.write_table(pa.table({"v": column}), folder / "x.parquet")
    return "x.parquet", "v"


KINDS = [as_npy, as_half, as_npz, as_compressed, as_lists, as_fixed_lists, as_large_lists]


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
@pytest.mark.parametrize(("first", "count"), [(0, N), (11, 30), (N - 1, 1), (3, 8)])
def test_any_range_is_read_in_blocks(write: object, first: int, count: int, tmp_path: Path) -> None:
    name, column = write(tmp_path)  # type: ignore[operator]
    part = describe_vectors(Store(str(tmp_path)), name, column)
    assert (part.rows, part.dim) == (N, D)
    blocks = list(read_vectors(part, first, count, 8))
    assert [len(block) for block in blocks[:-1]] == [8] * (len(blocks) - 1)
    assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
    np.testing.assert_allclose(np.concatenate(blocks), VALUES[first : first + count], atol=1e-3)


def test_rows_that_are_no_embedding_are_nan(tmp_path: Path) -> None:
    rows = VALUES.tolist()
    rows[3], rows[5], rows[9] = None, rows[5][:2], [None, *rows[9][1:]]
    pq.write_table(pa.table({"v": rows}), tmp_path / "x.parquet")
    part = describe_vectors(Store(str(tmp_path)), "x.parquet", "v")
    [block] = read_vectors(part, 0, N, 64)
    assert np.flatnonzero(np.isnan(block).any(axis=1)).tolist() == [3, 5, 9]
    assert np.array_equal(block[[0, 4, 49]], VALUES[[0, 4, 49]])
    column = pa.FixedSizeListArray.from_arrays(pa.array(VALUES.ravel()), D, mask=pa.array([at == 3 for at in range(N)]))
    pq.write_table(pa.table({"v": column}), tmp_path / "y.parquet")
    [block] = read_vectors(describe_vectors(Store(str(tmp_path)), "y.parquet", "v"), 0, N, 64)
    assert np.flatnonzero(np.isnan(block).all(axis=1)).tolist() == [3]
    assert np.array_equal(block[4:], VALUES[4:])


def test_a_column_of_the_type_null_is_nan(tmp_path: Path) -> None:
    pq.write_table(pa.table({"v": pa.nulls(3)}), tmp_path / "x.parquet")
    part = replace(describe_vectors(Store(str(tmp_path)), "x.parquet", "v"), dim=D)
    [block] = read_vectors(part, 0, 3, 64)
    assert block.shape == (3, D)
    assert np.isnan(block).all()


def test_dtypes_are_named(tmp_path: Path) -> None:
    named = {}
    for write in (as_npy, as_half, as_compressed, as_lists, as_large_lists):
        named[write.__name__] = describe_vectors(Store(str(tmp_path)), *write(tmp_path)).dtype
    assert list(named.values()) == ["float32", "float16", "float64", "float64", "float32"]


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    part = describe_vectors(Store(str(tmp_path)), *as_npy(tmp_path))
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content[:-40])
    with pytest.raises(InputError, match=r"x\.npy cannot be read"):
        list(read_vectors(part, 0, N, 8))
    with pytest.raises(InputError, match=r"x\.npy has \d+ bytes instead of"):
        describe_vectors(Store(str(tmp_path)), "x.npy", "")


def test_an_archive_without_the_array_or_with_damage_is_named(tmp_path: Path) -> None:
    as_npz(tmp_path)
    with pytest.raises(InputError, match=r"x\.npz has no array 'c'"):
        describe_vectors(Store(str(tmp_path)), "x.npz", "c")
    (tmp_path / "x.npz").write_bytes(b"PK no archive")
    with pytest.raises(InputError, match=r"x\.npz is damaged"):
        describe_vectors(Store(str(tmp_path)), "x.npz", "a")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", b"no array")
    with pytest.raises(InputError, match=r"x\.npz/a is not an array of numbers"):
        describe_vectors(Store(str(tmp_path)), "x.npz", "a")


def test_stopping_early_does_not_hang(tmp_path: Path) -> None:
    """embedding-reader's reader would wait for ever for pieces that nobody takes."""
    save(tmp_path / "x.npy", units(5000, D))
    stream = read_vectors(describe_vectors(Store(str(tmp_path)), "x.npy", ""), 0, 5000, 8)
    next(stream)
    stream.close()  # type: ignore[attr-defined]


def test_blocks_are_bounded_in_bytes() -> None:
    assert block_rows(64) == 16384
    assert block_rows(768, 64) == 1024
    assert (block_rows(1), block_rows(1 << 20)) == (65536, 64)
