"""URL lists -> rows: one file or a folder of them, local or remote, as a stream that is cut into shards."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .config import DownloadSettings
from .errors import InputError
from .storage import open_location
from .url_files import FORMATS, READ_ERRORS, FileMark, file_mark, list_format, read_file

ADDED_COLUMNS = ("key", "status", "error_message", "width", "height", "original_width", "original_height", "sha256")
"""Columns that download adds to each row."""

EMBED_COLUMNS = ("image_path", "image_norm", "text_norm")
"""Columns that embed adds to each row."""

_MARK_THREADS = 16
"""Files whose marks are read at once: each waits for remote storage a few times."""
_NO_VALUE = -1


@dataclass(frozen=True)
class UrlList:
    """A list of URLs whose columns have been checked.

    Rows come with the column `url`, then `caption` if there are captions, then all other columns of the list.
    """

    source: str
    files: tuple[str, ...]
    columns: tuple[str, ...]
    """Columns of the files in the order in which rows are given."""
    schema: pa.Schema
    """What those columns are called in the rows, and their types."""
    marks: tuple[FileMark | None, ...]
    """Of each file; None where it has to be read to be known."""

    @property
    def rows(self) -> int | None:
        """Rows of the list; None where they have to be counted by reading."""
        counts = [mark.rows for mark in self.marks if mark is not None]
        return sum(counts) if len(counts) == len(self.marks) else None

    def marks_json(self) -> list[dict[str, Any] | None]:
        """The marks as a manifest holds them."""
        return [None if mark is None else asdict(mark) for mark in self.marks]

    def unchanged_rows(self, marks: Sequence[Mapping[str, Any] | None]) -> int:
        """Rows at the start of the list that lie in the files that a manifest holds the marks of."""
        rows = 0
        for mark, known in zip(self.marks, marks, strict=False):
            if mark is None or not mark.is_certain(known):
                break
            rows += mark.rows
        return rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, in the order of the files and of the rows in them."""
        for part in self._parts(lambda first, last: False):
            assert not isinstance(part, int)
            yield part

    def shards(
        self, rows_per_shard: int, unwanted: Callable[[int], bool] = lambda index: False
    ) -> Iterator[tuple[int, pa.Table]]:
        """Rows cut into shards of `rows_per_shard`, the last one shorter, each with its number.

        Args:
            unwanted: whether a shard shall be left out. Its rows are not even read where that can be helped.
        """

        def all_unwanted(first: int, last: int) -> bool:
            return all(map(unwanted, range(first // rows_per_shard, -(-last // rows_per_shard))))

        held: list[pa.RecordBatch] = []
        row = 0
        for part in self._parts(all_unwanted):
            if isinstance(part, int):
                row += part
                continue
            offset = 0
            while offset < part.num_rows:
                index = row // rows_per_shard
                piece = part.slice(offset, (index + 1) * rows_per_shard - row)
                if not unwanted(index):
                    held.append(piece)
                offset += piece.num_rows
                row += piece.num_rows
                if held and row % rows_per_shard == 0:
                    yield index, _to_table(held)
                    held = []
        if held:
            yield row // rows_per_shard, _to_table(held)

    def _parts(self, unwanted: Callable[[int, int], bool]) -> Iterator[pa.RecordBatch | int]:
        """Rows in order, and the numbers of those between them that were left out."""
        row = 0
        for path, mark in zip(self.files, self.marks, strict=True):
            if mark is not None and unwanted(row, row + mark.rows):
                row += mark.rows
                yield mark.rows
                continue
            start = row
            try:
                for part in read_file(path, lambda first, last, start=start: unwanted(start + first, start + last)):  # type: ignore[misc]
                    row += part if isinstance(part, int) else part.num_rows
                    yield part if isinstance(part, int) else self._arranged(path, part)
            except READ_ERRORS as error:
                raise _unreadable(path, error) from error

    def _arranged(self, path: str, batch: pa.RecordBatch) -> pa.RecordBatch:
        missing = [name for name in self.columns if name not in batch.schema.names]
        if missing and batch.num_rows:
            raise InputError(f"{path}: no column {missing[0]!r}, which {self.files[0]} has")
        if missing:
            return pa.RecordBatch.from_pylist([], schema=self.schema)
        columns = []
        for name, kind in zip(self.columns, self.schema.types, strict=True):
            try:
                columns.append(batch.column(name).cast(kind))
            except pa.ArrowException as error:
                raise InputError(
                    f"{path}: column {name!r} is {kind} in the first rows of the list, which later ones do not fit "
                    f"({error}); store it as one kind, or drop it"
                ) from error
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def open_url_list(source: str, settings: DownloadSettings) -> UrlList:
    """Find the files of a list and check its columns.

    Raises:
        InputError: the list is missing, empty, unreadable or lacks a column.
    """
    fs, path = open_location(source)
    if list_format(path) in FORMATS and fs.isfile(path):  # first, since the search for an HTTP folder loads the file
        found = [fs.unstrip_protocol(path)]
    elif fs.isdir(path):
        found = [fs.unstrip_protocol(name) for name in sorted(fs.find(path)) if _is_list(name)]
        if not found:
            raise InputError(f"{source}: no list of URLs in this folder (looked for {', '.join(FORMATS)}, also .gz)")
    elif not fs.exists(path):
        raise InputError(f"{source}: no such file or folder; name a list of URLs ({', '.join(FORMATS)})")
    else:
        raise InputError(f"{source}: unknown kind of list; known endings are {', '.join(FORMATS)}, also with .gz")
    first = _first_batch(found)
    if first is None:
        raise InputError(f"{source}: the list is empty; it needs at least one row with a URL")
    available = first.schema.names
    columns = [_require(settings.url_column, "url_column", available, source)]
    names = ["url"]
    if settings.caption_column is not None:
        columns.append(_require(settings.caption_column, "caption_column", available, source))
        names.append("caption")
    if settings.hash_column is not None and _require(settings.hash_column, "hash_column", available, source) in columns:
        raise InputError(f"{source}: hash_column {settings.hash_column!r} is the column of URLs or captions itself")
    for name, setting in zip(columns, ("url_column", "caption_column"), strict=False):
        kind = first.schema.field(name).type
        if not pa.types.is_string(kind):
            raise InputError(f"{source}: column {name!r} holds {kind}, not text: set {setting} to another")
    extra = [name for name in available if name not in columns]
    taken = [name for name in extra if name in (*ADDED_COLUMNS, *EMBED_COLUMNS, *names)]
    if taken:
        raise InputError(f"{source}: column {taken[0]!r} is written by priorkit itself; rename or drop it in the list")
    columns += extra
    kinds = [first.schema.field(name).type for name in columns]
    schema = pa.schema(list(zip([*names, *extra], kinds, strict=True)))
    with ThreadPoolExecutor(_MARK_THREADS) as threads:
        marks = tuple(threads.map(_mark, found))
    return UrlList(source, tuple(found), tuple(columns), schema, marks)


def _first_batch(files: list[str]) -> pa.RecordBatch | None:
    """The first rows of a list; None where no file has any."""
    for path in files:
        try:
            for batch in read_file(path, lambda first, last: False):
                if not isinstance(batch, int) and batch.num_rows:
                    return batch
        except READ_ERRORS as error:
            raise _unreadable(path, error) from error
    return None


def _mark(path: str) -> FileMark | None:
    try:
        return file_mark(path)
    except READ_ERRORS as error:
        raise _unreadable(path, error) from error


def rows_digest(table: pa.Table) -> str:
    """SHA-256 of the names and values of all columns; the same however the list is stored and its rows are held.

    Of a column of text: the lengths of all values, -1 for none, then all values in one. Of a column of numbers: which
    there are, then the values in 64 bits. Of others: how Python writes each value.
    """
    digest = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        digest.update(f"{name}\0{len(column)}\0".encode())
        if pa.types.is_string(column.type):
            digest.update(_plain(pc.fill_null(pc.binary_length(column), _NO_VALUE), "<i4"))
            for chunk in column.chunks:
                digest.update(_text_bytes(chunk.drop_null()))
        elif kind := _number_kind(column.type):
            digest.update(_plain(column.is_valid(), "u1"))
            digest.update(_plain(column.drop_null(), kind))
        else:
            for value in column.to_pylist():
                digest.update(f"{value!r}\0".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _number_kind(kind: pa.DataType) -> str | None:
    """As what numbers are hashed, so that their width in the file does not matter; None for what is no number."""
    if pa.types.is_uint64(kind):
        return "<u8"
    return "<i8" if pa.types.is_integer(kind) else "<f8" if pa.types.is_floating(kind) else None


def _plain(column: pa.ChunkedArray, kind: str) -> bytes:
    """Values without nulls, one after the other, each in as many bits as `kind` says."""
    values: np.ndarray = column.to_numpy().astype(kind)
    return values.tobytes()


def _text_bytes(texts: pa.Array) -> memoryview:
    """The bytes of texts without nulls, one after the other."""
    _, offsets, values = texts.buffers()
    if values is None or len(texts) == 0:
        return memoryview(b"")
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(values)[bounds[0] : bounds[-1]]


def _to_table(batches: list[pa.RecordBatch]) -> pa.Table:
    """The rows in memory of their own: a slice that is sent to a worker would take along what it was cut from."""
    table = pa.Table.from_batches(batches)
    return table.take(pa.array(np.arange(table.num_rows))).combine_chunks()


def _is_list(path: str) -> bool:
    return list_format(path) in FORMATS and not path.rpartition("/")[2].startswith(".")


def _require(column: str, setting: str, available: list[str], source: str) -> str:
    if column in available:
        return column
    nearest = difflib.get_close_matches(column, available, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    none = ", or null for none; a prior needs captions" if "caption" in setting else ""
    raise InputError(
        f"{source}: no column {column!r}; {hint}The list has {', '.join(map(repr, available))} (`--set "
        f"download.{setting}=NAME`{none})"
    )


def _unreadable(path: str, error: BaseException) -> InputError:
    if isinstance(error, InputError):
        return error
    return InputError(
        f"{path}: cannot be read as {list_format(path)} ({error}); is it complete, and named as what it is?"
    )
