"""Columns that are suggested, or used with `guess_columns`, instead of those that a list lacks."""

from __future__ import annotations

import shlex
from typing import Any

import pyarrow as pa
import pytest

from priorkit.pipeline.errors import InputError
from priorkit.pipeline.urls.guess import guess_columns, require_column, shortened
from priorkit.pipeline.urls.settings import UrlListSettings
from priorkit.pipeline.yaml_text import read_yaml


def schema_of(**kinds: pa.DataType) -> pa.Schema:
    return pa.schema(list(kinds.items()))


TEXT, NUMBER, LIST = pa.string(), pa.int64(), pa.list_(pa.string())


@pytest.mark.parametrize(
    ("schema", "guessed"),
    [
        (schema_of(URL=TEXT, TEXT=TEXT), {"url_column": "URL", "caption_column": "TEXT"}),
        (schema_of(id=TEXT, image_url=TEXT, alt=TEXT), {"url_column": "image_url", "caption_column": "alt"}),
        (schema_of(img=TEXT, caption=TEXT), {"url_column": "img"}),
        (schema_of(url=TEXT, image_url=TEXT, captions=LIST), {"caption_column": "captions"}),
        (schema_of(url=NUMBER, image_url=TEXT, caption=TEXT), {}),  # the column of this name is there
        (schema_of(image=NUMBER, img=TEXT, text=NUMBER, title=TEXT), {"url_column": "img", "caption_column": "title"}),
        (schema_of(image=pa.struct({"bytes": pa.binary(), "uri": TEXT}), txt=TEXT), {"url_column": "image.uri"}),
        (schema_of(location=TEXT, captain=TEXT), {}),
        (
            schema_of(**{"Image Link": TEXT, "Alt-Text": TEXT}),
            {"url_column": "Image Link", "caption_column": "Alt-Text"},
        ),
    ],
)
def test_common_names_of_columns_that_hold_text_are_guessed(schema: pa.Schema, guessed: dict[str, str]) -> None:
    assert guess_columns(UrlListSettings(), schema) == guessed


def test_a_column_that_was_named_is_not_replaced() -> None:
    schema = schema_of(URL=TEXT, TEXT=TEXT)
    assert guess_columns(UrlListSettings(url_column="link"), schema) == {"caption_column": "TEXT"}
    assert guess_columns(UrlListSettings(caption_column=None), schema) == {"url_column": "URL"}


def message(schema: pa.Schema, column: str = "url", setting: str = "url_column", **settings: Any) -> str:
    with pytest.raises(InputError) as error:
        require_column(column, setting, schema, "list.csv", UrlListSettings(**settings))
    return str(error.value)


def test_the_error_has_the_options_that_work() -> None:
    assert message(schema_of(URL=TEXT, TEXT=TEXT)) == (
        "list.csv: no column 'url'; did you mean 'URL'? The list has 'URL', 'TEXT' "
        "(`--set download.url_column=URL --set download.caption_column=TEXT`, or `--guess-columns`)"
    )
    schema = schema_of(url=TEXT, image_url=TEXT, caption=TEXT)
    assert message(schema, "image_ulr", url_column="image_ulr").endswith("(`--set download.url_column=image_url`)")
    nested = schema_of(image=pa.struct({"url": TEXT}), caption=TEXT)
    assert (
        "did you mean 'image.url'? The list has 'image', 'caption' (`--set download.url_column=image.url`"
        in message(nested)
    )
    for name in ("url ", " URL", "url\t"):  # YAML strips whitespace around a value
        _, option = shlex.split(message(schema_of(**{name: TEXT})).split("`")[1])
        assert read_yaml(option.removeprefix("download.url_column=")) == name
    assert "`--set 'download.url_column=image url'`" in message(schema_of(**{"image url": TEXT}), "image-url")


def test_the_error_without_a_suggestion_names_the_setting() -> None:
    assert (
        message(schema_of(a=TEXT)) == "list.csv: no column 'url'; The list has 'a' (`--set download.url_column=NAME`)"
    )
    text = message(schema_of(a=TEXT), "caption", "caption_column")
    assert text.endswith("(`--set download.caption_column=NAME`, or null for none; a prior needs captions)")


def test_columns_and_fields_that_are_there_pass() -> None:
    require_column("a.b", "url_column", schema_of(a=pa.struct({"b": TEXT})), "list.csv", UrlListSettings())


def test_long_names_are_shortened() -> None:
    assert shortened("x" * 500) == f"'{'x' * 40}...'"
