"""Files that hold embeddings or metadata, with their number of rows, embedding size and dtype.

Embeddings are stored in `.npy` files, in arrays of `.npz` archives, or in columns of Parquet tables.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from ..contract.arrow.columns import decoded
from ..contract.arrow.parquet import open_parquet
from ..contract.arrow.types import plain_type, require_distinct
from ..contract.storage import Store
from ..contract.vectors.arrays import ArrayLayout, read_array_start, read_header
from ..contract.vectors.rules import embed_dtypes_named, is_embed_dtype
from ..errors import InputError

STREAM_BYTES = 1 << 20
"""Buffer size in bytes for streaming Parquet row groups, which can be as large as a file."""


@dataclass(frozen=True)
class Vectors:
    """Embeddings of one space in one file."""

    store: Store
    """Folder of the file."""
    name: str
    """Name of the file, relative to the folder."""
    column: str
    """Column of a Parquet table or array of an `.npz` archive; empty for a `.npy` file."""
    rows: int
    dim: int
    """Number of values of an embedding."""
    dtype: str
    """Name of the dtype in which the embeddings are stored."""
    layout: ArrayLayout | None = None
    """Layout of a `.npy` file; None for other files."""

    @property
    def title(self) -> str:
        """Location of the embeddings, for messages."""
        return f"{self.store.url}/{self.name}" + (f", {self.column}" if self.column else "")


@dataclass(frozen=True)
class Table:
    """Parquet file with metadata."""

    store: Store
    name: str
    rows: int
    schema: pa.Schema

    @property
    def title(self) -> str:
        """Location of the table, for messages."""
        return f"{self.store.url}/{self.name}"


def describe_vectors(store: Store, name: str, column: str) -> Vectors:
    """Read the number of rows, size and dtype of the embeddings in a file.

    Args:
        store: folder of the file.
        name: name of the file.
        column: column of a Parquet table or array of an `.npz` archive; empty for a `.npy` file.

    Raises:
        InputError: the file is damaged, or does not hold one embedding for each row.
    """
    if name.endswith(".npz"):
        with open_member(store, name, column) as file:
            shape, fortran_order, dtype = read_array_start(store, f"{name}/{column}", file)
        if len(shape) != 2 or fortran_order or not is_embed_dtype(dtype) or not dtype.isnative:
            raise InputError(
                f"{store.url}/{name}: {column} holds {dtype} of shape {list(shape)}; embeddings are read as [N, D] of "
                f"{embed_dtypes_named()}: save it so"
            )
        return Vectors(store, name, column, shape[0], shape[1], dtype.name)
    if name.endswith(".parquet"):
        return _describe_column(store, name, column)
    header = read_header(store, name)
    assert header.layout is not None
    return Vectors(store, name, "", header.rows, header.embed_dim, header.layout.dtype.name, header.layout)


def _describe_column(store: Store, name: str, column: str) -> Vectors:
    """Read the number of rows of a table, and the size and dtype of one column of embeddings.

    The size is that of the first embedding that is not null, or that of the type. It is 0 if there is no embedding.
    pandas writes a column of the Arrow type null if every embedding of a file is None.
    """
    try:
        with store.open(name) as file:
            parquet = open_parquet(file, buffer_size=STREAM_BYTES)
            kind, rows, dim = plain_type(parquet.schema_arrow.field(column).type), parquet.metadata.num_rows, 0
            if pa.types.is_null(kind):
                return Vectors(store, name, column, rows, 0, "null")
            is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
            if not is_list:
                raise InputError(
                    f"{store.url}/{name}: column {column!r} holds {kind}, not embeddings as in the other files; write "
                    "it again as lists of numbers"
                )
            if pa.types.is_fixed_size_list(kind):
                dim = kind.list_size
            else:
                for batch in parquet.iter_batches(1024, columns=[column], use_threads=False):
                    present = decoded(batch.column(0)).drop_null()
                    if len(present):
                        dim = len(present[0])
                        break
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{store.url}/{name} is damaged ({error}); fetch it again") from error
    return Vectors(store, name, column, rows, dim, np.dtype(kind.value_type.to_pandas_dtype()).name)


def describe_table(store: Store, name: str) -> Table:
    """Read the footer of a Parquet file with metadata.

    Raises:
        InputError: the file is damaged, or two of its columns have the same name.
    """
    header = read_header(store, name)
    assert header.schema is not None
    require_distinct(header.schema, f"{store.url}/{name}")
    return Table(store, name, header.rows, header.schema)


@contextlib.contextmanager
def open_member(store: Store, name: str, array: str) -> Iterator[BinaryIO]:
    """Context manager that opens one array of an `.npz` archive for streaming.

    Raises:
        InputError: the archive is damaged or lacks the array. This also covers damage that is found only when the body
            of the `with` statement reads the array.
    """
    try:
        with store.open(name) as file, zipfile.ZipFile(file) as archive, archive.open(f"{array}.npy") as member:
            yield member  # type: ignore[misc]
    except KeyError:
        raise InputError(f"{store.url}/{name} has no array {array!r}; fetch it again") from None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise InputError(f"{store.url}/{name} is damaged ({error}); fetch it again") from error
