"""Streaming reader for one URL list file: txt, csv, tsv, json, jsonl or parquet, optionally compressed (`.gz`).

Invalid UTF-8 is replaced with U+FFFD. The row is kept, so that later rows keep their row numbers.
"""

from __future__ import annotations

import codecs
import collections
import contextlib
import csv
import gzip
import hashlib
import io
import shutil
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from ..contract.arrow.parquet import open_parquet
from ..contract.arrow.types import plain_type
from ..contract.file_stamps import path_stamp
from .count import FileCount, RowsError
from .delimited import read_delimited
from .plain_rows import BATCH_ROWS, json_line, json_values, lines, to_batches
from .settings import Quoting

FORMATS = ("parquet", "csv", "tsv", "txt", "jsonl", "json")
READ_ERRORS = (
    pa.ArrowException, OSError, EOFError, ValueError, OverflowError, RecursionError, csv.Error, zlib.error
)  # fmt: skip
"""Exceptions that pyarrow, gzip, json and text decoders raise if a file is damaged or has the wrong extension."""

_BUFFER_BYTES = 1 << 20
"""Read buffer size in bytes."""
_TAIL_BYTES = 1 << 16
"""Number of bytes read from the end of a Parquet file in the first request. They usually include the whole footer."""
_MAX_HASHED_BYTES = 16 << 20
"""Maximum size in bytes of a Parquet file that is hashed in full. Larger files are hashed only in part: the footer and
samples of the data."""
_SAMPLES, _SAMPLE_BYTES = 4, 1 << 16
"""Number of samples of a Parquet file larger than `_MAX_HASHED_BYTES`, and the size of each sample in bytes."""
_FOREIGN = {
    codecs.BOM_UTF16_LE: "it is UTF-16; store it as UTF-8",
    codecs.BOM_UTF16_BE: "it is UTF-16; store it as UTF-8",
    b"\x1f\x8b": "it is compressed; add .gz to its name",
}
"""Error messages for files that cannot be read as text, keyed by the first two bytes of the file."""

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


def list_format(path: str) -> str:
    """Return the extension of a file in lower case, ignoring a final `.gz`: for example, `csv` for `urls.CSV.gz`.

    The extension may be missing from `FORMATS`, in which case the file cannot be read as a URL list.
    """
    return path.removesuffix(".gz").rpartition(".")[2].lower()


def list_mark(path: str) -> ListMark | None:
    """Return the row count, size and hash of an uncompressed Parquet file; None for any other file.

    Large files are read only in part.
    """
    return _footer(path)[0] if path.endswith(".parquet") else None


def file_head(path: str, quoting: Quoting) -> FileHead:
    """Return the columns of a URL list file, and its row count, size and hash if it is an uncompressed Parquet file.

    Large files are read only in part.
    """
    if path.endswith(".parquet"):
        mark, schema = _footer(path)
        return FileHead(_plain_schema(schema), mark.rows > 0, mark)
    schema = pa.schema([])
    with contextlib.closing(_read_stored(path, _skip_nothing, quoting, FileCount())) as batches:
        for batch in batches:
            assert not isinstance(batch, int)
            schema = _plain_schema(batch.schema)
            if batch.num_rows:
                return FileHead(schema, True, None)
    return FileHead(schema, False, None)


def _footer(path: str) -> tuple[ListMark, pa.Schema]:
    fs, plain_path = fsspec.core.url_to_fs(path)
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
    if repeated := [name for name, number in collections.Counter(schema.names).items() if number > 1]:
        raise RowsError(f"column {repeated[0]!r} is named twice; rename or remove one of the two")
    return pa.schema([(field.name, plain_type(field.type)) for field in schema])


def _skip_nothing(first: int, last: int) -> bool:
    return False


def read_file(
    path: str, unwanted: Unwanted = _skip_nothing, quoting: Quoting = "auto", count: FileCount | None = None
) -> Iterator[pa.RecordBatch | int]:
    """Read a URL list file and yield its rows in batches. In place of skipped rows, yield their number as an integer.

    The batches have all columns of the file, with their original names.

    Args:
        path: path or URL of the file.
        unwanted: function that returns True for a range of rows to skip. It is called for each row group of a Parquet
            file. Other files are always read in full.
        quoting: quoting rules for csv and tsv files.
        count: row count to update while reading. After the last row, it is compared with the number of rows that were
            yielded or skipped.

    Raises:
        ValueError: the number of rows differs from the count.
        Any of `READ_ERRORS`: the file cannot be read.
    """
    count = FileCount() if count is None else count
    rows = 0
    for part in _read_stored(path, unwanted, quoting, count):
        rows += part if isinstance(part, int) else part.num_rows
        yield part
    count.require(rows)


def _read_stored(
    path: str, unwanted: Unwanted, quoting: Quoting, count: FileCount
) -> Generator[pa.RecordBatch | int, None, None]:
    kind = list_format(path)
    fs, plain_path = fsspec.core.url_to_fs(path)
    with fs.open(plain_path, "rb") as raw:
        if kind == "parquet":
            yield from _read_parquet(raw, path.endswith(".gz"), unwanted, count)
            return
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw)
        # remote file objects lack some io methods, which the adapter provides
        file = cast(BinaryIO, io.BufferedReader(_Readable(file), _BUFFER_BYTES))
        if foreign := _FOREIGN.get(file.peek(2)[:2]):  # type: ignore[attr-defined]
            raise RowsError(foreign)
        if kind in ("csv", "tsv"):
            is_quoted = kind == "csv" if quoting == "auto" else quoting == "rfc4180"
            yield from read_delimited(file, "," if kind == "csv" else "\t", is_quoted, count)
        elif kind == "txt":
            yield from to_batches(({"url": line} for _, line in lines(file)), count)
        elif kind == "jsonl":
            yield from to_batches((json_line(number, line) for number, line in lines(file)), count)
        else:
            with io.TextIOWrapper(file, "utf-8-sig", "replace") as text:
                yield from to_batches(json_values(text), count)


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
    raw: BinaryIO, compressed: bool, unwanted: Unwanted, count: FileCount
) -> Iterator[pa.RecordBatch | int]:
    """Read a Parquet file and yield its rows in batches. In place of a skipped row group, yield its number of rows.

    Args:
        raw: the open file.
        compressed: True if the file is compressed with gzip. It is then unpacked to a temporary file before it is read.
        unwanted: function that returns True for a range of rows to skip. It is called for each row group.
        count: object to store the row count from the Parquet footer in.
    """
    with tempfile.TemporaryFile() as unpacked:
        if compressed:  # Parquet readers start at the end of the file, and the gzip stream may not be seekable
            shutil.copyfileobj(gzip.GzipFile(fileobj=raw), unpacked, _BUFFER_BYTES)
        # pre_buffer=False: pre-buffering would keep all column chunks of a row group in memory
        file = open_parquet(unpacked if compressed else raw, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        count.rows = file.metadata.num_rows
        first = 0
        for number in range(file.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            if unwanted(first, first + rows):
                yield rows
            else:
                yield from file.iter_batches(batch_size=BATCH_ROWS, row_groups=[number], use_threads=False)
            first += rows
