"""Columns of a list: their order for img2dataset, and types that it cannot write."""

from __future__ import annotations

import pyarrow as pa
import pytest

from priorkit.pipeline.download.img2dataset_engine.columns import check_columns, img2dataset_order
from priorkit.pipeline.errors import InputError


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["url"], ["url"]),
        (["url", "caption"], ["caption", "url"]),
        (["url", "caption", "licence", "score"], ["licence", "score", "caption", "url"]),
        (["url", "licence"], ["licence", "url"]),
    ],
)
def test_the_other_columns_come_first(names: list[str], ordered: list[str]) -> None:
    assert img2dataset_order(names) == ordered


def test_boxes_as_text_are_refused() -> None:
    schema = pa.schema([("url", pa.string()), ("boxes", pa.string())])
    with pytest.raises(InputError, match="list: column 'boxes' holds boxes as text"):
        check_columns("list", schema, "boxes")
    check_columns("list", pa.schema([("url", pa.string()), ("boxes", pa.list_(pa.list_(pa.float32())))]), "boxes")


@pytest.mark.parametrize(
    "kind",
    [
        pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.string(), pa.list_(pa.float32()),
        pa.large_list(pa.string()), pa.list_(pa.int64(), 4), pa.struct([("a", pa.list_(pa.string()))]),
    ],
    ids=str,
)  # fmt: skip
def test_a_column_of_json_values_is_accepted(kind: pa.DataType) -> None:
    check_columns("list", pa.schema([("url", pa.string()), ("other", kind)]))


@pytest.mark.parametrize(
    "kind",
    [pa.timestamp("us"), pa.date32(), pa.duration("s"), pa.binary(), pa.decimal128(5, 2), pa.list_(pa.date32()),
     pa.struct([("a", pa.binary())]), pa.float16()],
    ids=str,
)  # fmt: skip
def test_another_column_is_refused_by_name(kind: pa.DataType) -> None:
    with pytest.raises(InputError, match=r"list: column 'other' holds .*download\.keep_columns.*engine=native"):
        check_columns("list", pa.schema([("url", pa.string()), ("other", kind)]))
