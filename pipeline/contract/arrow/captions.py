"""Captions in a table column, with one caption or a list of captions per row."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from .columns import decoded
from .types import is_list_view, is_text, stored_type


def holds_captions(kind: pa.DataType) -> bool:
    """Return True if a column of this type contains captions: text, lists of text, or only nulls."""
    stored = stored_type(kind)
    if is_text(stored) or pa.types.is_null(stored):
        return True
    is_list = pa.types.is_list(stored) or pa.types.is_large_list(stored) or pa.types.is_fixed_size_list(stored)
    return (is_list or is_list_view(stored)) and (is_text(stored.value_type) or pa.types.is_null(stored.value_type))


def captions_of(column: pa.ChunkedArray) -> list[tuple[bytes, ...]]:
    """Return the captions of each row of a column, as bytes, which should be UTF-8.

    A null and a null in a list are left out, so that a row without a caption has an empty tuple.

    Args:
        column: column of a type that `holds_captions` accepts.
    """
    return [captions for chunk in column.chunks for captions in _chunk_captions(decoded(chunk))]


def _chunk_captions(chunk: pa.Array) -> list[tuple[bytes, ...]]:
    if pa.types.is_null(chunk.type):
        return [()] * len(chunk)
    if is_text(chunk.type):
        return [() if value is None else (value,) for value in chunk.cast(pa.large_binary()).to_pylist()]
    if is_list_view(chunk.type):
        chunk = chunk.cast(pa.large_list(chunk.type.value_type))
    lengths = pc.list_value_length(chunk).to_pylist()
    values = decoded(pc.list_flatten(chunk))  # leaves out the content of null lists
    if pa.types.is_null(values.type):
        return [()] * len(chunk)
    flat = iter(values.cast(pa.large_binary()).to_pylist())
    return [
        tuple(value for value in (next(flat) for _ in range(length or 0)) if value is not None) for length in lengths
    ]
