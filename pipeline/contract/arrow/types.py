"""Functions that classify Arrow types, convert them to the plain types that priorkit uses, and check schemas."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import InputError

TypeTest = Callable[[pa.DataType], bool]


def _tests(*names: str) -> tuple[TypeTest, ...]:
    """Return the functions of `pyarrow.types` that have the given names, such as `is_string`.

    Each function tests whether an Arrow type is of a certain kind. Older versions of pyarrow lack some of these
    functions, and also the types that they test for. The missing functions are skipped.
    """
    return tuple(getattr(pa.types, name) for name in names if hasattr(pa.types, name))


_TEXT = _tests("is_string", "is_large_string", "is_string_view")
_BYTES = _tests("is_binary", "is_large_binary", "is_binary_view")
_VIEWS = _tests("is_string_view", "is_binary_view")
_RUNS = _tests("is_run_end_encoded")
_LIST_VIEWS = _tests("is_list_view", "is_large_list_view")
_LISTS = _tests("is_list", "is_list_view")
_LARGE_LISTS = _tests("is_large_list", "is_large_list_view")
_EXTENSIONS = {"arrow.bool8": pa.bool_(), "arrow.uuid": pa.string()}
"""Plain types to which the extension types bool8 and uuid are converted, keyed by extension name.

All other extension types are converted to their storage types. These two are exceptions, because they would lose their
meaning: bool8 is stored as int8, and UUIDs are stored as bytes.
"""
COLUMN_ERRORS = (pa.ArrowException, ValueError, KeyError, OverflowError)
"""Exceptions that pyarrow raises for damaged columns and for values that Python cannot represent, such as dates after
year 9999."""


def _is(kind: pa.DataType, tests: tuple[TypeTest, ...]) -> bool:
    return any(test(kind) for test in tests)


def is_run_ends(kind: pa.DataType) -> bool:
    """Return True if a type is run-end encoded."""
    return _is(kind, _RUNS)


def is_view(kind: pa.DataType) -> bool:
    """Return True if a type stores text or bytes in Arrow's view layout, which many pyarrow kernels do not accept."""
    return _is(kind, _VIEWS)


def is_list_view(kind: pa.DataType) -> bool:
    """Return True if a type stores lists in Arrow's list-view layout."""
    return _is(kind, _LIST_VIEWS)


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Return the storage type of an extension type, or the value type of a dictionary- or run-end-encoded type.

    Nested combinations of these types are resolved. For example, the result for a dictionary-encoded string type is
    `string`. Other types are returned unchanged.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return stored_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or is_run_ends(kind):
        return stored_type(kind.value_type)
    return kind


def is_text(kind: pa.DataType) -> bool:
    """Return True if the values of an Arrow type are text: strings, large strings or string views.

    Dictionary-encoded and run-end-encoded text also counts, as do extension types stored as text.
    """
    return _is(stored_type(kind), _TEXT)


def is_bytes(kind: pa.DataType) -> bool:
    """Return True if the values of an Arrow type are binary values of variable size.

    These are the types binary, large binary and binary view. Dictionary-encoded and run-end-encoded binary values also
    count, as do extension types stored as binary values.
    """
    return _is(stored_type(kind), _BYTES)


def can_be_text(kind: pa.DataType) -> bool:
    """Return True if values of a type can be converted to text.

    This is possible for all types except lists, structs, maps and unions.
    """
    stored = stored_type(kind)
    return not (pa.types.is_nested(stored) or is_list_view(stored))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the plain type to which priorkit converts columns of type `kind`.

    Plain types contain no views, dictionaries, run-end encoding or extension types. Their strings and binary values
    have 32-bit offsets.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return _EXTENSIONS.get(kind.extension_name) or plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or is_run_ends(kind):
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


def unified(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Return the plain type to which columns of two plain types can both be converted, or None if there is none.

    For example, int32 and int64 are unified to int64, and text and bytes to text.
    """
    if {first, second} == {pa.string(), pa.binary()}:
        return pa.string()
    if first == second:
        return first
    if {first, second} & {pa.uint64()} and pa.types.is_signed_integer(first) + pa.types.is_signed_integer(second):
        return None  # pyarrow would choose int64, which cannot hold the upper half of the uint64 range
    try:
        fields = [pa.schema([("column", kind)]) for kind in (first, second)]
        return pa.unify_schemas(fields, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def holds_boxes(kind: pa.DataType) -> bool:
    """Return True if the values of a plain type can be lists of boxes, or their JSON text. A box is a list of numbers.

    A type without values, such as that of empty lists, also counts.
    """
    if kind == pa.null() or is_text(kind):
        return True
    for _ in range(2):
        if kind == pa.null():
            return True
        if not any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
            return False
        kind = kind.value_type
    numbers = (pa.types.is_null, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return any(test(kind) for test in numbers)


def why_not_carried(kind: pa.DataType) -> str | None:
    """Test whether rows of a column can be selected with `take` and written to Parquet and JSON files.

    Args:
        kind: plain type of the column.

    Returns:
        Error message of the first operation that fails for this type; None if all of them succeed.
    """
    try:
        column = pa.nulls(1, kind).take(pa.array([0]))
        json.dumps(column.to_pylist(), default=str)
        pq.write_table(pa.table({"column": column}), io.BytesIO())
    except (*COLUMN_ERRORS, TypeError, ImportError) as error:
        return str(error)
    return None


def require_distinct(schema: pa.Schema, where: str) -> None:
    """Raise InputError if two columns of a schema have the same name."""
    repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if repeated:
        raise InputError(f"{where} has several columns {repeated[0]!r}; rename or drop all but one")


def column_fault(schema: pa.Schema, column: str, *, text: bool) -> str:
    """Return the reason why a column cannot be read: it is missing, or several columns have its name.

    Args:
        text: True to also report a column that cannot be converted to text.

    Returns:
        String to append to the file name in an error message; empty if the column can be read.
    """
    count = schema.names.count(column)
    if count != 1:
        return f" has {count} columns {column!r}; keep one of them" if count else f" has no column {column!r}"
    stored = schema.field(column).type
    return f": column {column!r} holds {stored}, not text" if text and not can_be_text(stored) else ""
