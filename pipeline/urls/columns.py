"""Functions that choose which columns to read from a URL list, and their names and types in the shards."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from ..contract.arrow.types import holds_boxes, is_bytes, is_text, unified, why_not_carried
from ..errors import InputError
from .delimited import looks_like_url
from .files import FileHead
from .guess import require_column, shortened
from .nested import field_names, field_type, is_list
from .reserved import RESERVED_COLUMNS
from .settings import UrlListSettings

_DELIMITED = ("csv", "tsv")
"""Formats whose files may lack a header."""


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
    fields: dict[str, pa.Field] = {}
    for head in filled.values():
        for field in head.schema:
            fields.setdefault(field.name, field)
    names_by_setting = {"url_column": settings.url_column, "caption_column": settings.caption_column}
    names_by_setting |= {"hash_column": settings.hash_column, "bbox_column": settings.bbox_column}
    wanted = {setting: name for setting, name in names_by_setting.items() if name is not None}
    for path, head in filled.items():
        _require_columns(path, head, wanted, source if path == first else None, first, settings)
    columns = [name for setting, name in wanted.items() if setting in ("url_column", "caption_column")]
    for setting in ("hash_column", "bbox_column"):
        if wanted.get(setting) in columns:
            raise InputError(f"{source}: {setting} {wanted[setting]!r} is the column of URLs or captions itself")
    columns += [name for name in fields if name not in columns and _is_kept(name, settings)]
    listed = [] if isinstance(settings.keep_columns, str) else list(settings.keep_columns)
    for name in listed:
        if all(field_type(head.schema, name) is None for head in filled.values()):
            require_column(name, "keep_columns", pa.schema(list(fields.values())), source, settings)
    used = (settings.hash_column, settings.bbox_column, *listed)
    columns += dict.fromkeys(name for name in used if name is not None and name not in columns)
    reserved = RESERVED_COLUMNS | settings.reserved_columns
    names = _names(columns, list(fields), 1 if settings.caption_column is None else 2, reserved)
    chosen: list[ListColumns] = []
    kinds: dict[str, pa.DataType] = {}
    origins: dict[str, str] = {}
    for path, head in filled.items():
        for column in columns:
            kind = field_type(head.schema, column)
            if kind is not None:
                is_captions = column == settings.caption_column and is_list(kind)
                kinds[column] = _unify(path, column, kind.value_type if is_captions else kind, kinds, origins)
        pairs = [(name, kinds[column]) for column, name in zip(columns, names, strict=True) if column in kinds]
        schema = pa.schema([(name, pa.string() if kind == pa.null() else kind) for name, kind in pairs])
        schema = _as_text(source, schema, wanted, head.schema)
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


def _unify(
    path: str, column: str, kind: pa.DataType, kinds: dict[str, pa.DataType], origins: dict[str, str]
) -> pa.DataType:
    origin = origins.setdefault(column, path)
    known = kinds.get(column, pa.null())
    joined = unified(known, kind)
    if joined is None:
        raise InputError(
            f"{path}: column {column!r} is {kind}, in {origin} it is {known}; store it as one type, or "
            "leave it out with download.keep_columns"
        )
    if known == pa.null():
        origins[column] = path
    return joined


def _as_text(source: str, schema: pa.Schema, wanted: Mapping[str, str], stored: pa.Schema) -> pa.Schema:
    """Change the type of the URL and caption columns in a schema to string.

    Args:
        source: location of the URL list, for error messages.
        schema: column names, after renaming, and types.
        wanted: column names in the files, keyed by setting.
        stored: columns of a file, for error messages.

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
            inner = next((name for name in field_names(stored) if name.startswith(f"{column}.")), None)
            example = f", such as {shortened(inner)}" if inner is not None else ""
            if inner is None and setting == "url_column" and is_list(kind) and is_text(kind.value_type):
                example = ", or write a row for each of its URLs"
            raise InputError(f"{source}: column {column!r} holds {kind}, not text: set {setting} to another{example}")
        schema = schema.set(schema.get_field_index(name), pa.field(name, pa.string()))
    return schema


def without_partitions(chosen: Sequence[ListColumns], heads: Mapping[str, FileHead]) -> list[ListColumns]:
    """Return sets of columns without the columns that are stored in the names of folders.

    Earlier versions of priorkit did not read these columns, so that existing shards may lack them. The result is empty
    if there are no such columns.
    """
    partitions = {name for head in heads.values() for name in head.partitions}
    narrowed = []
    for columns in chosen:
        kept = [at for at, source in enumerate(columns.sources) if source not in partitions]
        if len(kept) < len(columns.sources):
            schema = pa.schema([columns.schema.field(at) for at in kept])
            narrowed.append(replace(columns, sources=tuple(columns.sources[at] for at in kept), schema=schema))
    return narrowed


def require_headers(heads: Mapping[str, FileHead], settings: UrlListSettings) -> None:
    """Check that each file has names for its columns. Without a header, the first row would be mistaken for the names.

    Args:
        heads: column names and types of each file, keyed by path.
        settings: configured column names.

    Raises:
        InputError: a column name looks like a URL, or the only line of a csv or tsv file does not contain the URL
            column. The message explains how to name the columns. Also raised if `column_names` has no effect, because
            no file of the list is a csv or tsv file.
    """
    if settings.column_names is not None and not any(head.format in _DELIMITED for head in heads.values()):
        path, head = next(iter(heads.items()))
        raise InputError(
            f"{path}: column_names is for csv and tsv files without a header, and this is a {head.format} file; leave "
            "it out"
        )
    for path, head in heads.items():
        _require_header(path, head, settings)


def _require_header(path: str, head: FileHead, settings: UrlListSettings) -> None:
    """Check that one file has names for its columns, as described for `require_headers`.

    Raises:
        InputError: the file has no header; the message explains how to name the columns.
    """
    names = head.schema.names
    if settings.url_column in names and not looks_like_url(settings.url_column):
        return
    url = next((name for name in names if looks_like_url(name)), None)
    if url is not None and head.format in _DELIMITED:
        raise InputError(
            f"{path}: the first line is a row and no header, since {shortened(url)} is a URL; name the columns, such "
            f"as `--column-names {_example_names(names, settings)}` (in a recipe, download.column_names)"
        )
    if url is not None:
        raise InputError(
            f"{path}: the names of its columns are a row and no header, since {shortened(url)} is a URL; write the "
            "file again with names"
        )
    if head.format in _DELIMITED and names and not head.has_rows and settings.column_names is None:
        raise InputError(
            f"{path}: its only line has no column {settings.url_column!r}; remove the file if that line is a header, "
            "or add the header that the line lacks"
        )


def _example_names(row: Sequence[str], settings: UrlListSettings) -> str:
    """Return names for the columns of a row, as a value of `--column-names`, and further options that are needed.

    The first URL gets the name of the URL column. The other field with the most words gets the name of the caption
    column.
    """
    url = next(at for at, field in enumerate(row) if looks_like_url(field))
    caption = max((at for at in range(len(row)) if at != url), key=lambda at: len(row[at].split()), default=None)
    names = [f"column{number}" for number in range(1, len(row) + 1)]
    names[url] = "url" if looks_like_url(settings.url_column) else settings.url_column
    if caption is not None and settings.caption_column is not None:
        names[caption] = settings.caption_column
    without_captions = " --caption-column null" if caption is None and settings.caption_column is not None else ""
    return shlex.quote(",".join(names)) + without_captions


def _require_columns(
    path: str,
    head: FileHead,
    wanted: Mapping[str, str],
    source: str | None,
    first: str,
    settings: UrlListSettings,
) -> None:
    """Check that one file of a URL list has the URL column, and the caption, hash and box columns if configured.

    Args:
        path: path of the file.
        head: column names and types of the file.
        wanted: names of these columns, keyed by setting, such as `url_column`.
        source: location of the URL list if the file is its first non-empty file; None for all later files.
        first: path of the first non-empty file, for error messages about later files.
        settings: configured column names.

    Raises:
        InputError: the file lacks one of these columns.
    """
    for setting, name in wanted.items():
        if source is not None:
            require_column(name, setting, head.schema, source, settings)
        elif field_type(head.schema, name) is None:
            raise InputError(f"{path}: no column {name!r}, which {first} has")
