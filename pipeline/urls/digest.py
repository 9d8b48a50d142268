"""Digest of the rows of a shard, to recognise a list that is stored in another way."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_NULL_LENGTH = -1
"""Length that stands for a missing text."""


def rows_digest(table: pa.Table) -> str:
    """Return the SHA-256 of names and values of all columns, independent of file format and chunks in memory.

    A text column contributes the lengths of all values, -1 for null, and then the concatenated values. A column of
    numbers contributes its validity, and then the values in 64 bits. Other columns contribute `repr` of each value.
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
    """Return the 64-bit type in which numbers are hashed, whatever their width in the file; None for other types."""
    if pa.types.is_uint64(kind):
        return "<u8"
    return "<i8" if pa.types.is_integer(kind) else "<f8" if pa.types.is_floating(kind) else None


def _number_bytes(column: pa.ChunkedArray, kind: str) -> bytes:
    """Return the bytes of values without nulls, in the NumPy type `kind`."""
    values: np.ndarray = column.to_numpy().astype(kind)
    return values.tobytes()


def _text_bytes(texts: pa.Array) -> memoryview:
    """Return the concatenated bytes of texts without nulls."""
    _, offsets, values = texts.buffers()
    if values is None or len(texts) == 0:
        return memoryview(b"")
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(values)[bounds[0] : bounds[-1]]
