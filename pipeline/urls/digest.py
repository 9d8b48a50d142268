"""Digest of a shard's rows. It does not depend on the file format of the URL list that the rows come from."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_NULL_LENGTH = -1
"""Number that is hashed instead of the length of a null string, to distinguish null from an empty string."""


def rows_digest(table: pa.Table) -> str:
    """Return the SHA-256 of the column names and values of a table.

    The digest does not depend on the file format that the rows were read from, or on how the table is divided into
    chunks in memory.
    For each column, the name and the number of rows are hashed, followed by:

    - String column: the byte length of each value (-1 for null), then the concatenated values.
    - Numeric column: one byte per value (0 for null, otherwise 1), then the non-null values as 64-bit numbers.
    - Any other column: the `repr` of each value.
    """
    digest = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        digest.update(f"{name}\0{len(column)}\0".encode())
        if pa.types.is_string(column.type):
            digest.update(_number_bytes(pc.fill_null(pc.binary_length(column), _NULL_LENGTH), "<i4"))
            for chunk in column.chunks:
                digest.update(_text_bytes(chunk.drop_null()))
        elif kind := _number_kind(column.type):
            digest.update(_number_bytes(column.is_valid(), "u1"))
            digest.update(_number_bytes(column.drop_null(), kind))
        else:
            for value in column.to_pylist():
                digest.update(f"{value!r}\0".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _number_kind(kind: pa.DataType) -> str | None:
    """Return the 64-bit NumPy dtype (`<i8`, `<u8` or `<f8`) that numbers of an Arrow type are converted to for hashing.

    Return None if the Arrow type is not numeric.
    """
    if pa.types.is_uint64(kind):
        return "<u8"
    return "<i8" if pa.types.is_integer(kind) else "<f8" if pa.types.is_floating(kind) else None


def _number_bytes(column: pa.ChunkedArray, kind: str) -> bytes:
    """Convert the values of a column without nulls to the NumPy type `kind`, and return their bytes."""
    values: np.ndarray = column.to_numpy().astype(kind)
    return values.tobytes()


def _text_bytes(texts: pa.Array) -> memoryview:
    """Return the concatenated UTF-8 bytes of a string array without nulls."""
    _, offsets, values = texts.buffers()
    if values is None or len(texts) == 0:
        return memoryview(b"")
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(values)[bounds[0] : bounds[-1]]
