"""Settings for reading a URL list: column names and quoting rules."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import field_validator

from ..settings import Settings

Quoting = Literal["auto", "none", "rfc4180"]
"""Name of the quoting rules for csv and tsv files; see `UrlListSettings.quoting`."""


class UrlListSettings(Settings):
    """Settings for the columns and quoting rules of a URL list."""

    later_fields: ClassVar[frozenset[str]] = frozenset({"bbox_column"})

    url_column: str = "url"
    """Name of the column that contains the image URL."""
    caption_column: str | None = "caption"
    """Name of the column that contains the caption; null for a list without captions."""
    hash_column: str | None = None
    """Name of the column with the expected MD5, SHA-1, SHA-256 or SHA-512 of each response body, in hexadecimal.
    A download whose body has a different hash counts as failed."""
    bbox_column: str | None = None
    """Name of the column with the boxes to blur in each image, such as faces: `[[x_min, y_min, x_max, y_max], ...]` as
    fractions of the width and height, or the JSON text of such a list. null blurs nothing."""
    keep_columns: Literal["all", "none"] | tuple[str, ...] = "all"
    """Other columns to keep in the shards: `all`, `none`, or a list of names. The default is `all`, because these
    columns take little space."""
    quoting: Quoting = "auto"
    """Quoting rules for csv and tsv files: `rfc4180` to allow quoted fields, or `none` to treat quotes as ordinary
    characters. `auto` means `rfc4180` for csv files and `none` for tsv files."""

    @field_validator("keep_columns", mode="before")
    @classmethod
    def _normalise_columns(cls, value: Any) -> Any:
        """Convert `keep_columns` to a form in which equivalent settings compare equal.

        Names are sorted, and duplicates are removed. A single name becomes a tuple, and an empty list becomes `none`.
        """
        if isinstance(value, str) and value not in ("all", "none"):
            return (value,)
        if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
            return tuple(sorted(set(value))) or "none"
        return value

    @property
    def reserved_columns(self) -> frozenset[str]:
        """Names of columns that are added to each row only with these settings. The list's own are renamed."""
        return frozenset()
