"""Rows of text and JSON: lines, values and batches."""

from __future__ import annotations

import io
from typing import Any

import pytest

from priorkit.pipeline.urls import plain_rows
from priorkit.pipeline.urls.count import FileCount, RowsError
from priorkit.pipeline.urls.plain_rows import json_line, json_values, lines, to_batches


def test_lines_have_numbers_and_no_white_space() -> None:
    data = b"\xef\xbb\xbf a \r\n\n\tb\rc\n\xff"
    assert list(lines(io.BytesIO(data))) == [(1, "a"), (3, "b"), (3, "c"), (4, "\ufffd")]


def test_a_line_that_is_not_json_is_named_with_its_character() -> None:
    assert json_line(7, '{"url": "a"}') == {"url": "a"}
    with pytest.raises(RowsError, match=r"^line 1,234 is no JSON: Expecting ',' delimiter at character 7$"):
        json_line(1234, '{"a":1')


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize("text", ['[ {"a": "]"} , "b", {}, [1, 20] ] \n', '{"a": "]"} "b"\n{} [1, 20]'])
def test_values_are_the_same_for_any_size_of_reads(monkeypatch: pytest.MonkeyPatch, size: int, text: str) -> None:
    monkeypatch.setattr(plain_rows, "_READ_CHARACTERS", size)
    assert list(json_values(io.StringIO(text))) == [{"a": "]"}, "b", {}, [1, 20]]


@pytest.mark.parametrize("text", ["[1] 2", "[1", "[1, ,", "{"])
def test_text_after_a_list_and_incomplete_values_are_errors(text: str) -> None:
    with pytest.raises(ValueError):
        list(json_values(io.StringIO(text)))


def rows_of(values: list[Any], count: FileCount) -> list[list[dict[str, Any]]]:
    return [batch.to_pylist() for batch in to_batches(iter(values), count)]


def test_batches_have_the_columns_of_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_rows, "BATCH_ROWS", 2)
    count = FileCount()
    batches = rows_of(["a", {"url": "b", "n": 1}, {"n": 2, "late": 3}], count)
    assert batches == [[{"url": "a", "n": None}, {"url": "b", "n": 1}], [{"url": None, "n": 2}]]
    assert count.rows == 3
    assert dict(count.left_out) == {"late": 1}


def test_a_value_that_holds_all_rows_is_refused() -> None:
    with pytest.raises(RowsError, match="its rows are inside 'rows'"):
        rows_of([{"rows": [{"url": "a"}]}], FileCount())
    with pytest.raises(RowsError, match="one object of columns"):
        rows_of([{"url": ["a", "b"]}], FileCount())
    assert rows_of([{"url": "http://a", "tags": ["x"]}], FileCount()) == [[{"url": "http://a", "tags": ["x"]}]]


def test_mixed_scalars_become_text_and_other_mixtures_are_refused() -> None:
    values = [{"a": 1}, {"a": "x"}, {"a": True}, {"a": None}, {"a": 2**70}]
    assert rows_of(values, FileCount()) == [[{"a": "1"}, {"a": "x"}, {"a": "true"}, {"a": None}, {"a": str(2**70)}]]
    with pytest.raises(RowsError, match="column 'a' holds numbers and lists"):
        rows_of([{"a": 1}, {"a": []}], FileCount())
    with pytest.raises(RowsError, match="each row must be a URL"):
        rows_of([1], FileCount())
