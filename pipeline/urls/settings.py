"""Settings of a list of URLs: its columns, and how quotes are read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from ..settings import Settings

Quoting = Literal["auto", "none", "rfc4180"]
"""How quotes in csv and tsv are read."""


class UrlListSettings(Settings):
    """Columns of a list of URLs."""

    url_column: str = "url"
    """Column of the list that holds the image URL."""
    caption_column: str | None = "caption"
    """Column of the list that holds the caption; null for a list without captions."""
    hash_column: str | None = None
    """Column with the MD5, SHA-1, SHA-256 or SHA-512 of each body, hexadecimal; another body is counted as failed."""
    keep_columns: Literal["all", "none"] | tuple[str, ...] = "all"
    """Further columns of the list that the shards keep: all, none, or a list of names; all, since they cost little."""
    quoting: Quoting = "auto"
    """Quotes in csv and tsv: `rfc4180`, or `none` for plain text; `auto` is rfc4180 for csv and none for tsv."""

    @field_validator("keep_columns", mode="before")
    @classmethod
    def _one_spelling_of_columns(cls, value: Any) -> Any:
        """Names in one order, since theirs has no effect."""
        if isinstance(value, str) and value not in ("all", "none"):
            return (value,)
        if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
            return tuple(sorted(set(value))) or "none"
        return value
