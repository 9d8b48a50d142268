"""Types of the columns of a URL list: one plain type however a file stores it, and one for files that differ."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

TypeTest = Callable[[pa.DataType], bool]


def _tests(*names: str) -> tuple[TypeTest, ...]:
    """Tests of `pyarrow.types`; those that an older pyarrow lacks are of types that it lacks too."""
    return tuple(getattr(pa.types, name) for name in names if hasattr(pa.types, name))


_TEXT = _tests("is_string", "is_large_string", "is_string_view")
_BYTES = _tests("is_binary", "is_large_binary", "is_binary_view")
_RUNS = _tests("is_run_end_encoded")
_LIST_VIEWS = _tests("is_list_view", "is_large_list_view")
_LISTS = _tests("is_list", "is_list_view")
_LARGE_LISTS = _tests("is_large_list", "is_large_list_view")
_SIMPLE = _tests("is_boolean", "is_integer", "is_floating", "is_null", "is_binary", "is_fixed_size_binary")
"""Types of which each value can be a Python value."""
_FAILURES = (pa.ArrowException, ValueError, TypeError, OverflowError, KeyError, ImportError)


def _is(kind: pa.DataType, tests: tuple[TypeTest, ...]) -> bool:
    return any(test(kind) for test in tests)


def is_text(kind: pa.DataType) -> bool:
    """Whether a plain type is text, or bytes without a mark that they are text, as Impala and old Spark write it."""
    return _is(kind, (pa.types.is_string, pa.types.is_binary))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type that a column of `kind` has in our rows: without views, dictionaries, runs, extensions, long offsets."""
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.bool8":
            return pa.bool_()
        return pa.string() if kind.extension_name == "arrow.uuid" else plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or _is(kind, _RUNS):
        return plain_type(kind.value_type)
    if _is(kind, _TEXT):
        return pa.string()
    if _is(kind, _BYTES):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(plain_type(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(plain_type(kind.value_type)), kind.list_size)
    if _is(kind, _LISTS):
        return pa.list_(kind.value_field.with_type(plain_type(kind.value_type)))
    if _is(kind, _LARGE_LISTS):
        return pa.large_list(kind.value_field.with_type(plain_type(kind.value_type)))
    return kind


def plain_column(column: pa.Array, kind: pa.DataType | None = None) -> pa.Array:
    """Values as plain type, or as `kind`; bytes of text that are not UTF-8 become U+FFFD.

    Raises:
        pa.ArrowException, ValueError: the column is damaged, or a value has no such type.
    """
    kind = kind or plain_type(column.type)
    if isinstance(column.type, pa.BaseExtensionType):
        if column.type.extension_name == "arrow.uuid":
            values = [None if value is None else str(value) for value in column.to_pylist()]
            return pa.array(values, pa.string()).cast(kind)
        return plain_column(column.storage, kind)
    if _is(column.type, _RUNS):
        column = pc.run_end_decode(column)
    if _is(column.type, _LIST_VIEWS):
        column = pa.array(column.to_pylist(), plain_type(column.type))  # pyarrow's cast of nulls is damaged
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(kind) and is_text(plain_type(column.type)):
        return _text(column)
    if pa.types.is_null(kind) and column.null_count == len(column):
        return pa.nulls(len(column))
    if column.type != kind:
        column = column.cast(kind)
    column.validate(full=True)
    if not _is(kind, _SIMPLE):
        column.to_pylist()  # a date beyond year 9999 is no Python value, for which no later stage is prepared
    return column


def _text(column: pa.Array) -> pa.Array:
    stored = column.cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(stored), stored.buffers(), stored.null_count, stored.offset)
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        stored.validate(full=True)  # damage of another kind
        values = (None if value is None else value.decode("utf-8", "replace") for value in stored.to_pylist())
        return pa.array(values, pa.string())
    return text


def unified(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """The narrowest plain type that holds the values of both; None if there is none."""
    if {first, second} == {pa.string(), pa.binary()}:
        return pa.string()
    if first == second:
        return first
    if {first, second} & {pa.uint64()} and pa.types.is_signed_integer(first) + pa.types.is_signed_integer(second):
        return None  # pyarrow takes int64, which the larger half of uint64 does not fit
    try:
        fields = [pa.schema([("column", kind)]) for kind in (first, second)]
        return pa.unify_schemas(fields, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def why_not_carried(kind: pa.DataType) -> str | None:
    """The reason why a column of a plain type cannot be stored in a shard; None if it can."""
    try:
        column = pa.nulls(1, kind).take(pa.array([0]))
        json.dumps(column.to_pylist(), default=str)
        pq.write_table(pa.table({"column": column}), io.BytesIO())
    except _FAILURES as error:
        return str(error)
    return None
