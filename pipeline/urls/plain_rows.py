"""Readers for txt and jsonl files, and conversion of parsed rows to Arrow batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from ..json_text import parse_json
from .count import FileCount, RowsError

BATCH_ROWS = 10_000
"""Maximum number of rows per Arrow batch."""
_KIND_NAMES: dict[type, str] = {
    str: "text", bool: "booleans", int: "numbers", float: "numbers", list: "lists", dict: "objects"
}  # fmt: skip
"""Names for Python types in error messages."""


def lines(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Yield the line number and the text of each line, without leading and trailing whitespace. Skip empty lines.

    A carriage return without a line feed also ends a line, but only line feeds increase the line number. Bytes that are
    not valid UTF-8 are replaced by U+FFFD.
    """
    for number, line in enumerate(file, start=1):
        for part in line.split(b"\r"):
            if text := part.decode("utf-8-sig" if number == 1 else "utf-8", "replace").strip():
                yield number, text


def json_line(number: int, line: str) -> Any:
    """Parse one line of JSON.

    Args:
        number: line number, for the error message.
        line: text to parse.

    Raises:
        RowsError: the line is not valid JSON, or is nested too deeply.
    """
    try:
        return parse_json(line)
    except json.JSONDecodeError as error:
        problem = error.msg.removesuffix(" at")
        raise RowsError(f"line {number:,} is no JSON: {problem} at character {error.pos + 1:,}") from error
    except ValueError as error:
        raise RowsError(f"line {number:,} cannot be read: {error}") from error


def json_lines(file: BinaryIO) -> Iterator[Any]:
    """Yield the value in each line of a jsonl file.

    Raises:
        RowsError: a line is not valid JSON, or the only line is an object that contains all rows.
    """
    count = 0
    value: Any = None
    for number, line in lines(file):
        value = json_line(number, line)
        count += 1
        yield value
    if count == 1 and isinstance(value, dict):
        _require_row(value)


def _require_row(value: dict[str, Any]) -> None:
    """Check that the only JSON object in a jsonl file is one row, and does not contain all rows of the list.

    An object is rejected if at least one value is a non-empty list, and no value is a string that contains `://`.

    Args:
        value: the object.

    Raises:
        RowsError: the object contains all rows.
    """
    has_lists = any(isinstance(items, list) and items for items in value.values())
    if has_lists and not any(isinstance(text, str) and "://" in text for text in value.values()):
        raise RowsError("its only line is one object that holds all rows; name it .json, and its rows are read")


def to_batches(rows: Iterator[Any], count: FileCount) -> Iterator[pa.RecordBatch]:
    """Convert rows to Arrow batches and yield the batches.

    The columns are the keys of the rows in the first batch. Other keys in later rows are ignored. If a row lacks one
    of the columns, its value is null.

    Args:
        rows: rows of the file. Each row is a URL, or a dictionary with one key per column.
        count: object that counts the rows, and the rows with each ignored key.

    Raises:
        RowsError: a row is neither a string nor a dictionary, or the values of a column have incompatible types.
    """
    batch: list[dict[str, Any]] = []
    names: list[str] = []
    for row in rows:
        count.rows += 1
        if isinstance(row, str):
            row = {"url": row}
        if not isinstance(row, dict):
            raise RowsError(
                f"row {count.rows:,}: expected a URL, or an object with a key for each column, got {row!r:.80}"
            )
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            names = names or _keys(batch)
            yield _to_batch(batch, names, count)
            batch = []
    if batch:
        yield _to_batch(batch, names or _keys(batch), count)


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
    except UnicodeEncodeError:  # JSON strings can contain lone surrogates, which UTF-8 cannot encode
        return pa.array([_without_surrogates(value) for value in values])
    except (pa.ArrowException, OverflowError) as error:
        kinds = dict.fromkeys(type(value) for value in values if value is not None)
        if not all(issubclass(kind, str | int | float) for kind in kinds):
            names = " and ".join(_KIND_NAMES.get(kind, kind.__name__) for kind in kinds)
            raise RowsError(f"column {name!r} holds {names}; store it as one type ({error})") from error
        # for example, a column that mixes numbers and text, or integers wider than 64 bits
        return pa.array([_without_surrogates(_as_text(value)) for value in values], pa.string())


def _as_text(value: Any) -> str | None:
    """Convert a number or boolean to a string in JSON format. Return strings and None unchanged."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
