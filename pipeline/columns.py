"""Columns of other tools' tables in the types that the rest of priorkit handles."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from .errors import InputError


def require_distinct(schema: pa.Schema, where: str) -> None:
    """Raise InputError if two columns of a table have one name."""
    repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if repeated:
        raise InputError(f"{where} has several columns {repeated[0]!r}; rename or drop all but one")


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values of a type: without dictionaries, extensions and views, at any depth."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if str(kind) == "string_view":  # older versions of pyarrow have no function to ask
        return pa.large_string()
    if str(kind) == "binary_view":
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(plain_type(field.type)) for field in kind])
    return kind


def is_text(kind: pa.DataType) -> bool:
    """Whether the values of a type are text, however they are stored."""
    kind = plain_type(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether the values of a type are bytes, however they are stored."""
    kind = plain_type(kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def texts(column: pa.ChunkedArray, where: str) -> list[str | None]:
    """Return the values of a column of names as text: numbers in decimal, bytes that are no UTF-8 as escapes.

    Raises:
        InputError: the values are lists or structures; names the column by `where`.
    """
    kind = column.type
    if pa.types.is_nested(plain_type(kind)):
        raise InputError(f"{where} holds {kind}, not names; store it as text")
    stored = column.cast(pa.large_binary()) if is_text(kind) or is_bytes(kind) else column
    try:
        values: list[Any] = stored.to_pylist()
    except (ValueError, KeyError, OverflowError) as error:  # such as a date that Python does not have
        raise InputError(f"{where} holds a {kind} that cannot be read as a name ({error}); store it as text") from error
    return [_text(value) for value in values]


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return None if value is None else str(value)


def carried(table: pa.Table, where: str) -> pa.Table:
    """Return a table whose rows can be chosen and written: views become plain, text becomes UTF-8.

    Raises:
        InputError: a column cannot be read, or is of a type that cannot be copied.
    """
    for at, field in enumerate(table.schema):
        column = table.column(at)
        try:
            if "view" in str(field.type):
                column = column.cast(plain_type(field.type))
            if is_text(column.type):
                column = _valid_text(column)
            column.validate(full=True)
            column.take(pa.array([], pa.int64()))
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{where}: column {field.name!r} ({field.type}) cannot be carried along ({reason}); "
                "write it again as a plain type, or drop it"
            ) from error
        if column is not table.column(at):
            table = table.set_column(at, field.name, column)
    return table


def _valid_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return text with U+FFFD in place of bytes that are no UTF-8, as lists of URLs are read."""
    try:
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        stored = column.cast(pa.large_binary())
        stored.validate(full=True)  # damage of another kind
        values = [None if value is None else value.decode(errors="replace") for value in stored.to_pylist()]
        return pa.chunked_array([pa.array(values, pa.large_string())])
