"""Functions that convert Arrow columns written by other tools to plain Arrow types and to strings.

Bytes that are not valid UTF-8 are handled in one of three ways:

- `plain_column` and `carried` prepare columns that are copied to the output. They replace invalid bytes with U+FFFD.
- `key_texts` reads the columns that identify samples. It replaces invalid bytes with escape sequences.
- `as_text` and `group_names` convert the whole value to hexadecimal digits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import InputError
from ...explain import one_line
from .types import COLUMN_ERRORS, can_be_text, is_bytes, is_list_view, is_run_ends, is_text, is_view, plain_type

_SIMPLE = (
    pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_null, pa.types.is_binary,
    pa.types.is_fixed_size_binary
)  # fmt: skip
"""Tests for the Arrow types whose values Python can always represent.

`plain_column` converts the values of all other types to Python objects, to find values that Python cannot represent.
"""
_escaped = functools.partial(bytes.decode, errors="backslashreplace")


def column_of(batch: pa.RecordBatch | pa.Table, name: str) -> pa.Array:
    """Return a column of a batch or table as a single array, joining the chunks of a table's column."""
    column = batch.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def decoded(values: pa.Array) -> pa.Array:
    """Return the values of an array without dictionary encoding, run-end encoding, views or extension types.

    Many Arrow kernels do not accept these types. An extension array is replaced by its storage array.
    """
    if isinstance(values.type, pa.BaseExtensionType):
        return decoded(values.storage)
    if pa.types.is_dictionary(values.type):
        return decoded(values.dictionary_decode())
    if is_run_ends(values.type):
        return decoded(pc.run_end_decode(values))
    if is_view(values.type):
        plain = plain_type(values.type)
        try:
            return values.cast(plain)
        except pa.ArrowNotImplementedError:  # older pyarrow versions lack this cast
            return pa.array(values.to_pylist(), plain)
    return values


def plain_column(column: pa.Array, kind: pa.DataType | None = None) -> pa.Array:
    """Convert a column to a plain Arrow type.

    Plain types contain no views, dictionaries, run-end encoding or extension types. If the target type is string,
    invalid UTF-8 in text and binary values is replaced with U+FFFD.

    Args:
        column: column of any type.
        kind: plain target type; None for `plain_type(column.type)`.

    Raises:
        one of COLUMN_ERRORS: the column is damaged, or a value cannot be converted to the target type. A value that
            Python cannot represent, such as a date after year 9999, also raises one of these errors.
    """
    kind = kind or plain_type(column.type)
    if isinstance(column.type, pa.BaseExtensionType) and column.type.extension_name == "arrow.uuid":
        column = pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
    column = decoded(column)
    if is_list_view(column.type):
        column = pa.array(column.to_pylist(), plain_type(column.type))  # pyarrow's own cast handles nulls incorrectly
    if pa.types.is_string(kind) and (is_text(column.type) or is_bytes(column.type)):
        return _utf8(column)
    if pa.types.is_null(kind) and column.null_count == len(column):
        return pa.nulls(len(column))
    if column.type != kind:
        column = column.cast(kind)
    column.validate(full=True)
    if not any(is_kind(kind) for is_kind in _SIMPLE):
        column.to_pylist()  # raises for dates after year 9999, which Python and later stages cannot represent
    return column


def _utf8(column: pa.Array) -> pa.Array:
    stored = column.cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(stored), stored.buffers(), stored.null_count, stored.offset)
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        stored.validate(full=True)  # raises if the column is damaged in another way
        values = (None if value is None else value.decode("utf-8", "replace") for value in stored.to_pylist())
        return pa.array(values, pa.string())
    return text


def carried(table: pa.Table, where: str) -> pa.Table:
    """Prepare an input table so that any of its rows can be selected with `take` and written to the output.

    Columns in Arrow's view layouts, which do not support row selection, are converted to plain types. In text columns,
    invalid UTF-8 is replaced with U+FFFD. All other columns are returned unchanged.

    Args:
        table: table read from an input file.
        where: path or URL of the table, used as the prefix of the error message.

    Raises:
        InputError: a column is damaged, or pyarrow cannot select rows of its type.
    """
    for at, field in enumerate(table.schema):
        column = table.column(at)
        try:
            if "view" in str(field.type) or (is_text(field.type) and not _is_valid(column)):
                kind = plain_type(field.type)
                column = pa.chunked_array([plain_column(chunk, kind) for chunk in column.chunks], kind)
            column.validate(full=True)
            column.take(pa.array([], pa.int64()))
        except COLUMN_ERRORS as error:
            raise InputError(
                f"{where}: column {field.name!r} ({field.type}) cannot be carried along ({one_line(error)}); "
                "write it again as a plain type, or drop it"
            ) from error
        if column is not table.column(at):
            table = table.set_column(at, field.name, column)
    return table


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def text_of(value: Any, not_utf8: Callable[[bytes], str] = bytes.hex) -> str | None:
    """Convert a Python value to a string, or return None if the value is None or NaN.

    Bytes are decoded as UTF-8. All other values are converted with `str`.

    Args:
        not_utf8: function that converts bytes that are not valid UTF-8 to a string.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return not_utf8(value)
    return str(value)


def as_text(values: pa.Array) -> pa.Array:
    """Convert an array to strings.

    NaN becomes null. Binary values that are not valid UTF-8 are converted to hexadecimal digits.

    Args:
        values: array of a type that `can_be_text` accepts.

    Raises:
        pa.ArrowInvalid: `values` has a text type but contains invalid UTF-8.
    """
    values = decoded(values)
    if is_text(values.type):
        values.validate(full=True)
        return values.cast(pa.string())
    if is_bytes(values.type) or pa.types.is_fixed_size_binary(values.type):
        return pa.array(map(text_of, values.to_pylist()), pa.string())
    try:
        strings = values.cast(pa.string())
        return pc.if_else(pc.is_nan(values), None, strings) if pa.types.is_floating(values.type) else strings
    except pa.ArrowNotImplementedError:
        return pa.array(map(text_of, values.to_pylist()), pa.string())


def group_names(values: pa.Array) -> list[str | None]:
    """Convert the values of a column to strings that identify groups, so that rows with equal values can be grouped.

    Args:
        values: array of any type.

    Returns:
        One string per row, or None for null and NaN. Rows with the same string belong to the same group. Bytes are
        decoded as UTF-8, or written as hexadecimal digits if they are not valid UTF-8.
    """
    plain = decoded(values)
    if pa.types.is_temporal(plain.type):  # Python's datetime types lack nanoseconds
        plain = as_text(plain)
    return list(map(text_of, plain.to_pylist()))


def key_texts(column: pa.ChunkedArray, where: str) -> list[str | None]:
    """Convert the values of a column that contains sample keys to strings.

    Numbers are written in decimal. Bytes that are not valid UTF-8 are replaced with escape sequences such as `\\xff`.
    Null and NaN become None.

    Args:
        column: column with one key per row.
        where: description of the column, used as the prefix of the error message, such as `column 'key' of 00012.tar`.

    Raises:
        InputError: the column contains lists, structs, maps or unions, or it cannot be read.
    """
    kind = column.type
    if not can_be_text(kind):
        raise InputError(f"{where} holds {kind}, not names; store it as text")
    try:
        if is_text(kind) or is_bytes(kind):  # read as bytes, since text may contain invalid UTF-8
            values = [key for chunk in column.chunks for key in decoded(chunk).cast(pa.large_binary()).to_pylist()]
        else:
            values = column.to_pylist()
    except COLUMN_ERRORS as error:  # such as a date that Python cannot represent
        raise InputError(f"{where} holds a {kind} that cannot be read as a name ({error}); store it as text") from error
    return [text_of(value, _escaped) for value in values]
