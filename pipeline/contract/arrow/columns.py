"""Arrow columns of other tools, in whatever types they are stored, as plain values and as text.

`decoded` undoes how a column is stored, on which all others build. Where bytes are no UTF-8, rows of a list and carried
text have U+FFFD (`plain_column`, `carried`), keys have escapes (`key_texts`), and other names have hexadecimal digits
(`as_text`, `group_names`).
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
"""Types of which each value can be a Python value."""
_escaped = functools.partial(bytes.decode, errors="backslashreplace")


def column_of(batch: pa.RecordBatch | pa.Table, name: str) -> pa.Array:
    """A column of a batch or table as one array."""
    column = batch.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def decoded(values: pa.Array) -> pa.Array:
    """Values in a type that every kernel takes: categories, views, run ends and extensions are decoded."""
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
        except pa.ArrowNotImplementedError:  # older versions have no such cast
            return pa.array(values.to_pylist(), plain)
    return values


def plain_column(column: pa.Array, kind: pa.DataType | None = None) -> pa.Array:
    """Values as plain type, or as `kind`; bytes of text that are not UTF-8 become U+FFFD.

    Raises:
        COLUMN_ERRORS: the column is damaged, or a value has no such type.
    """
    kind = kind or plain_type(column.type)
    if isinstance(column.type, pa.BaseExtensionType) and column.type.extension_name == "arrow.uuid":
        column = pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
    column = decoded(column)
    if is_list_view(column.type):
        column = pa.array(column.to_pylist(), plain_type(column.type))  # pyarrow's cast of nulls is damaged
    if pa.types.is_string(kind) and (is_text(column.type) or is_bytes(column.type)):
        return _utf8(column)
    if pa.types.is_null(kind) and column.null_count == len(column):
        return pa.nulls(len(column))
    if column.type != kind:
        column = column.cast(kind)
    column.validate(full=True)
    if not any(is_kind(kind) for is_kind in _SIMPLE):
        column.to_pylist()  # a date beyond year 9999 is no Python value, for which no later stage is prepared
    return column


def _utf8(column: pa.Array) -> pa.Array:
    stored = column.cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(stored), stored.buffers(), stored.null_count, stored.offset)
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        stored.validate(full=True)  # damage of another kind
        values = (None if value is None else value.decode("utf-8", "replace") for value in stored.to_pylist())
        return pa.array(values, pa.string())
    return text


def carried(table: pa.Table, where: str) -> pa.Table:
    """Return a table whose rows can be chosen and written: views become plain, text becomes UTF-8.

    Raises:
        InputError: a column cannot be read, or is of a type that cannot be copied.
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


def text_of(value: Any, no_utf8: Callable[[bytes], str] = bytes.hex) -> str | None:
    """Text of one Python value; None where it is missing: null or NaN.

    Args:
        no_utf8: text of bytes that are no UTF-8.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return no_utf8(value)
    return str(value)


def as_text(values: pa.Array) -> pa.Array:
    """Values of a type that `can_be_text`, as strings; NaN is null, and bytes that are no UTF-8 are hexadecimal.

    Raises:
        pa.ArrowInvalid: a column of text holds what is no UTF-8.
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
    """Values of any type as names of content, as `as_text` has them; None where one is missing."""
    plain = decoded(values)
    if pa.types.is_temporal(plain.type):  # Python has no nanoseconds
        plain = as_text(plain)
    return list(map(text_of, plain.to_pylist()))


def key_texts(column: pa.ChunkedArray, where: str) -> list[str | None]:
    """Values of a column of keys as text: numbers in decimal, bytes that are no UTF-8 as escapes; NaN is none.

    Raises:
        InputError: the values are lists or structures; names the column by `where`.
    """
    kind = column.type
    if not can_be_text(kind):
        raise InputError(f"{where} holds {kind}, not names; store it as text")
    try:
        if is_text(kind) or is_bytes(kind):  # as bytes, since text may be no UTF-8
            values = [key for chunk in column.chunks for key in decoded(chunk).cast(pa.large_binary()).to_pylist()]
        else:
            values = column.to_pylist()
    except COLUMN_ERRORS as error:  # such as a date that Python does not have
        raise InputError(f"{where} holds a {kind} that cannot be read as a name ({error}); store it as text") from error
    return [text_of(value, _escaped) for value in values]
