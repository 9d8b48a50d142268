"""URL lists -> rows: txt, csv, tsv, json, jsonl or parquet, also `.gz`, one file or a folder of them, as a stream."""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from .config import DownloadSettings
from .errors import InputError
from .storage import open_location

ADDED_COLUMNS = ("key", "status", "error_message", "width", "height", "original_width", "original_height", "sha256")
"""Columns that download adds to each row."""

EMBED_COLUMNS = ("image_path", "image_norm", "text_norm")
"""Columns that embed adds to each row."""

_FORMATS = ("parquet", "csv", "tsv", "txt", "jsonl", "json")
_BATCH_ROWS = 10_000
_READ_ERRORS = (pa.ArrowException, OSError, EOFError, ValueError, csv.Error, zlib.error)
"""What a damaged or misnamed file raises, from pyarrow, gzip, json and the decoding of text."""


@dataclass(frozen=True)
class UrlList:
    """A list of URLs whose columns have been checked.

    Rows come with the column `url`, then `caption` if there are captions, then all other columns of the list.
    """

    source: str
    files: tuple[str, ...]
    columns: tuple[str, ...]
    """Columns of the files in the order in which rows are given."""
    names: tuple[str, ...]
    """What those columns are called in the rows."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, in the order of the files and of the rows in them."""
        schema: pa.Schema | None = None
        for path in self.files:
            try:
                for batch in _read_file(path):
                    if not batch.num_rows:
                        continue
                    missing = [name for name in self.columns if name not in batch.schema.names]
                    if missing:
                        raise InputError(f"{path}: no column {missing[0]!r}, which {self.files[0]} has")
                    columns = [batch.column(name) for name in self.columns]
                    kinds = [column.type for column in columns] if schema is None else schema.types
                    schema = schema or pa.schema(list(zip(self.names, kinds, strict=True)))
                    cast_columns = [column.cast(kind) for column, kind in zip(columns, kinds, strict=True)]
                    yield pa.RecordBatch.from_arrays(cast_columns, schema=schema)
            except _READ_ERRORS as error:
                raise _unreadable(path, error) from error

    def shards(self, rows_per_shard: int) -> Iterator[pa.Table]:
        """Rows cut into shards of `rows_per_shard`, the last one shorter."""
        held: list[pa.RecordBatch] = []
        held_rows = 0
        for batch in self.batches():
            held.append(batch)
            held_rows += batch.num_rows
            while held_rows >= rows_per_shard:
                table = _to_table(held)
                yield table.slice(0, rows_per_shard)
                rest = table.slice(rows_per_shard)
                held, held_rows = rest.to_batches(), rest.num_rows
        if held_rows:
            yield _to_table(held)


def open_url_list(source: str, settings: DownloadSettings) -> UrlList:
    """Find the files of a list and check its columns.

    Raises:
        InputError: the list is missing, empty, unreadable or lacks a column.
    """
    fs, path = open_location(source)
    if fs.isdir(path):
        found = [fs.unstrip_protocol(name) for name in sorted(fs.find(path)) if _is_list(name)]
        if not found:
            raise InputError(f"{source}: no list of URLs in this folder (looked for {', '.join(_FORMATS)}, also .gz)")
    elif fs.exists(path):
        found = [fs.unstrip_protocol(path)]
    else:
        raise InputError(f"{source}: no such file or folder; name a list of URLs ({', '.join(_FORMATS)})")
    if _format(found[0]) not in _FORMATS:
        raise InputError(f"{source}: unknown kind of list; known endings are {', '.join(_FORMATS)}, also with .gz")
    first = _first_batch(found)
    if first is None:
        raise InputError(f"{source}: the list is empty; it needs at least one row with a URL")
    available = first.schema.names
    columns = [_require(settings.url_column, "url_column", available, source)]
    names = ["url"]
    if settings.caption_column is not None:
        columns.append(_require(settings.caption_column, "caption_column", available, source))
        names.append("caption")
    for name, setting in zip(columns, ("url_column", "caption_column"), strict=False):
        kind = first.schema.field(name).type
        if not pa.types.is_string(kind):
            raise InputError(f"{source}: column {name!r} holds {kind}, not text: set {setting} to another")
    extra = [name for name in available if name not in columns]
    taken = [name for name in extra if name in (*ADDED_COLUMNS, *EMBED_COLUMNS, *names)]
    if taken:
        raise InputError(f"{source}: column {taken[0]!r} is written by priorkit itself; rename or drop it in the list")
    return UrlList(source, tuple(found), (*columns, *extra), (*names, *extra))


def _first_batch(files: list[str]) -> pa.RecordBatch | None:
    """The first rows of a list; None where no file has any."""
    for path in files:
        try:
            for batch in _read_file(path):
                if batch.num_rows:
                    return batch
        except _READ_ERRORS as error:
            raise _unreadable(path, error) from error
    return None


def rows_digest(table: pa.Table) -> str:
    """SHA-256 of the values of all rows, in order; the same however the list is stored."""
    digest = hashlib.sha256()
    for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
        digest.update(repr(row).encode(errors="surrogatepass"))
    return digest.hexdigest()


def _to_table(batches: list[pa.RecordBatch]) -> pa.Table:
    table = pa.Table.from_batches(batches, schema=batches[0].schema)
    return table.combine_chunks()


def _is_list(path: str) -> bool:
    return _format(path) in _FORMATS and not path.rpartition("/")[2].startswith(".")


def _format(path: str) -> str:
    return path.removesuffix(".gz").rpartition(".")[2].lower()


def _require(column: str, setting: str, available: list[str], source: str) -> str:
    if column in available:
        return column
    nearest = difflib.get_close_matches(column, available, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    none = " (`--set download.caption_column=null` for none; a prior needs captions)" if "caption" in setting else ""
    raise InputError(
        f"{source}: no column {column!r}; {hint}The list has {', '.join(map(repr, available))}: set {setting}{none}"
    )


def _unreadable(path: str, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    return InputError(f"{path}: cannot be read as {_format(path)} ({error}); is it complete, and named as what it is?")


def _read_file(path: str) -> Iterator[pa.RecordBatch]:
    """Batches of one file; text and columns without a value have one type, however the file stores them."""
    for batch in _read_stored(path):
        names = batch.schema.names
        if len(set(names)) < len(names):
            raise ValueError(f"a column is named twice: {', '.join(names)}")
        columns = [column.cast(pa.string()) if _is_text(column.type) else column for column in batch.columns]
        for column in columns:
            column.validate(full=True)  # text that is not UTF-8
        yield pa.RecordBatch.from_arrays(columns, names=names)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _read_stored(path: str) -> Iterator[pa.RecordBatch]:
    kind = _format(path)
    fs, plain_path = fsspec.core.url_to_fs(path)
    with fs.open(plain_path, "rb") as raw:
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw)
        if kind == "parquet":
            yield from pq.ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS)
        elif kind in ("csv", "tsv"):
            yield from _read_delimited(file, "," if kind == "csv" else "\t")
        elif kind == "txt":
            lines = (line.decode("utf-8-sig" if number == 0 else "utf-8").strip() for number, line in enumerate(file))
            yield from _to_batches({"url": line} for line in lines if line)
        elif kind == "jsonl":
            yield from _to_batches(json.loads(line) for line in file if line.strip())
        else:
            rows = json.load(file)
            if not isinstance(rows, list):
                raise ValueError(f"expected a list of objects, got {rows!r:.80}")
            yield from _to_batches(iter(rows))


def _read_delimited(file: BinaryIO, delimiter: str) -> Iterator[pa.RecordBatch]:
    """Every column as text: a type guessed from the first block would fail on a later one."""
    header = file.readline().decode("utf-8-sig")
    if not header.strip():
        return
    names = next(_csv_rows(header, delimiter))
    try:
        reader = pyarrow.csv.open_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(column_names=names),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in names}),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):  # only a header
            return
        raise
    yield from reader


def _csv_rows(text: str, delimiter: str) -> Iterator[list[str]]:
    return csv.reader([text], delimiter=delimiter)


def _to_batches(rows: Iterator[Any]) -> Iterator[pa.RecordBatch]:
    """Rows of plain values as batches; a key that a row lacks is a null; the first batch names the columns."""
    held: list[dict[str, Any]] = []
    names: list[str] = []
    for row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"each row must be an object with a key for each column, got {row!r:.80}")
        held.append(row)
        if len(held) == _BATCH_ROWS:
            names = names or _keys(held)
            yield _to_batch(held, names)
            held = []
    if held:
        yield _to_batch(held, names or _keys(held))


def _keys(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _to_batch(rows: list[dict[str, Any]], names: list[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({name: [row.get(name) for row in rows] for name in names})
