"""Arrow types of columns: stored types, plain types, and problems of a schema."""

from __future__ import annotations

import pyarrow as pa
import pytest

from priorkit.pipeline.contract.arrow.types import (
    can_be_text,
    column_fault,
    holds_boxes,
    is_bytes,
    is_text,
    plain_type,
    require_distinct,
    unified,
)
from priorkit.pipeline.errors import InputError

JSON = pa.json_(pa.string())
VIEW = getattr(pa, "string_view", pa.large_string)()  # PyArrow before 16 has no views


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (pa.string(), pa.string()),
        (pa.string_view(), pa.string()),
        (pa.dictionary(pa.int32(), pa.string_view()), pa.string()),
        (pa.list_(pa.binary_view()), pa.list_(pa.binary())),
        (pa.struct([("a", pa.list_(pa.string_view()))]), pa.struct([("a", pa.list_(pa.string()))])),
        (pa.bool8(), pa.bool_()),
        (JSON, pa.string()),
    ],
    ids=str,
)
def test_types_become_plain_at_any_depth(kind: pa.DataType, plain: pa.DataType) -> None:
    assert plain_type(kind) == plain


def test_text_and_bytes_are_recognised_in_any_storage() -> None:
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()), JSON):
        assert is_text(kind)
        assert not is_bytes(kind)
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())):
        assert is_bytes(kind)
        assert not is_text(kind)
    assert not is_text(pa.int64())


def test_kinds_of_text() -> None:
    kinds = [pa.string(), pa.large_string(), VIEW, pa.dictionary(pa.int8(), pa.string()), pa.binary(), pa.int8()]
    assert [is_text(kind) for kind in kinds] == [True, True, True, True, False, False]


@pytest.mark.parametrize("kind", [pa.binary(16), pa.uuid()], ids=str)
def test_bytes_of_fixed_size_are_not_text(kind: pa.DataType) -> None:
    assert not is_text(kind)
    assert not is_bytes(kind)
    assert can_be_text(kind)


def test_a_column_that_cannot_be_read_is_named() -> None:
    schema = pa.schema([("a", pa.string()), ("b", pa.list_(pa.string())), ("c", pa.int64()), ("c", pa.int64())])
    assert column_fault(schema, "a", text=True) == ""
    assert column_fault(schema, "b", text=False) == ""
    assert column_fault(schema, "b", text=True) == ": column 'b' holds list<item: string>, not text"
    assert column_fault(schema, "c", text=False) == " has 2 columns 'c'; keep one of them"
    assert column_fault(schema, "d", text=False) == " has no column 'd'"


def test_a_column_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"t\.parquet has several columns 'a'; rename or drop all but one"):
        require_distinct(pa.schema([("a", pa.int8()), ("b", pa.int8()), ("a", pa.string())]), "t.parquet")


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int64(), pa.float64(), pa.float64()),
        (pa.null(), pa.list_(pa.int32()), pa.list_(pa.int32())),
        (pa.binary(), pa.string(), pa.string()),
        (pa.list_(pa.int32()), pa.list_(pa.float64()), pa.list_(pa.float64())),
        (pa.int64(), pa.string(), None),
        (pa.int64(), pa.uint64(), None),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), None),
        (pa.bool_(), pa.int64(), None),
    ],
    ids=str,
)
def test_types_of_two_files_are_widened_or_refused(
    first: pa.DataType, second: pa.DataType, both: pa.DataType | None
) -> None:
    assert unified(first, second) == both
    assert unified(second, first) == both


def test_boxes_are_lists_of_lists_of_numbers_or_text() -> None:
    box = pa.list_(pa.float64(), 4)
    boxes = [pa.list_(box), pa.list_(pa.list_(pa.float32())), pa.large_list(pa.list_(pa.int64())), pa.list_(box, 2)]
    for kind in (*boxes, pa.list_(pa.list_(pa.decimal128(5, 2))), pa.list_(pa.null()), pa.null(), pa.string()):
        assert holds_boxes(kind), kind
    for kind in (box, pa.float64(), pa.list_(pa.string()), pa.list_(pa.list_(pa.string())), pa.struct([("x", box)])):
        assert not holds_boxes(kind), kind
