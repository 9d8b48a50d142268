"""Settings of a URL list."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

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
