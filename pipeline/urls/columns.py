"""Functions that choose which columns to read from a URL list, and their names and types in the shards."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from ..contract.arrow.types import holds_boxes, is_bytes, is_text, unified, why_not_carried
from ..errors import InputError
from .files import FileHead, list_format
from .settings import UrlListSettings

ADDED_COLUMNS = ("key", "status", "error_message", "width", "height", "original_width", "original_height", "sha256")
"""Columns that the download stage adds to each row."""

EMBED_COLUMNS = ("image_path", "image_norm", "text_norm")
"""Columns that the embed stage adds to each row."""

_RESERVED = frozenset({"url", "caption", *ADDED_COLUMNS, *EMBED_COLUMNS})
"""Column names with a fixed meaning in the shards.

A column of the URL list with one of these names is renamed, unless it is the configured URL or caption column.
"""
_SYNONYMS = {
    "url_column": ("url", "image_url", "img_url", "image_urls", "url_link", "image", "img", "src", "link", "uri"),
    "caption_column": ("caption", "text", "alt", "alt_text", "captions", "title", "description", "prompt"),
    "hash_column": ("sha256", "md5", "hash", "sha1", "sha512"),
    "bbox_column": ("face_bboxes", "bboxes", "bbox", "boxes", "faces"),
}
"""Common column names for each setting, most common first. They are suggested if the configured column is missing."""
_SHOWN_COLUMNS = 6
"""Maximum number of columns listed in an error message."""
_SHOWN_CHARACTERS = 40
"""Maximum number of characters of a column name shown in an error message."""


@dataclass(frozen=True)
class ListColumns:
    """Names and types of the columns that are read from a URL list.

    The first column is `url`, followed by `caption` if the list has captions, and then by all other kept columns.
    """

    sources: tuple[str, ...]
    """Original column names in the list's files, in the order of `schema`."""
    schema: pa.Schema
    """Column names and types after renaming and conversion."""
    hash_column: str | None
    """Name, after renaming, of the column with the expected hash of each response body; None if none is configured."""
    bbox_column: str | None = None
    """Name, after renaming, of the column with the boxes to blur in each image; None if none is configured."""

    @property
    def renamed(self) -> dict[str, str]:
        """New names of the renamed columns, keyed by original name. The URL and caption columns are not included.

        A column is renamed if its original name has a fixed meaning in the shards, such as `width`.
        """
        pairs = zip(self.sources, self.schema.names, strict=True)
        return {source: name for source, name in pairs if source != name and name not in ("url", "caption")}

    def first(self, count: int) -> ListColumns:
        """Return a copy with only the first `count` columns."""
        return replace(self, sources=self.sources[:count], schema=pa.schema(list(self.schema)[:count]))


def choose_columns(source: str, heads: Mapping[str, FileHead], settings: UrlListSettings) -> list[ListColumns]:
    """Choose the columns to read from a URL list, based on the columns of all its non-empty files.

    Each of these files must have the configured URL, caption and hash columns. If a file lacks any other kept column,
    its rows have null in that column. If the type of a column differs between files, the column gets the narrowest type
    that fits all files.

    Args:
        source: location of the list, for error messages.
        heads: column names and types of each file, keyed by path.
        settings: names of the URL, caption, hash and box columns, and the other columns to keep.

    Returns:
        Columns of the first file alone, then of the first two files together, and so on. The last item has the columns
        of the whole list. An item that equals the previous item is left out. The items before the last make it possible
        to recognise rows that were downloaded when the list had fewer files.

    Raises:
        InputError: a file lacks the URL, caption, hash or box column; no file has one of the columns in `keep_columns`;
            the hash or box column is also the URL or caption column; the box column holds no boxes; a column cannot be
            stored in the shards; or no single type fits a column in all files.
    """
    filled = {path: head for path, head in heads.items() if head.has_rows}
    first = next(iter(filled))
    available = list(dict.fromkeys(name for head in filled.values() for name in head.schema.names))
    names_by_setting = {"url_column": settings.url_column, "caption_column": settings.caption_column}
    names_by_setting |= {"hash_column": settings.hash_column, "bbox_column": settings.bbox_column}
    wanted = {setting: name for setting, name in names_by_setting.items() if name is not None}
    for path, head in filled.items():
        _require_columns(path, head, wanted, source if path == first else None, first)
    columns = [name for setting, name in wanted.items() if setting in ("url_column", "caption_column")]
    for setting in ("hash_column", "bbox_column"):
        if wanted.get(setting) in columns:
            raise InputError(f"{source}: {setting} {wanted[setting]!r} is the column of URLs or captions itself")
    columns += [name for name in available if name not in columns and _is_kept(name, settings)]
    for name in () if isinstance(settings.keep_columns, str) else settings.keep_columns:
        _require(name, "keep_columns", available, source)
    reserved = _RESERVED | settings.reserved_columns
    names = _names(columns, available, 1 if settings.caption_column is None else 2, reserved)
    chosen: list[ListColumns] = []
    kinds: dict[str, pa.DataType] = {}
    origins: dict[str, str] = {}
    for path, head in filled.items():
        for field in head.schema:
            if field.name in columns:
                kinds[field.name] = _unify(path, field, kinds, origins)
        fields = [(name, kinds[column]) for column, name in zip(columns, names, strict=True) if column in kinds]
        schema = pa.schema([(name, pa.string() if kind == pa.null() else kind) for name, kind in fields])
        schema = _as_text(source, schema, wanted)
        hashes, boxes = (
            names[columns.index(wanted[setting])] if setting in wanted else None
            for setting in ("hash_column", "bbox_column")
        )
        if not chosen or chosen[-1].schema != schema:
            sources = tuple(column for column in columns if column in kinds)
            chosen.append(ListColumns(sources, schema, hashes, boxes))
    if settings.bbox_column is not None and not holds_boxes(kinds[settings.bbox_column]):
        raise InputError(
            f"{source}: column {settings.bbox_column!r} holds {kinds[settings.bbox_column]}; boxes are lists of four "
            "numbers, [[x_min, y_min, x_max, y_max], ...], or their JSON text: set download.bbox_column to another"
        )
    for column, name in zip(columns, names, strict=True):
        if why := why_not_carried(chosen[-1].schema.field(name).type):
            raise InputError(f"{origins[column]}: column {column!r} cannot be carried ({why}); {_leave_out(column)}")
    return chosen


def _is_kept(name: str, settings: UrlListSettings) -> bool:
    keep = settings.keep_columns
    is_used = name in (settings.hash_column, settings.bbox_column)
    return keep == "all" or is_used or (not isinstance(keep, str) and name in keep)


def _leave_out(column: str) -> str:
    return f"leave it out with download.keep_columns (all, none or a list of names), or store {column!r} as text"


def _names(columns: Sequence[str], available: Sequence[str], requested: int, reserved: frozenset[str]) -> list[str]:
    """Return the name that each column of the URL list gets in the shards, in the order of `columns`.

    A column whose name has a fixed meaning in the shards gets the prefix `source_`. A number is appended if that name
    is also in use.

    Args:
        columns: column names in the files: the URL column, the caption column if configured, and then other columns.
        available: all column names in the files, before any column is renamed.
        requested: number of items at the start of `columns` that become `url` and `caption`: 2 if a caption column is
            configured, otherwise 1 (`url` only).
        reserved: names with a fixed meaning.
    """
    names = ["url", "caption"][:requested]
    for column in columns[requested:]:
        name = column
        if column in reserved:
            name, number = f"source_{column}", 2
            while name in available or name in names:
                name, number = f"source_{column}_{number}", number + 1
        names.append(name)
    return names


def _unify(path: str, field: pa.Field, kinds: dict[str, pa.DataType], origins: dict[str, str]) -> pa.DataType:
    origin = origins.setdefault(field.name, path)
    known = kinds.get(field.name, pa.null())
    kind = unified(known, field.type)
    if kind is None:
        raise InputError(
            f"{path}: column {field.name!r} is {field.type}, in {origin} it is {known}; store it as one type, or "
            "leave it out with download.keep_columns"
        )
    if known == pa.null():
        origins[field.name] = path
    return kind


def _as_text(source: str, schema: pa.Schema, wanted: Mapping[str, str]) -> pa.Schema:
    """Change the type of the URL and caption columns in a schema to string.

    Args:
        source: location of the URL list, for error messages.
        schema: column names, after renaming, and types.
        wanted: column names in the files, keyed by setting.

    Raises:
        InputError: one of these columns contains neither text nor bytes.
    """
    for setting, column in wanted.items():
        if setting not in ("url_column", "caption_column"):
            continue
        name = setting.removesuffix("_column")
        kind = schema.field(name).type
        # bytes are accepted, because Impala and old Spark versions do not mark text columns as text
        if not is_text(kind) and not is_bytes(kind):
            raise InputError(f"{source}: column {column!r} holds {kind}, not text: set {setting} to another")
        schema = schema.set(schema.get_field_index(name), pa.field(name, pa.string()))
    return schema


def _looks_like_url(name: str) -> bool:
    return "://" in name or name.lstrip().startswith("www.")


def require_headers(heads: Mapping[str, FileHead], url_column: str) -> None:
    """Check that no file lacks a header. Without a header, the first row would be mistaken for the column names.

    Args:
        heads: column names and types of each file, keyed by path.
        url_column: name of the URL column.

    Raises:
        InputError: a column name looks like a URL, or the only line of a csv or tsv file does not contain the URL
            column. The message explains how to add a header.
    """
    for path, head in heads.items():
        _require_header(path, head, url_column)


def _require_header(path: str, head: FileHead, url_column: str) -> None:
    """Check that one file has a header, as described for `require_headers`.

    Raises:
        InputError: the file has no header; the message explains how to add one.
    """
    names = head.schema.names
    if url_column in names and not _looks_like_url(url_column):
        return
    is_text_file = list_format(path) in ("csv", "tsv")
    url = next((name for name in names if _looks_like_url(name)), None)
    if url is not None:
        line = "the first line is" if is_text_file else "the names of its columns are"
        raise InputError(
            f"{path}: {line} a row and no header, since {_shortened(url)} is a URL; add a line of names before it, "
            f"such as {_example_header(path, names)!r}"
        )
    if is_text_file and names and not head.has_rows:
        raise InputError(
            f"{path}: its only line has no column {url_column!r}; remove the file if that line is a header, or add "
            "the header that the line lacks"
        )


def _example_header(path: str, names: Sequence[str]) -> str:
    others = ["caption", *(f"column{number}" for number in range(3, len(names) + 1))]
    example, has_url = [], False
    for name in names:
        is_url = _looks_like_url(name) and not has_url
        has_url = has_url or is_url
        example.append("url" if is_url else others.pop(0) if others else "url")
    return ("\t" if list_format(path) == "tsv" else ",").join(example)


def _require_columns(path: str, head: FileHead, wanted: Mapping[str, str], source: str | None, first: str) -> None:
    """Check that one file of a URL list has the URL column, and the caption, hash and box columns if configured.

    Args:
        path: path of the file.
        head: column names and types of the file.
        wanted: names of these columns, keyed by setting, such as `url_column`.
        source: location of the URL list if the file is its first non-empty file; None for all later files.
        first: path of the first non-empty file, for error messages about later files.

    Raises:
        InputError: the file lacks one of these columns.
    """
    for setting, name in wanted.items():
        if source is None and name not in head.schema.names:
            raise InputError(f"{path}: no column {name!r}, which {first} has")
        if source is not None:
            _require(name, setting, head.schema.names, source)


def _require(column: str, setting: str, available: Sequence[str], source: str) -> None:
    if column in available:
        return
    nearest = _suggestion(column, setting, available)
    hint = f"did you mean {_shortened(nearest)}? " if nearest is not None else ""
    quoted = [name for name in available if len(name) > 1 and name[0] == name[-1] == '"']
    if quoted:
        hint = "its header is quoted: set download.quoting=rfc4180. "
    shown = [_shortened(name) for name in available[:_SHOWN_COLUMNS]]
    if len(available) > len(shown):
        shown.append(f"{len(available) - len(shown)} more")
    none = ", or null for none; a prior needs captions" if setting == "caption_column" else ""
    raise InputError(
        f"{source}: no column {_shortened(column)}; {hint}The list has {', '.join(shown)} (`--set "
        f"download.{setting}=NAME`{none})"
    )


def _shortened(name: str) -> str:
    return repr(name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}...")


def _suggestion(column: str, setting: str, available: Sequence[str]) -> str | None:
    """Return the column that the user probably meant instead of a missing one, or None if no column is similar.

    The returned name differs from `column` only in case, is a common name for the setting, or has a similar spelling.

    Args:
        column: configured name, which is missing.
        setting: name of the setting that contains it, such as `url_column`.
        available: names of the columns in the URL list.
    """
    by_case: dict[str, str] = {}
    for name in available:
        by_case.setdefault(name.strip().lower(), name)
    common = _SYNONYMS.get(setting, ())
    candidates = [column.strip().lower(), *common]
    similar = difflib.get_close_matches(column.lower(), by_case, n=1, cutoff=0.8)
    if column.lower() not in common:
        candidates[1:1] = similar
    return next((by_case[name] for name in [*candidates, *similar] if name in by_case), None)
