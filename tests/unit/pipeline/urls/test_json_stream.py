"""JSON files as streams: values, rows under a key, and columns."""

from __future__ import annotations

import io
import json
import tracemalloc
from typing import Any

import pytest

from priorkit.pipeline.urls import json_stream
from priorkit.pipeline.urls.count import RowsError
from priorkit.pipeline.urls.json_stream import (
    JsonShape,
    column_rows,
    json_shape,
    json_values,
    rows_of_values,
    rows_under_key,
)

SIZES = pytest.mark.parametrize("size", [1, 2, 3, 1000])
"""Numbers of characters that are read at a time."""


@SIZES
@pytest.mark.parametrize("text", ['[ {"a": "]"} , "b", {}, [1, 20] ] \n', '{"a": "]"} "b"\n{} [1, 20]'])
def test_values_are_the_same_for_any_size_of_reads(monkeypatch: pytest.MonkeyPatch, size: int, text: str) -> None:
    monkeypatch.setattr(json_stream, "_READ_CHARACTERS", size)
    assert list(json_values(io.StringIO(text))) == [{"a": "]"}, "b", {}, [1, 20]]


@pytest.mark.parametrize("text", ["[1] 2", "[1", "[1, ,", "{"])
def test_text_after_a_list_and_incomplete_values_are_errors(text: str) -> None:
    with pytest.raises(ValueError):
        list(json_values(io.StringIO(text)))


@SIZES
def test_numbers_may_continue_in_the_next_block(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(json_stream, "_READ_CHARACTERS", size)
    values = [1, 23, -4.5, 6e10, 789, True, None, 0]
    assert list(json_values(io.StringIO(json.dumps(values)))) == values
    assert list(json_values(io.StringIO("12 345"))) == [12, 345]


U = ["http://h/0", "http://h/1"]


@SIZES
@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ({"url": U, "caption": ["a", "b"]}, JsonShape("columns")),
        ({"image_urls": U, "user_ids": [1, 2]}, JsonShape("columns")),
        ({"url": {"0": U[0], "1": U[1]}, "caption": {"0": "a", "1": "b"}}, JsonShape("columns")),
        ({"link": {"0": U[0], "1": U[1]}}, JsonShape("columns")),
        ({"info": {}, "annotations": [{"url": U[0]}]}, JsonShape("key", "annotations")),
        ({"licences": [{"id": 1}], "images": [{"url": U[0]}]}, JsonShape("key", "images")),
        ({"licences": [{"id": 1}], "images": [{"link": U[0]}]}, JsonShape("key", "licences")),
        ({"url": U, "faces": [{"x": 1}]}, JsonShape("columns")),
        ({"rows": [{"url": "x"}], "url": U[0]}, JsonShape("key", "rows")),
        ({"url": U[0], "rows": [{"url": "x"}]}, JsonShape("key", "rows")),
        ({"url": U[0], "rows": [{"link": U[1]}]}, JsonShape("key", "rows")),
        ({"rows": [{"link": {"to": U[1]}}], "url": U[0]}, JsonShape("key", "rows")),
        ({"url": U[0], "faces": [{"x": 1}]}, JsonShape("rows")),
        ({"faces": [{"x": 1}], "url": U[0]}, JsonShape("rows")),
        ({"url": U[0], "rows": []}, JsonShape("rows")),
        ({"url": "relative.jpg", "tags": ["a"]}, JsonShape("rows")),
        ({"link": U[0], "tags": ["a"]}, JsonShape("rows")),
        ({"image": {"url": U[0]}}, JsonShape("rows")),
        ({}, JsonShape("rows")),
        ({"a": {"url": U[0]}, "b": {"url": U[1], "caption": "x"}}, JsonShape("values")),
        ({"a": {"link": U[0]}, "b": {"link": U[1]}}, JsonShape("values")),
        ({"image": {"url": U[0]}, "meta": {"id": 1}}, JsonShape("rows")),
        ({"image": {"url": U[0]}, "thumb": {"url": U[1]}, "id": 5}, JsonShape("rows")),
    ],
)
def test_the_arrangement_of_rows_is_found(
    monkeypatch: pytest.MonkeyPatch, size: int, value: dict[str, Any], shape: JsonShape
) -> None:
    assert json_shape(io.StringIO(json.dumps(value)), "url") == shape
    monkeypatch.setattr(json_stream, "_READ_CHARACTERS", size)
    assert json_shape(io.StringIO(json.dumps(value)), "url") == shape


def test_several_objects_are_rows_even_if_they_have_lists() -> None:
    text = '{"tags": ["a"]}\n{"tags": ["b"]}'
    assert json_shape(io.StringIO(text), "url") == JsonShape("rows")


def test_a_nested_url_column_finds_its_rows() -> None:
    value = {"other": [{"id": 1}], "data": [{"image": {"url": U[0]}}]}
    assert json_shape(io.StringIO(json.dumps(value)), "image.url") == JsonShape("key", "data")


def test_rows_two_levels_deep_are_refused_with_a_command() -> None:
    value = {"info": {"n": 1}, "data": {"count": 2, "items": [{"url": url} for url in U]}}
    with pytest.raises(RowsError, match=r"two levels deep; write it alone: jq \.data\.items OLD\.json > NEW\.json"):
        json_shape(io.StringIO(json.dumps(value)), "url")


@pytest.mark.parametrize(
    ("key", "label", "command"),
    [
        ("data", "my-list", """jq '.["data"]["my-list"]' OLD.json > NEW.json"""),
        ("a; rm -rf x", "$(b)'", """jq '.["a; rm -rf x"]["$(b)'"'"'"]' OLD.json > NEW.json"""),
    ],
)
def test_keys_in_a_proposed_command_are_quoted(key: str, label: str, command: str) -> None:
    with pytest.raises(RowsError) as error:
        json_shape(io.StringIO(json.dumps({key: {label: [{"url": U[0]}]}})), "url")
    assert str(error.value).endswith(f": {command}")


@SIZES
def test_rows_under_a_key_are_read(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(json_stream, "_READ_CHARACTERS", size)
    rows = [{"url": url, "nested": {"rows": [1]}} for url in U]
    value = {"info": {"rows": 1}, "n": 12, "before": [[1], {"rows": [2]}], "rows": rows, "after": "x"}
    assert list(rows_under_key(io.StringIO(json.dumps(value)), "rows")) == rows


@SIZES
def test_rows_that_are_the_values_of_an_object_are_read(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(json_stream, "_READ_CHARACTERS", size)
    rows = [{"url": url, "tags": [1]} for url in U]
    assert list(rows_of_values(io.StringIO(json.dumps(dict(zip("ab", rows, strict=True)))))) == rows


@SIZES
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": 2},', "the file ends within a list, after value 2"),
        ('[{"a": 1}, {"a"', "value 2 of a list is no JSON: .*or the file ends in it"),
        ('[{"a": 1}, {"a": 2}, {b}]', "value 3 of a list is no JSON: Expecting property name"),
    ],
)
def test_a_damaged_value_of_a_list_is_named(
    monkeypatch: pytest.MonkeyPatch, size: int, text: str, message: str
) -> None:
    monkeypatch.setattr(json_stream, "_READ_CHARACTERS", size)
    with pytest.raises(RowsError, match=message):
        list(json_values(io.StringIO(text)))


@SIZES
@pytest.mark.parametrize(
    "value",
    [
        {"n": 17, "info": {"a": [1]}, "url": [*U, "c"], "caption": ["a", None, "\ud83d é"], "tags": [[1], [], [2, 3]]},
        {"url": {"0": U[0], "1": U[1], "2": "c"}, "caption": {"0": "a", "1": None, "2": "x"}},
    ],
)
def test_columns_are_put_together_as_rows(monkeypatch: pytest.MonkeyPatch, size: int, value: dict[str, Any]) -> None:
    monkeypatch.setattr(json_stream, "_READ_CHARACTERS", size)
    monkeypatch.setattr(json_stream, "_SPOOLED_VALUES", 2)
    names = ["url", "caption", "tags"] if "tags" in value else ["url", "caption"]
    columns = [list(v.values()) if isinstance(v := value[name], dict) else v for name in names]
    expected = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    assert list(column_rows(io.StringIO(json.dumps(value)))) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"url": ["a", "b"], "caption": ["c"]}', "'url' has 2 values, 'caption' 1"),
        ('{"url": {"0": "a", "1": "b"}, "caption": {"1": "b", "0": "a"}}', "the rows of 'caption' have other labels"),
        (json.dumps({str(name): ["a"] for name in range(201)}), "more than 200 columns"),
        ('{"url": ["a"]} 5', "more after the end of the object"),
        ('{"url": ["a"', "the file ends within a list, after value 1"),
        ('{"url" ["a"]}', "':' is missing before '\\['"),
        ('{5: ["a"]}', "5 is no key"),
    ],
)
def test_damaged_columns_are_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(column_rows(io.StringIO(text)))


def test_a_value_of_any_length_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_MAX_VALUE_CHARACTERS", 100)
    monkeypatch.setattr(json_stream, "_READ_CHARACTERS", 50)
    with pytest.raises(RowsError, match="more than 64 MB; write a list of objects"):
        list(json_values(io.StringIO(json.dumps(["x" * 1000]))))


def test_columns_are_not_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_READ_CHARACTERS", 1 << 16)
    monkeypatch.setattr(json_stream, "_SPOOLED_VALUES", 100)
    text = io.StringIO(json.dumps({"url": ["http://h/" + "x" * 2000] * 4000, "caption": ["a"] * 4000}))
    tracemalloc.start()
    try:
        assert sum(1 for _ in column_rows(text)) == 4000
        assert tracemalloc.get_traced_memory()[1] < 2 << 20  # of 8 MB of text
    finally:
        tracemalloc.stop()
