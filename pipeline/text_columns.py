"""Columns of metadata as text, whatever Arrow type another tool stored them in."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_VIEWS = ("string_view", "binary_view")
"""Names of types that PyArrow before 16 has not, and that no kernel takes."""


def can_be_text(stored: pa.DataType) -> bool:
    """Return whether values of a type have one text each: all but lists, structs, maps and unions do."""
    if isinstance(stored, pa.BaseExtensionType):
        return can_be_text(stored.storage_type)
    if pa.types.is_dictionary(stored):
        return can_be_text(stored.value_type)
    return not pa.types.is_nested(stored)


def column_fault(schema: pa.Schema, column: str, *, text: bool) -> str:
    """Why a column cannot be read, to follow the name of its file; empty where it can be.

    Args:
        text: whether it is read as text.
    """
    count = schema.names.count(column)
    if count != 1:
        return f" has {count} columns {column!r}; keep one of them" if count else f" has no column {column!r}"
    stored = schema.field(column).type
    return f": column {column!r} holds {stored}, not text" if text and not can_be_text(stored) else ""


def is_text(stored: pa.DataType) -> bool:
    """Return whether a type is one of text, also as categories."""
    if pa.types.is_dictionary(stored):
        return is_text(stored.value_type)
    return pa.types.is_string(stored) or pa.types.is_large_string(stored) or str(stored) == "string_view"


def as_plain(values: pa.Array) -> pa.Array:
    """Values in a type that every kernel takes: categories, views, run ends and extensions are decoded."""
    if isinstance(values.type, pa.BaseExtensionType):
        return as_plain(values.storage)
    if pa.types.is_dictionary(values.type):
        return as_plain(values.dictionary_decode())
    if pa.types.is_run_end_encoded(values.type):
        return as_plain(pc.run_end_decode(values))
    if str(values.type) in _VIEWS:
        plain = pa.string() if str(values.type) == "string_view" else pa.binary()
        try:
            return values.cast(plain)
        except pa.ArrowNotImplementedError:
            return pa.array(values.to_pylist(), plain)
    return values


def as_text(values: pa.Array) -> pa.Array:
    """Values of a type that `can_be_text`, as strings; NaN is null, and bytes that are no UTF-8 are hexadecimal.

    Raises:
        pa.ArrowInvalid: a column of text holds what is no UTF-8.
    """
    values = as_plain(values)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values.validate(full=True)
        return values if pa.types.is_string(values.type) else values.cast(pa.string())
    if _is_binary(values.type):
        return pa.array([text_of(value) for value in values.to_pylist()], pa.string())
    try:
        strings = values.cast(pa.string())
        return pc.if_else(pc.is_nan(values), None, strings) if pa.types.is_floating(values.type) else strings
    except pa.ArrowNotImplementedError:
        return pa.array([text_of(value) for value in values.to_pylist()], pa.string())


def text_of(value: Any) -> str | None:
    """Text of one Python value; None where it is missing: null or NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    return str(value)


def group_names(values: pa.Array) -> list[str | None]:
    """Values of any type as names of content; None where one is missing."""
    plain = as_plain(values)
    if pa.types.is_temporal(plain.type):  # Python has no nanoseconds
        plain = as_text(plain)
    found: list[Any] = plain.to_pylist()
    return found if pa.types.is_string(plain.type) else [text_of(value) for value in found]


def column_of(batch: pa.RecordBatch | pa.Table, name: str) -> pa.Array:
    """A column of a batch or table as one array."""
    column = batch.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _is_binary(stored: pa.DataType) -> bool:
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(is_kind(stored) for is_kind in kinds)
