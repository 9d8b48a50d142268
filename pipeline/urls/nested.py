"""Nested fields, which are named like `image.url`, and columns that contain a list of captions in each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..contract.arrow.columns import decoded, plain_column
from ..contract.arrow.types import is_list_view

_MAX_DEPTH = 4
"""Maximum number of parts of a nested field's name that `field_names` returns."""


def is_list(kind: pa.DataType) -> bool:
    """Return True if each value of a plain type is a list."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def field_type(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Return the type of a column or of a nested field, or None if there is no such column or field.

    A column with exactly this name takes precedence. Otherwise, `a.b` is the field `b` of the structs in column `a`. If
    `a` contains lists of structs, the type of `a.b` is a list.

    Args:
        schema: plain types of the columns.
        name: name of the column or field.
    """
    return _inner_type(pa.struct(list(schema)), name.split("."))


def _inner_type(kind: pa.DataType, parts: Sequence[str]) -> pa.DataType | None:
    if not parts:
        return kind
    if is_list(kind):
        inner = _inner_type(kind.value_type, parts)
        return None if inner is None else pa.list_(inner)
    for end in _prefixes(kind, parts):
        inner = _inner_type(kind.field(".".join(parts[:end])).type, parts[end:])
        if inner is not None:
            return inner
    return None


def _prefixes(kind: pa.DataType, parts: Sequence[str]) -> Iterator[int]:
    """Yield each number of leading parts that form the name of a field of a struct type, largest number first.

    Names of columns may contain dots themselves, so several numbers are possible.
    """
    if pa.types.is_struct(kind):
        for end in range(len(parts), 0, -1):
            if kind.get_field_index(".".join(parts[:end])) >= 0:
                yield end


def find_column(batch: pa.RecordBatch, name: str) -> pa.Array | None:
    """Return a column or a nested field of a batch, or None if there is no such column or field.

    Args:
        batch: rows with columns of any types.
        name: name of the column or field; see `field_type`.
    """
    index = batch.schema.get_field_index(name)
    if index >= 0:
        return batch.column(index)
    if "." not in name:
        return None
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        index = batch.schema.get_field_index(".".join(parts[:end]))
        if index >= 0:
            inner = _inner_column(batch.column(index), parts[end:])
            if inner is not None:
                return inner
    return None


def _inner_column(column: pa.Array, parts: Sequence[str]) -> pa.Array | None:
    if not parts:
        return column
    column = decoded(column)
    if is_list_view(column.type):
        column = plain_column(column)
    if is_list(column.type):
        inner = _inner_column(column.flatten(), parts)
        if inner is None:
            return None
        offsets = pa.array(np.concatenate([[0], np.cumsum(_lengths(column))]), pa.int32())
        return pa.ListArray.from_arrays(offsets, inner, mask=column.is_null())
    for end in _prefixes(column.type, parts):
        field = column.type.get_field_index(".".join(parts[:end]))
        inner = _inner_column(pc.struct_field(column, field), parts[end:])
        if inner is not None:
            return inner
    return None


def _lengths(lists: pa.Array) -> np.ndarray:
    """Return the length of each list as a 1-D int64 array. The length of null is 0."""
    lengths: np.ndarray = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def field_names(schema: pa.Schema) -> list[str]:
    """Return the names of all columns, followed by the names of all nested fields."""
    nested = [name for field in schema for name in _inner_names(field.name, field.type, 2)]
    return list(dict.fromkeys([*schema.names, *nested]))


def _inner_names(prefix: str, kind: pa.DataType, depth: int) -> Iterator[str]:
    if is_list(kind):
        yield from _inner_names(prefix, kind.value_type, depth)
    elif pa.types.is_struct(kind) and depth <= _MAX_DEPTH:
        for field in kind:
            yield f"{prefix}.{field.name}"
            yield from _inner_names(f"{prefix}.{field.name}", field.type, depth + 1)


def repeat_rows(columns: list[pa.Array], captions: int) -> list[pa.Array]:
    """Return the columns of a batch with one row for each caption, if the captions of each row are a list.

    The values of the other columns are repeated. A row without captions stays one row, whose caption is null.

    Args:
        columns: columns of the batch.
        captions: index of the column that contains the lists.

    Raises:
        one of COLUMN_ERRORS: the lists do not contain text.
    """
    lists = decoded(columns[captions])
    if is_list_view(lists.type):
        lists = plain_column(lists)
    lengths = _lengths(lists)
    rows = np.repeat(np.arange(len(lists)), np.maximum(lengths, 1))
    has_caption = lengths[rows] > 0
    positions = np.cumsum(has_caption) - 1
    texts = plain_column(lists.flatten(), pa.string()).take(pa.array(positions, pa.int64(), mask=~has_caption))
    parents = pa.array(rows, pa.int64())
    return [texts if at == captions else column.take(parents) for at, column in enumerate(columns)]
