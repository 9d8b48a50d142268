"""URL list in a local or remote file or folder. Its rows are streamed and split into shards."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ..contract.arrow.columns import plain_column
from ..contract.arrow.types import COLUMN_ERRORS, plain_type
from ..errors import InputError
from .addresses import ListFile, find_files
from .columns import ListColumns, choose_columns, require_headers, without_partitions
from .count import FileCount, RowsError
from .digest import rows_digest
from .files import READ_ERRORS, FileHead, ListMark, file_head, read_file
from .guess import guess_columns
from .nested import field_type, find_column, is_list, repeat_rows
from .remote import shown_address
from .settings import UrlListSettings

_MARK_THREADS = 16
"""Number of threads that read file headers and footers in parallel. Each file takes a few requests, which are slow on
remote storage."""


@dataclass(frozen=True)
class UrlList:
    """URL list whose files and columns have been checked. `open_url_list` creates it.

    Rows are read only when they are requested. Their columns are `url`, `caption` if the list has captions, and all
    other kept columns, in this order.
    """

    source: str
    files: tuple[ListFile, ...]
    columns: ListColumns
    earlier: tuple[ListColumns, ...]
    """Sets of columns that the list had when it consisted of only the first file, the first two files, and so on.

    Only sets that differ from `columns` are included. A shard that was downloaded when the list had fewer files may use
    one of these sets.
    """
    marks: tuple[ListMark | None, ...]
    """Row count, size and hash of each uncompressed Parquet file; None for any other file.

    All items are None if a row can have several captions, because the files then have fewer rows than the list.
    """
    settings: UrlListSettings
    """Settings for reading the files, with the guessed columns."""
    guessed: dict[str, str]
    """Guessed columns, keyed by the setting that they replace, such as `url_column`."""
    has_several_captions: bool
    """True if the rows of a file can have several captions, each of which becomes a row of the list."""
    counts: dict[str, FileCount] = field(default_factory=dict, compare=False)
    """Row count of each file that has been read, keyed by path."""

    @property
    def schema(self) -> pa.Schema:
        """Column names and types of the rows."""
        return self.columns.schema

    def notes(self) -> dict[str, Any]:
        """Return facts about the list for the summary of a run, keyed by name.

        - `rows`: number of rows; None if not all rows have been counted.
        - `renamed_columns`: new names of renamed columns, keyed by the original name.
        - `quoted_fields`: number of fields whose enclosing quotes were kept as part of the text.
        - `late_keys`: number of rows with each ignored JSON key, keyed by the JSON key.
        - `guessed_columns`: guessed columns, keyed by the setting that they replace.

        Quoted fields or ignored keys suggest that the list was misread.
        """
        left_out: collections.Counter[str] = collections.Counter()
        for count in self.counts.values():
            left_out.update(count.left_out)
        return {
            "rows": self.counted_rows,
            "renamed_columns": self.columns.renamed,
            "quoted_fields": sum(count.quoted_fields for count in self.counts.values()),
            "late_keys": dict(left_out.most_common()),
            "guessed_columns": self.guessed,
        }

    @property
    def counted_rows(self) -> int | None:
        """Number of rows in the list, or None as long as it is unknown.

        The number of rows in an uncompressed Parquet file is read from its footer. The rows of any other file are
        counted while they are read, so the total is unknown until every such file has been read to its end.
        """
        total = 0
        for file, mark in zip(self.files, self.marks, strict=True):
            count = self.counts.get(file.path)
            if mark is None and (count is None or not count.whole):
                return None
            total += mark.rows if mark is not None else count.list_rows if count is not None else 0
        return total

    @property
    def rows(self) -> int | None:
        """Number of rows according to the Parquet footers; None unless all files are uncompressed Parquet."""
        counts = [mark.rows for mark in self.marks if mark is not None]
        return sum(counts) if len(counts) == len(self.marks) else None

    def marks_json(self) -> list[dict[str, Any] | None]:
        """Return the mark (row count, size and hash) of each file as a dictionary, for storage in the manifest.

        An item is None if the file has no mark, because it is not an uncompressed Parquet file.
        """
        return [None if mark is None else asdict(mark) for mark in self.marks]

    def unchanged_rows(self, marks: Sequence[Mapping[str, Any] | None]) -> int:
        """Return the number of rows at the start of the list that are certain to be unchanged since an earlier run.

        These are the rows of all files before the first file that may have changed. A file without a mark (any file
        other than uncompressed Parquet) is treated as changed.

        Args:
            marks: value of `marks_json` in the earlier run, from its manifest.
        """
        rows = 0
        for mark, known in zip(self.marks, marks, strict=False):
            if mark is None or not mark.is_certain(known):
                break
            rows += mark.rows
        return rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows of the list in batches, one file after another."""
        for part in self._parts(lambda first, last: False):
            assert not isinstance(part, int)
            yield part

    def shards(
        self, rows_per_shard: int, unwanted: Callable[[int], bool] = lambda index: False
    ) -> Iterator[tuple[int, pa.Table]]:
        """Split the rows of the list into shards, and yield the index and the rows of each shard that is not skipped.

        Args:
            rows_per_shard: number of rows per shard; the last shard may have fewer.
            unwanted: function that returns True for the index of a shard to skip. Parquet files and row groups that
                contain only rows of skipped shards are not read.
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
        """Yield the rows of the list in batches. In place of a skipped file or row group, yield its number of rows.

        Args:
            unwanted: function that takes row numbers `first` and `last`, and returns True if rows `first` to `last - 1`
                of the list can be skipped.
        """
        row = 0
        for file, mark in zip(self.files, self.marks, strict=True):
            if mark is not None and unwanted(row, row + mark.rows):
                row += mark.rows
                yield mark.rows
                continue
            yield from self._file_parts(file, row, unwanted)
            row += self.counts[file.path].list_rows

    def _file_parts(
        self, file: ListFile, start: int, unwanted: Callable[[int, int], bool]
    ) -> Iterator[pa.RecordBatch | int]:
        count = FileCount()

        def is_unwanted(first: int, last: int) -> bool:
            # the rows of a file with several captions per row are more rows of the list
            return not self.has_several_captions and unwanted(start + first, start + last)

        try:
            for part in read_file(file, self.settings, is_unwanted, count):
                yield part if isinstance(part, int) else self._arranged(file, part, count)
        except READ_ERRORS as error:
            raise _unreadable(file, error) from error
        self.counts[file.path] = count

    def _arranged(self, file: ListFile, batch: pa.RecordBatch, count: FileCount) -> pa.RecordBatch:
        """Convert a batch that was read from one file, so that it has the columns of the whole list.

        The columns are selected, renamed, converted to the list's types, and reordered to match the list. Columns that
        the file lacks are filled with nulls. A row with several captions becomes several rows.

        Args:
            file: file that the batch was read from, for error messages.
            batch: rows with the columns of the file.
            count: row count of the file, which is updated if rows are added.

        Raises:
            InputError: a value cannot be converted to the type of its column.
        """
        columns: list[pa.Array] = []
        lists: int | None = None
        try:
            for at, (name, kind) in enumerate(zip(self.columns.sources, self.schema.types, strict=True)):
                column = find_column(batch, name)
                if column is None:
                    columns.append(pa.nulls(len(batch), kind))
                elif self.schema.field(at).name == "caption" and is_list(plain_type(column.type)):
                    lists = at
                    columns.append(column)
                else:
                    columns.append(plain_column(column, kind))
            if lists is not None:
                name, kind = self.columns.sources[lists], pa.string()
                columns = repeat_rows(columns, lists)
                count.added += len(columns[lists]) - batch.num_rows
        except COLUMN_ERRORS as error:
            raise InputError(
                f"{file.path}: column {name!r} is {kind} in the first rows of the list, which later ones do not fit "
                f"({error}); store it as one type, or leave it out with download.keep_columns"
            ) from error
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def had_digest(self, table: pa.Table, digest: str) -> bool:
        """Return True if a shard has the same rows that an earlier run read when the list consisted of fewer files.

        The list may have had fewer columns or narrower types at that time. The rows are therefore converted to each set
        of columns in `earlier`, and the `rows_digest` of each result is compared with `digest`.

        Args:
            table: rows of the shard, with the current columns of the list.
            digest: digest that the earlier run recorded for the shard.
        """
        return any(
            rows_digest(narrowed) == digest
            for columns in self.earlier
            if (narrowed := _narrowed(table, columns.schema)) is not None
        )


def _narrowed(table: pa.Table, schema: pa.Schema) -> pa.Table | None:
    """Return the columns of a table that are in `schema`, converted to the types in `schema`.

    Return None if a value does not fit its type.
    """
    try:
        return table.select(schema.names).cast(schema)
    except pa.ArrowException:
        return None


def open_url_list(source: str, settings: UrlListSettings) -> UrlList:
    """Open a URL list: find its files, read and check their columns, and return the list. Rows are not read yet.

    Args:
        source: path or URL of a file, of a folder that contains files, or of the files that a pattern matches; see
            `find_files`.
        settings: column names and quoting rules.

    Raises:
        InputError: the list is missing, empty or unreadable, or a configured column is missing.
    """
    files = find_files(source)
    source = shown_address(source)
    with ThreadPoolExecutor(_MARK_THREADS) as threads:
        known = list(threads.map(lambda file: _head(file, settings), files))
    heads = {file.path: head for file, head in zip(files, known, strict=True)}
    require_headers(heads, settings)
    if not any(head.has_rows for head in heads.values()):
        raise InputError(f"{source}: the list is empty; it needs at least one row with a URL")
    guessed: dict[str, str] = {}
    if settings.guess_columns:
        guessed = guess_columns(settings, next(head.schema for head in heads.values() if head.has_rows))
        settings = settings.model_copy(update=guessed)
    chosen = choose_columns(source, heads, settings)
    *earlier, columns = chosen
    earlier += without_partitions(chosen, heads)
    several = any(_has_captions_in_lists(head.schema, settings.caption_column) for head in heads.values())
    marks = tuple(None if several else head.mark for head in heads.values())
    return UrlList(source, tuple(files), columns, tuple(earlier), marks, settings, guessed, several)


def _has_captions_in_lists(schema: pa.Schema, caption_column: str | None) -> bool:
    kind = None if caption_column is None else field_type(schema, caption_column)
    return kind is not None and is_list(kind)


def _head(file: ListFile, settings: UrlListSettings) -> FileHead:
    try:
        return file_head(file, settings)
    except READ_ERRORS as error:
        raise _unreadable(file, error) from error


def _to_table(batches: list[pa.RecordBatch]) -> pa.Table:
    """Combine batches into a table with its own copy of the rows.

    The batches are slices of larger batches, whose memory they share. Without the copy, sending the table to a worker
    process would pickle the whole larger batches.
    """
    table = pa.Table.from_batches(batches)
    return table.take(pa.array(np.arange(table.num_rows))).combine_chunks()


def _unreadable(file: ListFile, error: BaseException) -> InputError:
    if isinstance(error, InputError):
        return error
    if isinstance(error, RowsError):
        return InputError(f"{file.path}: cannot be read as {file.format}: {error}")
    return InputError(
        f"{file.path}: cannot be read as {file.format} ({error}); is it complete, and named as what it is?"
    )
