"""Tables of several shards as one: joined types, and columns that become text."""

from __future__ import annotations

import pyarrow as pa
import pytest

from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.metadata import join_tables


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
