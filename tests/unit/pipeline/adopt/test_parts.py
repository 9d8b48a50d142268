"""Descriptions of files that cannot be read as embeddings or metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.adopt.parts import describe_table, describe_vectors
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError

from .conftest import save, save_table, units


@pytest.mark.parametrize("values", [np.zeros(5, np.float32), np.zeros((5, 2), np.int64), np.zeros((2, 2, 2))])
def test_arrays_that_are_not_rows_of_floats_are_refused(values: np.ndarray, tmp_path: Path) -> None:
    save(tmp_path / "x.npy", values)
    np.savez(tmp_path / "x.npz", a=values)
    for name, column in (("x.npy", ""), ("x.npz", "a")):
        with pytest.raises(InputError, match=r"embeddings are read as \[N, D\] of float16, float32 or float64"):
            describe_vectors(Store(str(tmp_path)), name, column)


def test_a_column_without_any_embedding_has_size_0(tmp_path: Path) -> None:
    save_table(tmp_path / "x.parquet", v=pa.array([None, None], pa.list_(pa.float32())))
    assert describe_vectors(Store(str(tmp_path)), "x.parquet", "v").dim == 0


def test_a_column_of_another_type_than_lists_is_named(tmp_path: Path) -> None:
    save_table(tmp_path / "null.parquet", v=pa.nulls(3))
    part = describe_vectors(Store(str(tmp_path)), "null.parquet", "v")
    assert (part.rows, part.dim) == (3, 0)
    save_table(tmp_path / "x.parquet", v=["a", "b"])
    with pytest.raises(InputError, match=r"x\.parquet: column 'v' holds string, not embeddings as in the other files"):
        describe_vectors(Store(str(tmp_path)), "x.parquet", "v")


def test_a_column_that_a_later_file_lacks_is_named(tmp_path: Path) -> None:
    save_table(tmp_path / "x.parquet", w=units().tolist())
    with pytest.raises(InputError, match=r"x\.parquet is damaged .*v"):
        describe_vectors(Store(str(tmp_path)), "x.parquet", "v")


def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="several columns 'a'"):
        describe_table(Store(str(tmp_path)), "x.parquet")
