"""Settings of a URL list."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from priorkit.pipeline.config import PipelineSettings
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.settings import parse_settings, with_overrides
from priorkit.pipeline.urls.settings import UrlListSettings


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("all", "all"),
        ("none", "none"),
        ("licence", ("licence",)),
        (["b", "a", "b"], ("a", "b")),
        ([], "none"),
    ],
)
def test_kept_columns_have_one_spelling(given: Any, kept: Any) -> None:
    assert UrlListSettings(keep_columns=given).keep_columns == kept


@pytest.mark.parametrize("given", [1, [1], None])
def test_kept_columns_are_names(given: Any) -> None:
    with pytest.raises(ValidationError):
        UrlListSettings(keep_columns=given)


@pytest.mark.parametrize("given", ["caption,url", " caption , url ", ["caption", "url"], ("caption", "url")])
def test_names_of_columns_are_a_list_or_a_text(given: Any) -> None:
    assert UrlListSettings(column_names=given).column_names == ("caption", "url")


@pytest.mark.parametrize("given", ["", "a,,b", "a,b,a", [], [1], 7])
def test_names_of_columns_are_distinct_and_not_empty(given: Any) -> None:
    with pytest.raises(ValidationError):
        UrlListSettings(column_names=given)


def test_how_a_list_is_read_does_not_change_the_identity_of_a_download() -> None:
    """The digest of the rows shows a change; folders of earlier versions keep their fingerprint."""
    given = DownloadSettings(column_names="caption,url", guess_columns=True).identity()
    assert given == DownloadSettings().identity()
    assert not {"column_names", "guess_columns"} & set(given)


@pytest.mark.parametrize("text", ["[caption, url]", "caption,url", "'caption,url'"])
def test_names_of_columns_are_set_on_the_command_line(text: str) -> None:
    values = with_overrides({}, [f"download.column_names={text}"])
    assert parse_settings(PipelineSettings, values, "options").download.column_names == ("caption", "url")
