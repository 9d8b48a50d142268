"""Tables of several shards as one: joined types, columns that become text, and norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.metadata import has_unit_norms, join_tables, read_norms, shard_without_column
from priorkit.pipeline.read.shards import EmbeddingShard


def test_types_that_can_be_joined_are_promoted() -> None:
    tables = [pa.table({"width": pa.array([1], pa.int32())}), pa.table({"width": pa.array([1 << 40], pa.int64())})]
    joined = join_tables(tables, "folder")
    assert joined.column("width").type == pa.int64()
    assert joined.column("width").to_pylist() == [1, 1 << 40]


def test_other_types_become_text_in_their_column_only() -> None:
    tables = [pa.table({"key": ["a"], "width": [7]}), pa.table({"key": ["b"], "width": ["wide"]})]
    joined = join_tables(tables, "folder")
    assert joined.to_pylist() == [{"key": "a", "width": "7"}, {"key": "b", "width": "wide"}]


def test_types_that_are_no_text_are_named() -> None:
    tables = [pa.table({"box": pa.array([[1, 2]])}), pa.table({"box": ["none"]})]
    with pytest.raises(InputError, match=r"folder: column 'box' holds list<.*>, string, which cannot be joined"):
        join_tables(tables, "folder")


def norm_shards(folder: Path, *columns: Any) -> list[EmbeddingShard]:
    """Write shards whose metadata has a column `image_norm`."""
    shards = []
    for number, values in enumerate(columns):
        pq.write_table(pa.table({"image_norm": values}), folder / f"{number}.parquet")
        shards.append(EmbeddingShard(Store(str(folder)), len(values), "a test", {"metadata": f"{number}.parquet"}))
    return shards


def test_norms_are_read_as_float32_whatever_their_type(tmp_path: Path) -> None:
    columns = [pa.array([5, 9], kind) for kind in (pa.float64(), pa.float32(), pa.int8())]
    columns += [pa.array([5.0, 9.0]).dictionary_encode(), pa.array([], pa.string())]
    parts = list(read_norms(norm_shards(tmp_path, *columns), "image_norm"))
    assert [part.tolist() for part in parts] == [[5, 9]] * 4
    assert {part.dtype for part in parts} == {np.dtype(np.float32)}


@pytest.mark.parametrize("value", [0.0, -3.0, float("nan"), float("inf"), 1e300, None])
def test_a_norm_that_is_not_positive_and_finite_is_refused(tmp_path: Path, value: float | None) -> None:
    shards = norm_shards(tmp_path, pa.array([1.0, 2.0]), pa.array([3.0, value], pa.float64()))
    with pytest.raises(InputError, match=r"1\.parquet, row 1: image_norm is \S+, not a positive finite number; embed"):
        list(read_norms(shards, "image_norm"))


def test_norms_of_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0\.parquet: column 'image_norm' holds string, not numbers"):
        list(read_norms(norm_shards(tmp_path, pa.array(["1"])), "image_norm"))


def test_the_first_shard_without_a_column_is_named(tmp_path: Path) -> None:
    shards = norm_shards(tmp_path, pa.array([1.0]), pa.array([1.0]))
    empty, bare = (EmbeddingShard(Store(str(tmp_path)), rows, "a test", {}) for rows in (0, 1))
    assert shard_without_column([*shards, empty], "image_norm") is None
    assert shard_without_column([shards[0], bare, shards[1]], "image_norm") is bare
    assert shard_without_column([*shards], "text_norm") is shards[0]


def test_unit_norms_are_told_from_others(tmp_path: Path) -> None:
    for values, expected in (([1, 0.999, 1.004], True), ([1, 1, 9], False), ([1, 0, 1], False)):
        assert has_unit_norms(norm_shards(tmp_path, pa.array(values, pa.float32())), "image_norm") is expected
