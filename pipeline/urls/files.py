"""Streaming reader for one URL list file: txt, csv, tsv, json, jsonl or parquet, optionally compressed.

Invalid UTF-8 is replaced with U+FFFD. The row is kept, so that later rows keep their row numbers.
"""

from __future__ import annotations

import codecs
import collections
import contextlib
import csv
import hashlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..contract.arrow.parquet import open_parquet
from ..contract.arrow.types import plain_type
from ..contract.file_stamps import path_stamp
from .addresses import ListFile
from .compressed import COMPRESSION_ERRORS, MAGIC_BYTES, compression_of, open_compressed
from .count import FileCount, RowsError
from .delimited import GivenNames, looks_like_url, read_delimited
from .json_stream import column_rows, json_shape, json_values, rows_of_values, rows_under_key
from .plain_rows import BATCH_ROWS, json_lines, lines, to_batches
from .remote import open_address
from .settings import UrlListSettings

READ_ERRORS = (
    pa.ArrowException, ValueError, OverflowError, RecursionError, csv.Error, zipfile.BadZipFile, *COMPRESSION_ERRORS
)  # fmt: skip
"""Exceptions that pyarrow, json, and the decoders of text and of compressed files raise if a file is damaged or has the
wrong extension."""

_BUFFER_BYTES = 1 << 20
"""Read buffer size in bytes."""
_TAIL_BYTES = 1 << 16
"""Number of bytes read from the end of a Parquet file in the first request. They usually include the whole footer."""
_MAX_HASHED_BYTES = 16 << 20
"""Maximum size in bytes of a Parquet file that is hashed in full. Larger files are hashed only in part: the footer and
samples of the data."""
_SAMPLES, _SAMPLE_BYTES = 4, 1 << 16
"""Number of samples of a Parquet file larger than `_MAX_HASHED_BYTES`, and the size of each sample in bytes."""
_PEEK_BYTES = 256
"""Number of bytes at the start of a text file that are checked for signs of other formats."""

Unwanted = Callable[[int, int], bool]
"""Function that takes row numbers `first` and `last`, and returns True if rows `first` to `last - 1`, inclusive, can be
skipped."""


@dataclass(frozen=True)
class ListMark:
    """Row count, size and hash of a Parquet file in a URL list, together called the *mark* of the file.

    A later run compares the recorded mark with the file's new mark, to detect a change without reading all rows.
    """

    rows: int
    bytes: int
    sha256: str
    """SHA-256 of the whole file if its size is at most 16 MiB, otherwise of the footer and samples of the data."""
    modified: str | None = None
    """Modification time or object store tags (such as the ETag) of a file that was hashed only in part.

    None if the file was hashed in full. Also None if a later change to the file might leave this value the same, for
    example because a local file was written less than two seconds ago.
    """

    def is_certain(self, known: Mapping[str, Any] | None) -> bool:
        """Return True if it is certain that the file has not changed since an earlier run.

        This is the case if the marks of both runs are equal, and the file was hashed in full or `modified` is not None.
        If the result is False, the file may have changed, and its rows must be read to detect changes.

        Args:
            known: mark of the file from the manifest of the earlier run, as a dictionary; None if there is no mark.
        """
        return known == asdict(self) and (self.modified is not None or self.bytes <= _MAX_HASHED_BYTES)


@dataclass(frozen=True)
class FileHead:
    """Column names and types of a URL list file, and its mark (row count, size and hash) for detecting changes.

    They are read from the footer of an uncompressed Parquet file. For any other file, the columns are read from the
    first rows, and there is no mark.
    """

    schema: pa.Schema
    """Column names and types. Encoded Arrow types, such as dictionaries, are replaced by the type of their values."""
    has_rows: bool
    mark: ListMark | None
    """Mark of an uncompressed Parquet file; None for any other file, whose rows must be read to detect changes."""
    format: str
    """Format of the file, such as `csv`."""
    partitions: tuple[str, ...] = ()
    """Names of the columns that are stored in the names of the file's folders, and not in the file."""


def list_mark(path: str) -> ListMark:
    """Return the row count, size and hash of an uncompressed Parquet file. Large files are read only in part."""
    return _footer(path)[0]


def file_head(file: ListFile, settings: UrlListSettings) -> FileHead:
    """Return the columns of a URL list file, and its row count, size and hash if it is an uncompressed Parquet file.

    Large files are read only in part, except column-wise JSON files.
    """
    if file.format == "parquet" and file.compression is None:
        mark, schema = _footer(file.location)
        return _head(file, schema, mark.rows > 0, mark)
    schema = pa.schema([])
    with contextlib.closing(_read_stored(file, settings, _skip_nothing, FileCount())) as batches:
        for batch in batches:
            assert not isinstance(batch, int)
            schema = batch.schema
            if batch.num_rows:
                return _head(file, schema, True, None)
    return _head(file, schema, False, None)


def _head(file: ListFile, stored: pa.Schema, has_rows: bool, mark: ListMark | None) -> FileHead:
    schema = _plain_schema(stored)
    partitions = tuple(name for name, _ in file.partitions if name not in schema.names)
    for name in partitions:
        schema = schema.append(pa.field(name, pa.string()))
    return FileHead(schema, has_rows, mark, file.format, partitions)


def _footer(path: str) -> tuple[ListMark, pa.Schema]:
    fs, plain_path = open_address(path)
    size = int(fs.size(plain_path))
    stamp = path_stamp(fs, plain_path) if size > _MAX_HASHED_BYTES else None  # taken before the first read
    tail = fs.cat_file(plain_path, start=max(0, size - _TAIL_BYTES), end=size)
    footer = int.from_bytes(tail[-8:-4], "little") + 8
    if len(tail) < footer <= size:
        tail = fs.cat_file(plain_path, start=size - footer, end=size)
    metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + tail[-footer:]))
    digest = hashlib.sha256(tail[-footer:])
    length = max(0, size - footer)
    step, sample = (1 << 20, 1 << 20) if stamp is None else (length // _SAMPLES, _SAMPLE_BYTES)
    for start in range(0, length, step):
        digest.update(fs.cat_file(plain_path, start=start, end=min(start + sample, length)))
    modified = stamp.modified if stamp is not None and stamp.settled else None
    return ListMark(metadata.num_rows, size, digest.hexdigest(), modified), metadata.schema.to_arrow_schema()


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    repeated = [name for name, number in collections.Counter(schema.names).items() if number > 1]
    if repeated and not any(map(looks_like_url, schema.names)):  # a row instead of a header is reported as such
        raise RowsError(f"column {repeated[0]!r} is named twice; rename or remove one of the two")
    return pa.schema([(field.name, plain_type(field.type)) for field in schema])


def _skip_nothing(first: int, last: int) -> bool:
    return False


def read_file(
    file: ListFile, settings: UrlListSettings, unwanted: Unwanted = _skip_nothing, count: FileCount | None = None
) -> Iterator[pa.RecordBatch | int]:
    """Read a URL list file and yield its rows in batches. In place of skipped rows, yield their number as an integer.

    The batches have all columns of the file, with their original names, and the columns that are stored in the names
    of its folders.

    Args:
        file: file to read.
        settings: names of columns and quoting rules.
        unwanted: function that returns True for a range of rows to skip. It is called for each row group of a Parquet
            file. Other files are always read in full.
        count: row count to update while reading. After the last row, it is compared with the number of rows that were
            yielded or skipped.

    Raises:
        ValueError: the number of rows differs from the count.
        Any of `READ_ERRORS`: the file cannot be read.
    """
    count = FileCount() if count is None else count
    rows = 0
    for part in _read_stored(file, settings, unwanted, count):
        rows += part if isinstance(part, int) else part.num_rows
        yield part if isinstance(part, int) else _with_partitions(part, file)
    count.require(rows)


def _with_partitions(batch: pa.RecordBatch, file: ListFile) -> pa.RecordBatch:
    missing = [(name, value) for name, value in file.partitions if name not in batch.schema.names]
    if not missing:
        return batch
    columns = [pa.repeat(pa.scalar(value, pa.string()), batch.num_rows) for _, value in missing]
    names = [*batch.schema.names, *(name for name, _ in missing)]
    return pa.RecordBatch.from_arrays([*batch.columns, *columns], names=names)


@contextlib.contextmanager
def _open_stored(file: ListFile) -> Iterator[BinaryIO]:
    """Context manager that opens a file for reading, without decompressing it."""
    fs, path = open_address(file.location)
    try:
        raw = fs.open(path, "rb")
    except (NotImplementedError, RuntimeError) as error:  # zipfile raises these
        raise RowsError(f"the archive is encrypted, or compressed in an unknown way ({error})") from error
    with raw:
        yield raw


@contextlib.contextmanager
def _open_text(file: ListFile) -> Iterator[Any]:
    """Context manager that opens a text file as an `io.BufferedReader`, and decompresses it.

    Raises:
        RowsError: the file has another encoding or another format than its name says.
    """
    with _open_stored(file) as raw:
        plain = raw if file.compression is None else open_compressed(raw, file.compression)
        # remote file objects lack some io methods, which the adapter provides
        buffered = io.BufferedReader(_Readable(plain), _BUFFER_BYTES)
        if foreign := _foreign(buffered.peek(_PEEK_BYTES)[:_PEEK_BYTES]):
            raise RowsError(foreign)
        yield buffered


def _foreign(start: bytes) -> str | None:
    """Return an error message if the start of a file shows that it is no text file; otherwise None."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "it is UTF-16; store it as UTF-8"
    if compression := compression_of(start[:MAGIC_BYTES]):
        return f"it is compressed; add .{compression} to its name"
    if start.removeprefix(codecs.BOM_UTF8).lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return (
            "it is a web page; use the address of the file itself (on Hugging Face and GitHub, with /resolve/ or /raw/ "
            "in place of /blob/)"
        )
    return None


def _read_stored(
    file: ListFile, settings: UrlListSettings, unwanted: Unwanted, count: FileCount
) -> Generator[pa.RecordBatch | int, None, None]:
    if file.format == "parquet":
        with _open_stored(file) as raw:
            yield from _read_parquet(raw, file.compression, unwanted, count)
        return
    if file.format == "json":
        yield from to_batches(_json_rows(file, settings.url_column), count)
        return
    with _open_text(file) as text:
        if file.format in ("csv", "tsv"):
            is_quoted = file.format == "csv" if settings.quoting == "auto" else settings.quoting == "rfc4180"
            names = settings.column_names
            given = None if names is None else GivenNames(names, settings.url_column)
            yield from read_delimited(text, "," if file.format == "csv" else "\t", is_quoted, count, given)
        elif file.format == "txt":
            yield from to_batches(({"url": line} for _, line in lines(text)), count)
        else:
            yield from to_batches(json_lines(text), count)


def _json_rows(file: ListFile, url_column: str) -> Iterator[Any]:
    """Yield the rows of a JSON file, in whichever way they are arranged."""

    @contextlib.contextmanager
    def opened() -> Iterator[io.TextIOWrapper]:
        with _open_text(file) as stored, io.TextIOWrapper(stored, "utf-8-sig", "replace") as text:
            yield text

    with _open_text(file) as stored:
        first = stored.peek(_PEEK_BYTES)[:_PEEK_BYTES].removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    kind, key = "rows", ""
    if first == b"{":
        with opened() as text:
            shape = json_shape(text, url_column)
            kind, key = shape.kind, shape.key
    with opened() as text:
        if kind == "key":
            yield from rows_under_key(text, key)
        else:
            readers = {"rows": json_values, "columns": column_rows, "values": rows_of_values}
            yield from readers[kind](text)


class _Readable(io.RawIOBase):
    """Adapter that turns a file object with only a `read` method into a raw stream for `io.BufferedReader`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        data = self._file.read(len(target))
        target[: len(data)] = data
        return len(data)


def _read_parquet(
    raw: BinaryIO, compression: str | None, unwanted: Unwanted, count: FileCount
) -> Iterator[pa.RecordBatch | int]:
    """Read a Parquet file and yield its rows in batches. In place of a skipped row group, yield its number of rows.

    Args:
        raw: the open file.
        compression: compression of the file as a whole, or None. A compressed file is unpacked to a temporary file
            before it is read.
        unwanted: function that returns True for a range of rows to skip. It is called for each row group.
        count: object to store the row count from the Parquet footer in.
    """
    with tempfile.TemporaryFile() as unpacked:
        if compression is not None:  # Parquet readers start at the end of the file, which a stream may not reach
            shutil.copyfileobj(open_compressed(raw, compression), unpacked, _BUFFER_BYTES)
        # pre_buffer=False: pre-buffering would keep all column chunks of a row group in memory
        file = open_parquet(raw if compression is None else unpacked, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        count.rows = file.metadata.num_rows
        first = 0
        for number in range(file.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            if unwanted(first, first + rows):
                yield rows
            else:
                yield from file.iter_batches(batch_size=BATCH_ROWS, row_groups=[number], use_threads=False)
            first += rows
