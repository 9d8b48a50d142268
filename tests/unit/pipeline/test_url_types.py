"""Columns of a list in every type that parquet can store: carried as plain types, or an error before any work."""

from __future__ import annotations

import datetime
import decimal
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.config import DownloadSettings
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.url_types import plain_column, plain_type, unified, why_not_carried
from priorkit.pipeline.urls import open_url_list, rows_digest

TEXT_KINDS = (
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.dictionary(pa.int8(), pa.binary()),
)


@pytest.mark.parametrize("kind", TEXT_KINDS, ids=str)
def test_text_is_text_however_it_is_stored(tmp_path: Path, kind: pa.DataType) -> None:
    plain = pa.table({"url": ["http://h/0.jpg", "http://h/é.jpg"], "caption": ["a", None]})
    columns = {name: plain.column(name).combine_chunks() for name in plain.column_names}
    if pa.types.is_dictionary(kind):
        stored = {name: column.cast(kind.value_type).dictionary_encode().cast(kind) for name, column in columns.items()}
    else:
        stored = {name: column.cast(kind) for name, column in columns.items()}
    pq.write_table(pa.table(stored), tmp_path / "list.parquet")
    ((_, table),) = open_url_list(str(tmp_path / "list.parquet"), DownloadSettings()).shards(10)
    assert table.to_pylist() == plain.to_pylist()
    assert rows_digest(table) == rows_digest(plain)


DAY = datetime.datetime(2024, 1, 2, 3, 4, 5)
KEY = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array(["a", None], pa.string_view()), ["a", None]),
        (pa.array(["a", None]).dictionary_encode(), ["a", None]),
        (pa.array([b"\xff", None], pa.binary_view()), [b"\xff", None]),
        (pa.array([1, None], pa.bool8()), [True, None]),
        (pa.array([KEY.bytes, None], pa.uuid()), [str(KEY), None]),
        (pa.array(["{}", None], pa.json_()), ["{}", None]),
        (pa.array([decimal.Decimal("1.50"), None]), [decimal.Decimal("1.50"), None]),
        (pa.array([DAY, None], pa.timestamp("us", "UTC")), [DAY.replace(tzinfo=datetime.timezone.utc), None]),
        (pa.array([["a"], None], pa.list_(pa.string_view())), [["a"], None]),
        (pa.array([[1], None], pa.list_view(pa.int32())), [[1], None]),
        (pa.array([{"a": ["b"]}, None], pa.struct([("a", pa.list_(pa.large_string()))])), [{"a": ["b"]}, None]),
        (pa.array([{"a": 1.5}, None], pa.struct([("a", pa.float32())])), [{"a": 1.5}, None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_further_columns_are_carried_as_plain_types(column: pa.Array, expected: list[Any]) -> None:
    plain = plain_column(column)
    assert plain.to_pylist() == expected
    assert plain.type == plain_type(column.type) == plain_type(plain.type)
    assert why_not_carried(plain.type) is None


def test_a_column_that_cannot_be_stored_is_named_before_any_work(tmp_path: Path) -> None:
    assert why_not_carried(pa.dense_union([pa.field("a", pa.int32())])) is not None
    late = pa.array([300_000_000_000_000_000], pa.timestamp("us"))
    pq.write_table(pa.table({"url": ["a"], "caption": ["b"], "seen": late}), tmp_path / "list.parquet")
    opened = open_url_list(str(tmp_path / "list.parquet"), DownloadSettings())
    with pytest.raises(InputError, match=r"list\.parquet: column 'seen' is timestamp"):
        list(opened.batches())
    kept = open_url_list(str(tmp_path / "list.parquet"), DownloadSettings(keep_columns="none"))
    assert [row for batch in kept.batches() for row in batch.to_pylist()] == [{"url": "a", "caption": "b"}]


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
