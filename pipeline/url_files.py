"""One file of a URL list -> batches of rows, as a stream: txt, csv, tsv, json, jsonl or parquet, also `.gz`.

Text that is not UTF-8 is kept with U+FFFD in place of its bad bytes: a row of the list is never lost, nor moved.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, TextIO, cast

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from .file_stamps import path_stamp

FORMATS = ("parquet", "csv", "tsv", "txt", "jsonl", "json")
READ_ERRORS = (
    pa.ArrowException, OSError, EOFError, ValueError, OverflowError, RecursionError, csv.Error, zlib.error
)  # fmt: skip
"""What a damaged or misnamed file raises, from pyarrow, gzip, json and the decoding of text."""

_BATCH_ROWS = 10_000
_BUFFER_BYTES = 1 << 20
_JSON_CHARS = 1 << 20
_LONGEST_JSON_ROW = 64 << 20
_TAIL_BYTES = 1 << 16
_WHOLE_BYTES = 16 << 20
_SAMPLES, _SAMPLE_BYTES = 4, 1 << 16
_JSON_BETWEEN = re.compile(r"[\s,]*")
_FOREIGN = {
    codecs.BOM_UTF16_LE: "it is UTF-16; store it as UTF-8",
    codecs.BOM_UTF16_BE: "it is UTF-16; store it as UTF-8",
    b"\x1f\x8b": "it is compressed; add .gz to its name",
}
"""First bytes of what is no list as it stands, and what to do about it."""
_LAST_CELL = "\0the end"

Unwanted = Callable[[int, int], bool]
"""Whether nobody wants the rows of a file from one number up to another, so that they need not be read."""


@dataclass(frozen=True)
class FileMark:
    """By what a parquet file is known again without reading its rows."""

    rows: int
    bytes: int
    sha256: str
    """Of its footer and of samples of its pages; of the whole file up to 16 MB."""
    modified: str | None = None
    """Modification time, or an object store's tags, of a file of which only samples are hashed; None where a later
    change may have the same."""

    def is_certain(self, known: Mapping[str, Any] | None) -> bool:
        """Whether the file is certain to be the one that a manifest has this mark of; if not, its rows decide."""
        return known == asdict(self) and (self.modified is not None or self.bytes <= _WHOLE_BYTES)


def list_format(path: str) -> str:
    """What a file is by its name; its ending may not be one of FORMATS."""
    return path.removesuffix(".gz").rpartition(".")[2].lower()


def file_mark(path: str) -> FileMark | None:
    """The mark of a parquet file, from a few reads; None of other files, which have to be read whole."""
    if not path.endswith(".parquet"):
        return None
    fs, plain_path = fsspec.core.url_to_fs(path)
    size = int(fs.size(plain_path))
    stamp = path_stamp(fs, plain_path) if size > _WHOLE_BYTES else None  # before anything is read
    tail = fs.cat_file(plain_path, start=max(0, size - _TAIL_BYTES), end=size)
    footer = int.from_bytes(tail[-8:-4], "little") + 8
    if len(tail) < footer <= size:
        tail = fs.cat_file(plain_path, start=size - footer, end=size)
    rows = pq.read_metadata(pa.BufferReader(b"PAR1" + tail[-footer:])).num_rows
    digest = hashlib.sha256(tail[-footer:])
    length = max(0, size - footer)
    step, sample = (1 << 20, 1 << 20) if stamp is None else (length // _SAMPLES, _SAMPLE_BYTES)
    for start in range(0, length, step):
        digest.update(fs.cat_file(plain_path, start=start, end=min(start + sample, length)))
    modified = stamp.modified if stamp is not None and stamp.settled else None
    return FileMark(rows, size, digest.hexdigest(), modified)


def read_file(path: str, unwanted: Unwanted) -> Iterator[pa.RecordBatch | int]:
    """Batches of one file, and the numbers of rows left out between them.

    Text and columns without a value have one type, however the file stores them.
    """
    for part in _read_stored(path, unwanted):
        if isinstance(part, int):
            yield part
            continue
        names = part.schema.names
        if len(set(names)) < len(names):
            raise ValueError(f"a column is named twice: {', '.join(names)}")
        columns = [_checked(column) for column in part.columns]
        yield pa.RecordBatch.from_arrays(columns, names=names)


def _checked(column: pa.Array) -> pa.Array:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        column.validate(full=True)
        return column
    text = column.cast(pa.string())
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        stored = text.cast(pa.binary())
        stored.validate(full=True)  # damage of another kind
        values = (None if value is None else value.decode("utf-8", "replace") for value in stored.to_pylist())
        return pa.array(values, pa.string())
    return text


def _read_stored(path: str, unwanted: Unwanted) -> Iterator[pa.RecordBatch | int]:
    kind = list_format(path)
    fs, plain_path = fsspec.core.url_to_fs(path)
    with fs.open(plain_path, "rb") as raw:
        if kind == "parquet":
            yield from _read_parquet(raw, path.endswith(".gz"), unwanted)
            return
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw)
        if foreign := _FOREIGN.get(file.read(2)):
            raise ValueError(foreign)
        file.seek(0)
        if kind in ("csv", "tsv"):
            yield from _read_delimited(file, "," if kind == "csv" else "\t")
        elif kind == "txt":
            yield from _to_batches({"url": line} for line in _lines(file))
        elif kind == "jsonl":
            yield from _to_batches(json.loads(line) for line in _lines(file))
        else:
            with io.TextIOWrapper(file, "utf-8-sig", "replace") as text:
                yield from _to_batches(_json_values(text))


def _read_parquet(raw: BinaryIO, compressed: bool, unwanted: Unwanted) -> Iterator[pa.RecordBatch | int]:
    """Row groups one after the other, those left out that nobody wants."""
    with tempfile.TemporaryFile() as unpacked:
        if compressed:  # a parquet file is read from its end, which a stream does not let us
            shutil.copyfileobj(gzip.GzipFile(fileobj=raw), unpacked, _BUFFER_BYTES)
        # its own way to buffer would hold the column chunks of a row group whole
        file = pq.ParquetFile(unpacked if compressed else raw, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        first = 0
        for number in range(file.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            if unwanted(first, first + rows):
                yield rows
            else:
                yield from file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[number])
            first += rows


def _read_delimited(file: BinaryIO, delimiter: str) -> Iterator[pa.RecordBatch]:
    """Every column as text: a type guessed from the first block would fail on a later one."""
    lines = (line.decode("utf-8-sig", "replace") for line in file)
    header = next((line for line in lines if line.strip()), None)
    if header is None:
        return
    names = next(csv.reader([header], delimiter=delimiter))
    try:
        reader = pyarrow.csv.open_csv(
            _OneRowMore(file, f"\n{delimiter.join([_LAST_CELL] * len(names))}\n".encode()),
            read_options=pyarrow.csv.ReadOptions(column_names=names, block_size=_BUFFER_BYTES),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                check_utf8=False, column_types={name: pa.string() for name in names}
            ),
        )
        held = reader.read_next_batch()
        for batch in reader:
            if batch.num_rows:
                yield held
                held = batch
    except pa.ArrowInvalid as error:
        what = "a row has more than 1 MB" if "straddling" in str(error) else error
        raise ValueError(
            f"{what}; a field with {delimiter!r}, a quote or a line break in it needs quotes around it"
        ) from error
    last = held.num_rows - 1
    if held.column(0)[last].as_py() != _LAST_CELL:
        raise ValueError(f"a quote is never closed, in the row that begins with {held.column(0)[last].as_py()!r:.80}")
    yield held.slice(0, last)


class _OneRowMore(io.RawIOBase):
    """A file with a row at its end; a quote in the file that is never closed swallows it, and so is seen."""

    def __init__(self, file: BinaryIO, row: bytes) -> None:
        self._file, self._row = file, row

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if data := self._file.read(size):
            return data
        row, self._row = self._row, b""
        return row


def _lines(file: BinaryIO) -> Iterator[str]:
    """Lines that are not empty, without the white space around them."""
    for number, line in enumerate(file):
        if text := line.decode("utf-8-sig" if number == 0 else "utf-8", "replace").strip():
            yield text


def _json_values(file: TextIO) -> Iterator[Any]:
    """The values of a JSON list, or JSON values one after the other, with no more than a few in memory."""
    decoder = json.JSONDecoder()
    held = file.read(_JSON_CHARS).lstrip()
    is_list = held.startswith("[")
    held = held.removeprefix("[")
    position = 0
    while True:
        between = _JSON_BETWEEN.match(held, position)
        assert between is not None
        position = between.end()
        if is_list and held.startswith("]", position):
            if (held[position + 1 :] + file.read(_JSON_CHARS)).strip():
                raise ValueError("there is more after the end of the list")
            return
        try:
            value, position = decoder.raw_decode(held, position)
        except ValueError:
            more = file.read(_JSON_CHARS)
            if not more and not is_list and not held[position:]:
                return
            if not more or len(held) - position > _LONGEST_JSON_ROW:
                raise
            held, position = held[position:] + more, 0
            continue
        yield value


def _to_batches(rows: Iterator[Any]) -> Iterator[pa.RecordBatch]:
    """Rows of plain values as batches; a key that a row lacks is a null; the first batch names the columns."""
    held: list[dict[str, Any]] = []
    names: list[str] = []
    for row in rows:
        if isinstance(row, str):
            row = {"url": row}
        if not isinstance(row, dict):
            raise ValueError(f"each row must be a URL, or an object with a key for each column, got {row!r:.80}")
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
    return pa.RecordBatch.from_arrays([_column(name, [row.get(name) for row in rows]) for name in names], names=names)


def _column(name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except UnicodeEncodeError:  # JSON can write halves of UTF-16 pairs, which are no text
        return pa.array([_without_halves(value) for value in values])
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"column {name!r}: {error}") from error


def _without_halves(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_halves(item) for item in value]
    if isinstance(value, dict):
        return {_without_halves(key): _without_halves(item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
