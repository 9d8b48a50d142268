"""URL list reader: streams the rows of a local or remote file or folder, and splits them into shards."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ..contract.arrow.columns import plain_column
from ..contract.arrow.types import COLUMN_ERRORS
from ..contract.listing import list_files
from ..contract.storage import open_location
from ..errors import InputError
from .columns import ListColumns, choose_columns, require_headers
from .count import FileCount, RowsError
from .digest import rows_digest
from .files import FORMATS, READ_ERRORS, FileHead, ListMark, file_head, list_format, read_file
from .settings import Quoting, UrlListSettings

_MARK_THREADS = 16
"""Number of files whose heads are read concurrently. Each head takes a few requests to remote storage."""


@dataclass(frozen=True)
class UrlList:
    """URL list with validated columns.

    Each row has the column `url`, then `caption` if the list has captions, then the other kept columns.
    """

    source: str
    files: tuple[str, ...]
    columns: ListColumns
    earlier: tuple[ListColumns, ...]
    """Column sets the list had when it contained fewer files. Shards created at that time keep using them."""
    marks: tuple[ListMark | None, ...]
    """Mark of each uncompressed Parquet file; None for any other file, whose rows must be read to detect changes."""
    quoting: Quoting
    counts: dict[str, FileCount] = field(default_factory=dict, compare=False)
    """Row counts of the files read so far, keyed by path."""

    @property
    def schema(self) -> pa.Schema:
        """Column names and types of the rows."""
        return self.columns.schema

    def notes(self) -> dict[str, Any]:
        """Return notes for the summary: row count, renamed columns, and counts that suggest the list was misread."""
        left_out: collections.Counter[str] = collections.Counter()
        for count in self.counts.values():
            left_out.update(count.left_out)
        return {
            "rows": self.counted_rows,
            "renamed_columns": self.columns.renamed,
            "quoted_fields": sum(count.quoted_fields for count in self.counts.values()),
            "late_keys": dict(left_out.most_common()),
        }

    @property
    def counted_rows(self) -> int | None:
        """Number of rows, counted as lines or JSON values, or taken from Parquet footers.

        None if a file without a mark has not been read to its end.
        """
        total = 0
        for path, mark in zip(self.files, self.marks, strict=True):
            count = self.counts.get(path)
            if mark is None and (count is None or not count.whole):
                return None
            total += mark.rows if mark is not None else count.rows if count is not None else 0
        return total

    @property
    def rows(self) -> int | None:
        """Number of rows in the list, from Parquet footers; None if any file must be read to count its rows."""
        counts = [mark.rows for mark in self.marks if mark is not None]
        return sum(counts) if len(counts) == len(self.marks) else None

    def marks_json(self) -> list[dict[str, Any] | None]:
        """Return the marks as JSON-serialisable values for a manifest."""
        return [None if mark is None else asdict(mark) for mark in self.marks]

    def unchanged_rows(self, marks: Sequence[Mapping[str, Any] | None]) -> int:
        """Return the number of rows at the start of the list that have certainly not changed.

        Args:
            marks: marks of the files in an earlier run, from its manifest.
        """
        rows = 0
        for mark, known in zip(self.marks, marks, strict=False):
            if mark is None or not mark.is_certain(known):
                break
            rows += mark.rows
        return rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows, file by file."""
        for part in self._parts(lambda first, last: False):
            assert not isinstance(part, int)
            yield part

    def shards(
        self, rows_per_shard: int, unwanted: Callable[[int], bool] = lambda index: False
    ) -> Iterator[tuple[int, pa.Table]]:
        """Yield the index and the rows of each shard.

        Args:
            rows_per_shard: number of rows per shard; the last shard may have fewer.
            unwanted: returns True for the index of a shard to skip. Parquet files and row groups that contain only rows
                of skipped shards are not read.
        """

        def all_unwanted(first: int, last: int) -> bool:
            return all(map(unwanted, range(first // rows_per_shard, -(-last // rows_per_shard))))

        pieces: list[pa.RecordBatch] = []
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
                    pieces.append(piece)
                offset += piece.num_rows
                row += piece.num_rows
                if pieces and row % rows_per_shard == 0:
                    yield index, _to_table(pieces)
                    pieces = []
        if pieces:
            yield row // rows_per_shard, _to_table(pieces)

    def _parts(self, unwanted: Callable[[int, int], bool]) -> Iterator[pa.RecordBatch | int]:
        """Yield the rows in batches, in list order. For each skipped range of rows, yield its row count."""
        row = 0
        for path, mark in zip(self.files, self.marks, strict=True):
            if mark is not None and unwanted(row, row + mark.rows):
                row += mark.rows
                yield mark.rows
                continue
            yield from self._file_parts(path, row, unwanted)
            row += self.counts[path].rows

    def _file_parts(
        self, path: str, start: int, unwanted: Callable[[int, int], bool]
    ) -> Iterator[pa.RecordBatch | int]:
        count = FileCount()
        try:
            for part in read_file(path, lambda first, last: unwanted(start + first, start + last), self.quoting, count):
                yield part if isinstance(part, int) else self._arranged(path, part)
        except READ_ERRORS as error:
            raise _unreadable(path, error) from error
        self.counts[path] = count

    def _arranged(self, path: str, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Convert a batch to the columns of the list.

        Raises:
            InputError: a value does not fit the type of its column.
        """
        columns = []
        for name, kind in zip(self.columns.sources, self.schema.types, strict=True):
            try:
                index = batch.schema.get_field_index(name)
                columns.append(plain_column(batch.column(index), kind) if index >= 0 else pa.nulls(len(batch), kind))
            except COLUMN_ERRORS as error:
                raise InputError(
                    f"{path}: column {name!r} is {kind} in the first rows of "
                    f"the list, which later ones do not fit ({error}); store it as one type, or leave it out with "
                    "download.keep_columns"
                ) from error
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def had_digest(self, table: pa.Table, digest: str) -> bool:
        """Return True if the rows have this digest when reduced to one of the column sets in `earlier`."""
        return any(
            rows_digest(narrowed) == digest
            for columns in self.earlier
            if (narrowed := _narrowed(table, columns.schema)) is not None
        )


def _narrowed(table: pa.Table, schema: pa.Schema) -> pa.Table | None:
    """Cast a table to a narrower schema; return None if its values do not fit."""
    try:
        return table.select(schema.names).cast(schema)
    except pa.ArrowException:
        return None


def open_url_list(source: str, settings: UrlListSettings) -> UrlList:
    """Find the files of a list and check its columns.

    Raises:
        InputError: the list is missing, empty or unreadable, or lacks a column.
    """
    _require_plain_address(source)
    fs, path = open_location(source)
    # the file is checked first, since testing whether an HTTP address is a folder would download it
    if list_format(path) in FORMATS and fs.isfile(path):
        files = [fs.unstrip_protocol(path)]
    elif fs.isdir(path):
        names = [name for name in list_files(fs, path) if list_format(name) in FORMATS]
        files = [fs.unstrip_protocol(f"{path.rstrip('/')}/{name}") for name in names]
        if not files:
            raise InputError(f"{source}: no list of URLs in this folder (looked for {', '.join(FORMATS)}, also .gz)")
    elif not fs.exists(path):
        raise InputError(f"{source}: no such file or folder; name a list of URLs ({', '.join(FORMATS)})")
    else:
        raise InputError(f"{source}: unknown kind of list; known endings are {', '.join(FORMATS)}, also with .gz")
    with ThreadPoolExecutor(_MARK_THREADS) as threads:
        heads = dict(zip(files, threads.map(lambda name: _head(name, settings.quoting), files), strict=True))
    require_headers(heads, settings.url_column)
    if not any(head.has_rows for head in heads.values()):
        raise InputError(f"{source}: the list is empty; it needs at least one row with a URL")
    *earlier, columns = choose_columns(source, heads, settings)
    marks = tuple(head.mark for head in heads.values())
    return UrlList(source, tuple(files), columns, tuple(earlier), marks, settings.quoting)


def _require_plain_address(source: str) -> None:
    """Check that the address is not chained (`::`) and has no query (`?`), so that it names a file and its format.

    Raises:
        InputError: the address is chained or has a query; the message explains how to read the list anyway.
    """
    if "::" in source:
        raise InputError(f"{source}: chained addresses (::) are not read; unpack the list first, and name the file")
    scheme, separator, rest = source.partition("://")
    name, mark, _ = rest.partition("?")
    if separator and mark and scheme in ("http", "https"):
        kind = list_format(name)
        target = name.rpartition("/")[2] if kind in FORMATS else "urls.csv"
        raise InputError(
            f"{source}: addresses with a query (?) are not read; download the list first (curl -L -o {target} "
            f"{scheme}://...), and name the file"
        )


def _head(path: str, quoting: Quoting) -> FileHead:
    try:
        return file_head(path, quoting)
    except READ_ERRORS as error:
        raise _unreadable(path, error) from error


def _to_table(batches: list[pa.RecordBatch]) -> pa.Table:
    """Copy the rows into a table. Without the copy, pickling a slice for a worker would send its whole batch."""
    table = pa.Table.from_batches(batches)
    return table.take(pa.array(np.arange(table.num_rows))).combine_chunks()


def _unreadable(path: str, error: BaseException) -> InputError:
    if isinstance(error, InputError):
        return error
    if isinstance(error, RowsError):
        return InputError(f"{path}: cannot be read as {list_format(path)}: {error}")
    return InputError(
        f"{path}: cannot be read as {list_format(path)} ({error}); is it complete, and named as what it is?"
    )
