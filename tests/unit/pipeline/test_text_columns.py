"""Columns of any Arrow type as text."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from priorkit.pipeline.text_columns import as_text, can_be_text, column_fault, group_names, is_text

VIEW = getattr(pa, "string_view", pa.large_string)()  # PyArrow before 16 has no views


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array(["a", None, ""]), ["a", None, ""]),
        (pa.array(["a", None], pa.large_string()), ["a", None]),
        (pa.array(["a", None], VIEW), ["a", None]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
        (pa.array(["a"], VIEW).cast(pa.string()).dictionary_encode(), ["a"]),
        (pa.array([b"caf\xc3\xa9", b"\xff\x00", None]), ["caf\u00e9", "ff00", None]),
        (pa.array([b"\xff\x00"], pa.binary(2)), ["ff00"]),
        (pa.array([5, None]), ["5", None]),
        (pa.array([1.5, float("nan"), None]), ["1.5", None, None]),
        (pa.array([True, None]), ["true", None]),
        (pa.array([1], pa.timestamp("ns")), ["1970-01-01 00:00:00.000000001"]),
        (pa.nulls(2), [None, None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_text_of_each_type(values: pa.Array, expected: list[Any]) -> None:
    found = as_text(values)
    assert found.type == pa.string()
    assert found.to_pylist() == expected
    assert can_be_text(values.type)


@pytest.mark.skipif(not hasattr(pa, "bool8"), reason="this PyArrow has no bool8")
def test_an_extension_is_read_by_its_storage() -> None:
    values = pa.array([1, 0, None], pa.int8()).cast(pa.bool8())
    assert as_text(values).to_pylist() == ["1", "0", None]


def test_text_that_is_no_utf8_is_damage() -> None:
    with pytest.raises(pa.ArrowInvalid, match="UTF8"):
        as_text(pa.array([b"\xff"]).view(pa.string()))


def test_what_is_missing_names_no_content() -> None:
    assert group_names(pa.array([1.0, float("nan"), None])) == ["1.0", None, None]
    assert group_names(pa.array(["x", None])) == ["x", None]
    assert group_names(pa.array([["x"], None])) == ["['x']", None]
    assert group_names(pa.array([b"\xff", b"x"])) == ["ff", "x"]


def test_a_column_that_cannot_be_read_is_named() -> None:
    schema = pa.schema([("a", pa.string()), ("b", pa.list_(pa.string())), ("c", pa.int64()), ("c", pa.int64())])
    assert column_fault(schema, "a", text=True) == ""
    assert column_fault(schema, "b", text=False) == ""
    assert column_fault(schema, "b", text=True) == ": column 'b' holds list<item: string>, not text"
    assert column_fault(schema, "c", text=False) == " has 2 columns 'c'; keep one of them"
    assert column_fault(schema, "d", text=False) == " has no column 'd'"


def test_kinds_of_text() -> None:
    kinds = [pa.string(), pa.large_string(), VIEW, pa.dictionary(pa.int8(), pa.string()), pa.binary(), pa.int8()]
    assert [is_text(kind) for kind in kinds] == [True, True, True, True, False, False]
