"""Columns of other tools' tables in plain types."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from priorkit.pipeline.columns import carried, is_bytes, is_text, plain_type, require_distinct, texts
from priorkit.pipeline.errors import InputError

JSON = pa.json_(pa.string())
BOOL8 = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None], pa.int8()))


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (pa.string(), pa.string()),
        (pa.string_view(), pa.large_string()),
        (pa.dictionary(pa.int32(), pa.string_view()), pa.large_string()),
        (pa.list_(pa.binary_view()), pa.list_(pa.large_binary())),
        (pa.struct([("a", pa.list_(pa.string_view()))]), pa.struct([("a", pa.list_(pa.large_string()))])),
        (pa.bool8(), pa.int8()),
        (JSON, pa.string()),
    ],
    ids=str,
)
def test_types_become_plain_at_any_depth(kind: pa.DataType, plain: pa.DataType) -> None:
    assert plain_type(kind) == plain


def test_text_and_bytes_are_known_however_they_are_stored() -> None:
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()), JSON):
        assert is_text(kind)
        assert not is_bytes(kind)
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())):
        assert is_bytes(kind)
        assert not is_text(kind)
    assert not is_text(pa.int64())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array(["a", None]), ["a", None]),
        (pa.array(["a", None]).dictionary_encode(), ["a", None]),
        (pa.array(["a", None], pa.string_view()), ["a", None]),
        (pa.array([b"a", b"\xff"]), ["a", "\\xff"]),
        (pa.array([b"a", b"\xff"]).view(pa.string()), ["a", "\\xff"]),
        (pa.array([1, None]), ["1", None]),
        (pa.array([True, None]), ["True", None]),
        (BOOL8, ["True", None]),
        (pa.nulls(2), [None, None]),
    ],
)
def test_names_are_text_whatever_their_type(values: pa.Array, expected: list[Any]) -> None:
    assert texts(pa.chunked_array([values]), "column 'key'") == expected


@pytest.mark.parametrize("values", [pa.array([["a"]]), pa.array([{"a": 1}]), pa.array([2**62], pa.timestamp("s"))])
def test_what_is_no_name_is_refused(values: pa.Array) -> None:
    with pytest.raises(InputError, match=r"column 'key' holds .*; store it as text"):
        texts(pa.chunked_array([values]), "column 'key'")


def test_rows_of_any_table_can_be_chosen_once_it_is_carried() -> None:
    table = pa.table(
        {
            "view": pa.array(["a", "b"], pa.string_view()),
            "nested": pa.array([["a"], []], pa.list_(pa.string_view())),
            "bad": pa.array([b"\xff", b"x"]).view(pa.string()),
            "plain": [1, 2],
        }
    )
    found = carried(table, "t").take(pa.array([1, 0])).to_pydict()
    assert found == {
        "view": ["b", "a"],
        "nested": [[], ["a"]],
        "bad": ["x", "\N{REPLACEMENT CHARACTER}"],
        "plain": [2, 1],
    }
    assert carried(table.select(["plain"]), "t") is not None


def test_a_column_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"t\.parquet has several columns 'a'; rename or drop all but one"):
        require_distinct(pa.schema([("a", pa.int8()), ("b", pa.int8()), ("a", pa.string())]), "t.parquet")
