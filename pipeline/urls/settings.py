"""Settings for reading a URL list: column names and quoting rules."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import field_validator

from ..settings import Settings

Quoting = Literal["auto", "none", "rfc4180"]
"""Name of the quoting rules for csv and tsv files; see `UrlListSettings.quoting`."""


class UrlListSettings(Settings):
    """Settings for the columns and quoting rules of a URL list."""

    # these say how a list is read; the digest of each shard's rows shows whether the same rows were read
    runtime_fields: ClassVar[frozenset[str]] = frozenset({"column_names", "guess_columns"})
    later_fields: ClassVar[frozenset[str]] = frozenset({"bbox_column"})

    url_column: str = "url"
    """Name of the column that contains the image URL. `a.b` is the field `b` of the objects in column `a`."""
    caption_column: str | None = "caption"
    """Name of the column that contains the caption, or a list of captions; null for a list without captions. A row with
    several captions becomes one row for each caption. `a.b` names a nested field, as in `url_column`."""
    column_names: tuple[str, ...] | None = None
    """Names of the columns of csv and tsv files without a header, such as `[caption, url]`; null if the first line of
    each file is a header."""
    guess_columns: bool = False
    """If the URL or caption column is missing, use a column with a common name for it, such as `image_url` or `TEXT`.
    Off by default, because a column with such a name may contain something else."""
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

    @field_validator("column_names", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        """Convert a string of names separated by commas to a list of names, and check the names."""
        names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
        if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
            if not names or not all(names):
                raise ValueError("expected the names of all columns in order, such as caption,url")
            if repeated := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"column {repeated[0]!r} is named twice")
        return names

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
