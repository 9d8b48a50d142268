"""Settings of a URL list: its columns, and the meaning of quotes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from ..settings import Settings

Quoting = Literal["auto", "none", "rfc4180"]
"""Meaning of quotes in csv and tsv."""


class UrlListSettings(Settings):
    """Columns of a URL list."""

    url_column: str = "url"
    """Column of the list that holds the image URL."""
    caption_column: str | None = "caption"
    """Column of the list that holds the caption; null for a list without captions."""
    hash_column: str | None = None
    """Column with the MD5, SHA-1, SHA-256 or SHA-512 of each body in hexadecimal; other bodies count as failed."""
    keep_columns: Literal["all", "none"] | tuple[str, ...] = "all"
    """Other columns to keep in the shards: all, none, or a list of names; all by default, since they cost little."""
    quoting: Quoting = "auto"
    """Quotes in csv and tsv: `rfc4180`, or `none` for plain text; `auto` is rfc4180 for csv and none for tsv."""

    @field_validator("keep_columns", mode="before")
    @classmethod
    def _normalise_columns(cls, value: Any) -> Any:
        """Sort the names, since their order has no effect."""
        if isinstance(value, str) and value not in ("all", "none"):
            return (value,)
        if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
            return tuple(sorted(set(value))) or "none"
        return value
