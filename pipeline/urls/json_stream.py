"""Streaming reader for JSON files that contain rows, rows under a key, or columns.

At most one value and one block of text are in memory at a time. Columns follow each other in the file, so they are
first copied to temporary files, from which the rows are then put together.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal, TextIO

from ..json_text import parse_json
from .count import RowsError

_READ_CHARACTERS = 1 << 20
"""Number of characters to read from a JSON file at a time."""
_MAX_VALUE_CHARACTERS = 64 << 20
"""Maximum length of a JSON value in characters. A longer value is probably not a single row."""
_MAX_COLUMNS = 200
"""Maximum number of columns of a column-wise file. Each column needs an open temporary file."""
_SPOOLED_VALUES = 10_000
"""Number of values of a column that are written to its temporary file at a time."""
_SEPARATORS = re.compile(r"[\s,]*")
"""Regular expression for any number of commas and whitespace characters, which separate JSON values."""
_NUMBER_REST = re.compile(r"[0-9eE+.-]*")
"""Regular expression for characters that can follow the beginning of a number."""
_JQ_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Regular expression for a key that a jq filter can contain without quotes."""


class JsonStream:
    """Incremental reader of JSON text. Commas are treated as whitespace.

    Args:
        file: text file.
        text: text that was already read from the file.
    """

    def __init__(self, file: TextIO, text: str = "") -> None:
        self._file = file
        self._buffer = text
        self._position = 0
        self._decoder = json.JSONDecoder()

    def _read_more(self) -> bool:
        """Append the next block of the file to the buffer. Return False at the end of the file."""
        data = self._file.read(_READ_CHARACTERS)
        self._buffer = self._buffer[self._position :] + data
        self._position = 0
        return bool(data)

    def peek(self) -> str:
        """Return the next character that is no whitespace, or an empty string at the end of the file."""
        while True:
            separators = _SEPARATORS.match(self._buffer, self._position)
            assert separators is not None
            self._position = separators.end()
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._read_more():
                return ""

    def skip(self, character: str) -> bool:
        """Skip the next character if it is `character`. Return True if it was skipped."""
        if self.peek() != character:
            return False
        self._position += 1
        return True

    def expect(self, character: str) -> None:
        """Skip `character`, or raise ValueError if another character is next."""
        if not self.skip(character):
            raise ValueError(f"{character!r} is missing before {self.peek() or 'the end of the file'!r}")

    def value(self) -> Any:
        """Read the next value.

        Raises:
            ValueError: the value is not valid JSON.
            RowsError: the value is longer than `_MAX_VALUE_CHARACTERS`.
        """
        self.peek()
        return self._decode()

    def _decode(self) -> Any:
        """Read the value at the position, like `value`. The position is at its first character."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except ValueError:
                if len(self._buffer) - self._position > _MAX_VALUE_CHARACTERS:
                    raise RowsError(
                        "a JSON value has more than 64 MB; write a list of objects, one for each row"
                    ) from None
                if not self._read_more():
                    raise
                continue
            if isinstance(value, int | float) and self._may_continue(end) and self._read_more():
                continue
            self._position = end
            return value

    def _may_continue(self, end: int) -> bool:
        """Return True if a number that ends at index `end` of the buffer may continue in the next block."""
        rest = _NUMBER_REST.match(self._buffer, end)
        return rest is not None and rest.end() == len(self._buffer)

    def items(self) -> Iterator[Any]:
        """Yield the values of a list up to its closing bracket. Its opening bracket has already been skipped."""
        for number in itertools.count(1):
            if (start := self.peek()) == "]":
                break
            if not start:
                raise RowsError(f"the file ends within a list, after value {number - 1:,}")
            try:
                yield self._decode()
            except json.JSONDecodeError as error:
                problem = error.msg.removesuffix(" at")
                raise RowsError(f"value {number:,} of a list is no JSON: {problem}, or the file ends in it") from error
        self._position += 1

    def object_keys(self) -> Iterator[str]:
        """Yield the keys of an object up to its closing brace. Its opening brace has already been skipped.

        The caller reads the value of each key before it asks for the next key.
        """
        while not self.skip("}"):
            key = self.value()
            if not isinstance(key, str):
                raise ValueError(f"{key!r:.40} is no key")
            self.expect(":")
            yield key

    def pass_value(self) -> None:
        """Skip the next value. A list or an object may have any length."""
        if self.skip("["):
            for _ in self.items():
                pass
        elif self.skip("{"):
            for _ in self.object_keys():
                self.value()
        else:
            self.value()

    def require_end(self, kind: str) -> None:
        """Check that nothing follows at the end of the file.

        Args:
            kind: name of what has ended, for the error message.
        """
        if self.peek():
            raise ValueError(f"there is more after the end of the {kind}")


def json_values(file: TextIO) -> Iterator[Any]:
    """Yield the values in a file that contains a JSON list or a sequence of JSON values.

    Raises:
        ValueError: a value is not valid JSON, or text follows the end of the list.
        RowsError: a value is longer than `_MAX_VALUE_CHARACTERS`.
    """
    stream = JsonStream(file)
    if stream.skip("["):
        yield from stream.items()
        stream.require_end("list")
    while stream.peek():
        yield stream.value()


@dataclass(frozen=True)
class JsonShape:
    """Arrangement of the rows in a JSON file that begins with an object."""

    kind: Literal["rows", "key", "columns", "values"]
    """`rows` if each object is a row, `key` if the rows are in a list under a key of the only object, `columns` if each
    key of the only object has the values of one column, or `values` if each of its keys has one row."""
    key: str = ""
    """Key of the list of rows."""


def json_shape(file: TextIO, url_column: str) -> JsonShape:
    """Find out how the rows are arranged in a JSON file whose first value is an object.

    A file with several values has one row per value. In a single object, the rows are in the first list of objects that
    have the URL column. If there is no such list, an object that contains a URL is a row itself, unless it has a list
    of objects that contain URLs too. In any other object, the rows are in the first list of objects. An object without
    such a list has lists or objects as columns. If it has several objects, each with a URL, they are rows.

    Args:
        file: text file, positioned at its start.
        url_column: name of the column of URLs.

    Raises:
        RowsError: the only list of objects is inside an object under a key.
    """
    text = file.read(_READ_CHARACTERS)
    with contextlib.suppress(ValueError):  # raised if the object continues after the first block
        _, end = json.JSONDecoder().raw_decode(text, len(text) - len(text.lstrip()))
        if (text[end:] + file.read(_READ_CHARACTERS)).strip():
            return JsonShape("rows")
    return _shape_of_object(JsonStream(file, text), url_column)


def _is_url(key: str, value: Any, url_column: str) -> bool:
    return isinstance(value, str) and (key == url_column or "://" in value)


def _shape_of_object(stream: JsonStream, url_column: str) -> JsonShape:
    table: JsonShape | None = None
    nested = ""
    has_url, has_columns, has_urls_in_table = False, False, False
    values, rows = 0, 0
    stream.expect("{")
    for key in stream.object_keys():
        values += 1
        start = stream.peek()
        if start in ("[", "{") and key == url_column:
            return JsonShape("columns")
        if stream.skip("["):
            if stream.peek() == "{":
                first = stream.value()
                if _has_field(first, url_column):
                    return JsonShape("key", key)
                table = table or JsonShape("key", key)
                has_urls_in_table |= "://" in json.dumps(first)
            elif stream.peek() != "]":
                has_columns = True
            for _ in stream.items():
                pass
        elif stream.skip("{"):
            row_has_url = False
            for position, label in enumerate(stream.object_keys()):
                has_columns |= position == 0 and label == "0"  # as pandas labels the rows of each column
                value = stream.value()
                row_has_url |= _is_url(label, value, url_column)
                if isinstance(value, list) and value and isinstance(value[0], dict):
                    nested = nested or _jq_filter(key, label)
            rows += row_has_url
        else:
            has_url |= _is_url(key, stream.value(), url_column)
    if has_url and not has_urls_in_table:
        return JsonShape("rows")
    if table is not None or has_columns:
        return table or JsonShape("columns")
    if nested and not rows:
        raise RowsError(f"its list of objects is two levels deep; write it alone: jq {nested} OLD.json > NEW.json")
    return JsonShape("values" if rows == values > 1 else "rows")


def _jq_filter(key: str, label: str) -> str:
    """Return the jq filter for a value two levels deep, quoted for a shell, because both keys come from the file."""
    if all(_JQ_NAME.fullmatch(name) for name in (key, label)):
        return f".{key}.{label}"
    return shlex.quote(f".[{json.dumps(key)}][{json.dumps(label)}]")


def _has_field(value: Any, name: str) -> bool:
    """Return True if an object has a key, or the nested key `a.b`."""
    if not isinstance(value, dict):
        return False
    outer, _, inner = name.partition(".")
    return name in value or (bool(inner) and _has_field(value.get(outer), inner))


def rows_under_key(file: TextIO, key: str) -> Iterator[Any]:
    """Yield the rows of a file that contains one object, in which the list under `key` contains the rows.

    Raises:
        ValueError: the file is not valid JSON, or text follows the end of the object.
    """
    stream = JsonStream(file)
    stream.expect("{")
    for name in stream.object_keys():
        if name == key:
            stream.expect("[")
            yield from stream.items()
        else:
            stream.pass_value()
    stream.require_end("object")


def rows_of_values(file: TextIO) -> Iterator[Any]:
    """Yield the rows of a file that contains one object, in which each key has one row. The keys are left out.

    Raises:
        ValueError: the file is not valid JSON, or text follows the end of the object.
    """
    stream = JsonStream(file)
    stream.expect("{")
    for _ in stream.object_keys():
        yield stream.value()
    stream.require_end("object")


class _Column:
    """Values of one column of a column-wise file, in a temporary file.

    Args:
        file: temporary file for the values.
        labelled: True if the column is an object whose keys label the rows; False if it is a list.
    """

    def __init__(self, file: IO[str], labelled: bool) -> None:
        self._file = file
        self.labelled = labelled
        self.rows = 0
        self._labels = hashlib.sha256()

    def fill(self, stream: JsonStream) -> None:
        """Copy the values from a stream, which is positioned after the opening bracket or brace."""
        values = self._labelled_values(stream) if self.labelled else stream.items()
        while block := list(itertools.islice(values, _SPOOLED_VALUES)):
            self._file.write(json.dumps(block) + "\n")
            self.rows += len(block)
        self._file.seek(0)

    def _labelled_values(self, stream: JsonStream) -> Iterator[Any]:
        for label in stream.object_keys():
            self._labels.update(f"{label}\0".encode(errors="surrogatepass"))
            yield stream.value()

    @property
    def labels(self) -> str:
        """Hash of the labels of the rows."""
        return self._labels.hexdigest()

    def values(self) -> Iterator[Any]:
        for line in self._file:
            yield from parse_json(line)


def column_rows(text: TextIO) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file that contains one object, in which each key has the values of one column.

    The values are a list, or an object with a key for each row, as pandas writes it. If some values are lists, only
    lists are columns. The columns are copied to temporary files, which need as much disk space as the list.

    Raises:
        ValueError: the file is not valid JSON, or text follows the end of the object.
        RowsError: the columns have different numbers or labels of rows.
    """
    with contextlib.ExitStack() as stack:
        columns: dict[str, _Column] = {}
        stream = JsonStream(text)
        stream.expect("{")
        for name in stream.object_keys():
            labelled = stream.peek() == "{"
            if stream.skip("{") or stream.skip("["):
                if len(columns) == _MAX_COLUMNS:
                    raise RowsError(
                        f"it is one object of more than {_MAX_COLUMNS} columns; write a list of objects, one a row"
                    )
                file = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
                columns[name] = _Column(file, labelled)
                columns[name].fill(stream)
            else:
                stream.value()
        stream.require_end("object")
        if not all(column.labelled for column in columns.values()):
            columns = {name: column for name, column in columns.items() if not column.labelled}
        _require_equal_rows(columns)
        for values in zip(*(column.values() for column in columns.values()), strict=True):
            yield dict(zip(columns, values, strict=True))


def _require_equal_rows(columns: dict[str, _Column]) -> None:
    first = next(iter(columns))
    for name, column in columns.items():
        if column.rows != columns[first].rows:
            raise RowsError(
                f"its columns have different lengths: {first!r} has {columns[first].rows:,} values, {name!r} "
                f"{column.rows:,}; write a list of objects, one for each row"
            )
        if column.labels != columns[first].labels:
            raise RowsError(
                f"the rows of {name!r} have other labels than those of {first!r}; write a list of objects, one for "
                "each row"
            )
