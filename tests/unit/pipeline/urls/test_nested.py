"""Nested fields, and rows with several captions."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from priorkit.pipeline.contract.arrow.types import plain_type
from priorkit.pipeline.urls.nested import field_names, field_type, find_column, is_list, repeat_rows

ROWS: list[dict[str, Any]] = [
    {"image": {"url": "u0", "size": {"w": 1}}, "notes": [{"raw": "a", "n": 1}, {"raw": "b", "n": 2}], "x.y": 5},
    {"image": None, "notes": None, "x.y": 6},
    {"image": {"url": None, "size": None}, "notes": [], "x.y": 7},
    {"image": {"url": "u3", "size": {"w": 4}}, "notes": [{"raw": None, "n": 3}], "x.y": 8},
]
BATCH = pa.RecordBatch.from_pylist(ROWS)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("image.url", ["u0", None, None, "u3"]),
        ("image.size.w", [1, None, None, 4]),
        ("notes.raw", [["a", "b"], None, [], [None]]),
        ("x.y", [5, 6, 7, 8]),
    ],
)
def test_a_dotted_name_finds_a_column_or_a_field(name: str, values: list[Any]) -> None:
    for batch, expected in ((BATCH, values), (BATCH.slice(1), values[1:]), (BATCH.slice(0, 2), values[:2])):
        column = find_column(batch, name)
        assert column is not None
        assert column.to_pylist() == expected
        assert column.type == field_type(batch.schema, name)


@pytest.mark.parametrize("name", ["image.uri", "image.url.x", "url", "notes.raw.x", "x", "x.z", ".", "image.", ""])
def test_a_name_that_fits_nothing_finds_nothing(name: str) -> None:
    assert find_column(BATCH, name) is None
    assert field_type(BATCH.schema, name) is None


def test_a_column_of_exactly_this_name_comes_first() -> None:
    batch = pa.RecordBatch.from_pylist([{"a": {"b": 1}, "a.b": 2, "c.d": {"e": 3}}])
    for name, value in (("a.b", 2), ("c.d.e", 3)):
        column = find_column(batch, name)
        assert column is not None
        assert column.to_pylist() == [value]


def test_names_of_fields_follow_the_names_of_columns() -> None:
    names = ["image", "notes", "x.y", "image.url", "image.size", "image.size.w", "notes.raw", "notes.n"]
    assert field_names(BATCH.schema) == names


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_view(pa.string()), pa.list_(pa.string_view())],
    ids=str,
)
def test_a_row_is_repeated_for_each_caption(kind: pa.DataType) -> None:
    lists = pa.array([["skipped"], ["a", "b"], None, [], ["c", None]], kind).slice(1)
    url, captions = repeat_rows([pa.array(["0", "1", "2", "3"]), lists], 1)
    assert url.to_pylist() == ["0", "0", "1", "2", "3", "3"]
    assert captions.to_pylist() == ["a", "b", None, None, "c", None]


def test_lists_of_one_size_are_lists() -> None:
    lists = pa.array([["a", "b"], None, ["c", "d"]], pa.list_(pa.string(), 2))
    assert is_list(plain_type(lists.type))
    captions, numbers = repeat_rows([lists, pa.array([1, 2, 3])], 0)
    assert captions.to_pylist() == ["a", "b", None, "c", "d"]
    assert numbers.to_pylist() == [1, 1, 2, 3, 3]
