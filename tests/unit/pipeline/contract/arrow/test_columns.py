"""Columns in every type of Parquet: converted to plain values or text, or refused at the start."""

from __future__ import annotations

import datetime
import decimal
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.arrow.columns import as_text, carried, group_names, key_texts, plain_column
from priorkit.pipeline.contract.arrow.types import can_be_text, plain_type, why_not_carried
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.urls.digest import rows_digest
from priorkit.pipeline.urls.url_list import open_url_list

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
VIEW = getattr(pa, "string_view", pa.large_string)()  # PyArrow before 16 has no views
BOOL8 = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None], pa.int8()))


@pytest.mark.parametrize("kind", TEXT_KINDS, ids=str)
def test_text_is_recognised_in_any_storage(tmp_path: Path, kind: pa.DataType) -> None:
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


def test_a_column_that_cannot_be_stored_is_refused_at_the_start(tmp_path: Path) -> None:
    assert why_not_carried(pa.dense_union([pa.field("a", pa.int32())])) is not None
    late = pa.array([300_000_000_000_000_000], pa.timestamp("us"))
    pq.write_table(pa.table({"url": ["a"], "caption": ["b"], "seen": late}), tmp_path / "list.parquet")
    opened = open_url_list(str(tmp_path / "list.parquet"), DownloadSettings())
    with pytest.raises(InputError, match=r"list\.parquet: column 'seen' is timestamp"):
        list(opened.batches())
    kept = open_url_list(str(tmp_path / "list.parquet"), DownloadSettings(keep_columns="none"))
    assert [row for batch in kept.batches() for row in batch.to_pylist()] == [{"url": "a", "caption": "b"}]


def test_rows_of_any_carried_table_can_be_selected() -> None:
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


def test_text_that_is_not_utf8_is_an_error() -> None:
    with pytest.raises(pa.ArrowInvalid, match="UTF8"):
        as_text(pa.array([b"\xff"]).view(pa.string()))


def test_missing_values_name_no_group() -> None:
    assert group_names(pa.array([1.0, float("nan"), None])) == ["1.0", None, None]
    assert group_names(pa.array(["x", None])) == ["x", None]
    assert group_names(pa.array([["x"], None])) == ["['x']", None]
    assert group_names(pa.array([b"\xff", b"x"])) == ["ff", "x"]


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
        (pa.array([1.5, float("nan")]), ["1.5", None]),
        (pa.nulls(2), [None, None]),
    ],
)
def test_names_are_text_whatever_their_type(values: pa.Array, expected: list[Any]) -> None:
    assert key_texts(pa.chunked_array([values]), "column 'key'") == expected


@pytest.mark.parametrize("values", [pa.array([["a"]]), pa.array([{"a": 1}]), pa.array([2**62], pa.timestamp("s"))])
def test_lists_and_structures_are_no_names(values: pa.Array) -> None:
    with pytest.raises(InputError, match=r"column 'key' holds .*; store it as text"):
        key_texts(pa.chunked_array([values]), "column 'key'")
