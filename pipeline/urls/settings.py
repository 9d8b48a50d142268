"""URL list settings: column names and quoting."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from ..settings import Settings

Quoting = Literal["auto", "none", "rfc4180"]
"""Quoting rules for csv and tsv files."""


class UrlListSettings(Settings):
    """Column and quoting settings for a URL list."""

    url_column: str = "url"
    """Name of the column that contains the image URL."""
    caption_column: str | None = "caption"
    """Name of the column that contains the caption; null for a list without captions."""
    hash_column: str | None = None
    """Name of the column with the expected MD5, SHA-1, SHA-256 or SHA-512 of each response body, in hexadecimal.
    A download whose body has a different hash counts as failed."""
    keep_columns: Literal["all", "none"] | tuple[str, ...] = "all"
    """Other columns to keep in the shards: `all`, `none`, or a list of names. The default is `all`, since they take
    little space."""
    quoting: Quoting = "auto"
    """Quoting in csv and tsv files: `rfc4180`, or `none` to treat quotes as ordinary characters. `auto` uses `rfc4180`
    for csv and `none` for tsv."""

    @field_validator("keep_columns", mode="before")
    @classmethod
    def _normalise_columns(cls, value: Any) -> Any:
        """Sort the names and remove duplicates, since their order has no effect."""
        if isinstance(value, str) and value not in ("all", "none"):
            return (value,)
        if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
            return tuple(sorted(set(value))) or "none"
        return value
