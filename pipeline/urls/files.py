"""One file of a URL list -> batches of rows, as a stream: txt, csv, tsv, json, jsonl or parquet, also `.gz`.

Text that is not UTF-8 is kept with U+FFFD in place of its bad bytes: a row of the list is never lost, nor moved.
"""

from __future__ import annotations

import codecs
import collections
import contextlib
import csv
import gzip
import hashlib
import io
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, TextIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from ..contract.arrow.parquet import open_parquet
from ..contract.arrow.types import plain_type
from ..contract.file_stamps import path_stamp
from .count import FileCount, RowsError
from .delimited import read_delimited
from .settings import Quoting

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
_KIND_NAMES: dict[type, str] = {
    str: "text", bool: "booleans", int: "numbers", float: "numbers", list: "lists", dict: "objects"
}  # fmt: skip
_FOREIGN = {
    codecs.BOM_UTF16_LE: "it is UTF-16; store it as UTF-8",
    codecs.BOM_UTF16_BE: "it is UTF-16; store it as UTF-8",
    b"\x1f\x8b": "it is compressed; add .gz to its name",
}
"""First bytes of what is no list as it stands, and what to do about it."""

Unwanted = Callable[[int, int], bool]
"""Whether nobody wants the rows of a file from one number up to another, so that they need not be read."""


@dataclass(frozen=True)
class ListMark:
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


@dataclass(frozen=True)
class FileHead:
    """Columns of a file, from a parquet footer or the first rows of another file."""

    schema: pa.Schema
    """Names and plain types."""
    has_rows: bool
    mark: ListMark | None
    """None where the file has to be read to be known."""


def list_format(path: str) -> str:
    """What a file is by its name; its ending may not be one of FORMATS."""
    return path.removesuffix(".gz").rpartition(".")[2].lower()


def list_mark(path: str) -> ListMark | None:
    """The mark of a parquet file, from a few reads; None of other files, which have to be read whole."""
    return _footer(path)[0] if path.endswith(".parquet") else None


def file_head(path: str, quoting: Quoting) -> FileHead:
    """Columns of a file, from a few reads."""
    if path.endswith(".parquet"):
        mark, schema = _footer(path)
        return FileHead(_plain_schema(schema), mark.rows > 0, mark)
    schema = pa.schema([])
    with contextlib.closing(_read_stored(path, _all_wanted, quoting, FileCount())) as batches:
        for batch in batches:
            assert not isinstance(batch, int)
            schema = _plain_schema(batch.schema)
            if batch.num_rows:
                return FileHead(schema, True, None)
    return FileHead(schema, False, None)


def _footer(path: str) -> tuple[ListMark, pa.Schema]:
    fs, plain_path = fsspec.core.url_to_fs(path)
    size = int(fs.size(plain_path))
    stamp = path_stamp(fs, plain_path) if size > _WHOLE_BYTES else None  # before anything is read
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
    if twice := [name for name, number in collections.Counter(schema.names).items() if number > 1]:
        raise RowsError(f"column {twice[0]!r} is named twice; rename or remove one of the two")
    return pa.schema([(field.name, plain_type(field.type)) for field in schema])


def _all_wanted(first: int, last: int) -> bool:
    return False


def read_file(
    path: str, unwanted: Unwanted = _all_wanted, quoting: Quoting = "auto", count: FileCount | None = None
) -> Iterator[pa.RecordBatch | int]:
    """Batches of one file as it stores them, and the numbers of rows left out between them.

    Args:
        quoting: of csv and tsv.
        count: what is counted beside the reading; compared with the rows at the end of the file.

    Raises:
        ValueError: the rows that were read are not as many as the file has.
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
        file = cast(BinaryIO, io.BufferedReader(_Readable(file), _BUFFER_BYTES))  # what a server sends is no real file
        if foreign := _FOREIGN.get(file.peek(2)[:2]):  # type: ignore[attr-defined]
            raise RowsError(foreign)
        if kind in ("csv", "tsv"):
            is_quoted = kind == "csv" if quoting == "auto" else quoting == "rfc4180"
            yield from read_delimited(file, "," if kind == "csv" else "\t", is_quoted, count)
        elif kind == "txt":
            yield from _to_batches(({"url": line} for _, line in _lines(file)), count)
        elif kind == "jsonl":
            yield from _to_batches((_json_line(number, line) for number, line in _lines(file)), count)
        else:
            with io.TextIOWrapper(file, "utf-8-sig", "replace") as text:
                yield from _to_batches(_json_values(text), count)


class _Readable(io.RawIOBase):
    """Any file that can be read to its end, seekable or not."""

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
    """Row groups one after the other, those left out that nobody wants."""
    with tempfile.TemporaryFile() as unpacked:
        if compressed:  # a parquet file is read from its end, which a stream does not let us
            shutil.copyfileobj(gzip.GzipFile(fileobj=raw), unpacked, _BUFFER_BYTES)
        # its own way to buffer would hold the column chunks of a row group whole
        file = open_parquet(unpacked if compressed else raw, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        count.rows = file.metadata.num_rows
        first = 0
        for number in range(file.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            if unwanted(first, first + rows):
                yield rows
            else:
                yield from file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[number], use_threads=False)
            first += rows


def _lines(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers and without the white space around them.

    A carriage return alone ends a line too, but is not counted, as in most editors.
    """
    for number, line in enumerate(file, start=1):
        for part in line.split(b"\r"):
            if text := part.decode("utf-8-sig" if number == 1 else "utf-8", "replace").strip():
                yield number, text


def _json_line(number: int, line: str) -> Any:
    """The value of one line.

    Raises:
        RowsError: the line is no JSON; names it.
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        problem = error.msg.removesuffix(" at")
        raise RowsError(f"line {number:,} is no JSON: {problem} at character {error.pos + 1:,}") from error


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
            if len(held) - position > _LONGEST_JSON_ROW:
                raise RowsError("a JSON value has more than 64 MB; write a list of objects, one for each row") from None
            if not more:
                raise
            held, position = held[position:] + more, 0
            continue
        yield value


def _to_batches(rows: Iterator[Any], count: FileCount) -> Iterator[pa.RecordBatch]:
    """Rows of plain values as batches; a key that a row lacks is a null; the first batch names the columns."""
    held: list[dict[str, Any]] = []
    names: list[str] = []
    for row in rows:
        count.rows += 1
        if isinstance(row, str):
            row = {"url": row}
        if not isinstance(row, dict):
            raise RowsError(f"each row must be a URL, or an object with a key for each column, got {row!r:.80}")
        held.append(row)
        if len(held) == _BATCH_ROWS:
            names = names or _keys(held)
            yield _to_batch(held, names, count)
            held = []
    if count.rows == 1:
        _require_row(held[0])
    if held:
        yield _to_batch(held, names or _keys(held), count)


def _require_row(value: dict[str, Any]) -> None:
    """Refuse a file whose only value holds all rows.

    Raises:
        RowsError: says how to write it as rows.
    """
    lists = {name: items for name, items in value.items() if isinstance(items, list) and items}
    if not lists or any(isinstance(text, str) and "://" in text for text in value.values()):
        return
    for name, items in lists.items():
        if isinstance(items[0], dict):
            raise RowsError(
                f"its rows are inside {name!r}; write that list alone, as `jq .{name} FILE > rows.json` does"
            )
    raise RowsError(
        "it is one object of columns, not one for each row; "
        "pandas.DataFrame(json.load(open(FILE))).to_parquet('rows.parquet') writes it as rows"
    )


def _keys(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _to_batch(rows: list[dict[str, Any]], names: list[str], count: FileCount) -> pa.RecordBatch:
    known = set(names)
    for row in rows:
        if not known.issuperset(row):
            count.left_out.update(row.keys() - known)
    return pa.RecordBatch.from_arrays([_column(name, [row.get(name) for row in rows]) for name in names], names=names)


def _column(name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except UnicodeEncodeError:  # JSON can write halves of UTF-16 pairs, which are no text
        return pa.array([_without_halves(value) for value in values])
    except (pa.ArrowException, OverflowError) as error:
        kinds = dict.fromkeys(type(value) for value in values if value is not None)
        if not all(issubclass(kind, str | int | float) for kind in kinds):
            found = " and ".join(_KIND_NAMES.get(kind, kind.__name__) for kind in kinds)
            raise RowsError(f"column {name!r} holds {found}; store it as one type ({error})") from error
        # such as numbers beside text, or beyond 64 bits
        return pa.array([_without_halves(_scalar_text(value)) for value in values], pa.string())


def _scalar_text(value: Any) -> str | None:
    """A value as text: a number or boolean as JSON writes it."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _without_halves(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_halves(item) for item in value]
    if isinstance(value, dict):
        return {_without_halves(key): _without_halves(item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
