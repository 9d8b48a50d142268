"""Rows of text and JSON: lines, values and batches."""

from __future__ import annotations

import io
from typing import Any

import pytest

from priorkit.pipeline.urls import plain_rows
from priorkit.pipeline.urls.count import FileCount, RowsError
from priorkit.pipeline.urls.plain_rows import json_line, json_lines, lines, to_batches


def test_lines_have_numbers_and_no_white_space() -> None:
    data = b"\xef\xbb\xbf a \r\n\n\tb\rc\n\xff"
    assert list(lines(io.BytesIO(data))) == [(1, "a"), (3, "b"), (3, "c"), (4, "\ufffd")]


def test_a_line_that_is_not_json_is_named_with_its_character() -> None:
    assert json_line(7, '{"url": "a"}') == {"url": "a"}
    with pytest.raises(RowsError, match=r"^line 1,234 is no JSON: Expecting ',' delimiter at character 7$"):
        json_line(1234, '{"a":1')


def rows_of(values: list[Any], count: FileCount) -> list[list[dict[str, Any]]]:
    return [batch.to_pylist() for batch in to_batches(iter(values), count)]


def test_batches_have_the_columns_of_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_rows, "BATCH_ROWS", 2)
    count = FileCount()
    batches = rows_of(["a", {"url": "b", "n": 1}, {"n": 2, "late": 3}], count)
    assert batches == [[{"url": "a", "n": None}, {"url": "b", "n": 1}], [{"url": None, "n": 2}]]
    assert count.rows == 3
    assert dict(count.left_out) == {"late": 1}


def test_a_line_that_holds_all_rows_is_refused() -> None:
    for value in (b'{"rows": [{"url": "a"}]}', b'{"url": ["a", "b"]}'):
        with pytest.raises(RowsError, match="one object that holds all rows; name it"):
            list(json_lines(io.BytesIO(value)))
    for value in (b'{"url": "http://a", "tags": ["x"]}', b'{"tags": ["x"]}\n{"tags": ["y"]}', b'["a"]'):
        assert len(list(json_lines(io.BytesIO(value)))) == value.count(b"\n") + 1


def test_mixed_scalars_become_text_and_other_mixtures_are_refused() -> None:
    values = [{"a": 1}, {"a": "x"}, {"a": True}, {"a": None}, {"a": 2**70}]
    assert rows_of(values, FileCount()) == [[{"a": "1"}, {"a": "x"}, {"a": "true"}, {"a": None}, {"a": str(2**70)}]]
    with pytest.raises(RowsError, match="column 'a' holds numbers and lists"):
        rows_of([{"a": 1}, {"a": []}], FileCount())
    with pytest.raises(RowsError, match="row 2: expected a URL"):
        rows_of(["a", 1], FileCount())
