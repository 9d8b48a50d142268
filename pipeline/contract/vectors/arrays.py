"""Functions that read file headers and consecutive array rows from the files of embedding shards."""

from __future__ import annotations

import math
import shlex
import threading
import tokenize
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from ...errors import InputError
from ..arrow.parquet import open_parquet
from ..storage import Store
from .rules import embed_dtypes_named, is_embed_dtype

HEADER_BYTES = 128
"""Size in bytes of the `.npy` header that NumPy writes for an array of embeddings."""
_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_FOOTER_END_BYTES = 8
"""Number of bytes that follow the footer in a Parquet file: 4 for the footer's length and 4 for the magic number."""
_PARSER = threading.Lock()
"""Lock for NumPy's header parser, which uses `ast`. In Python 3.11, `ast` can raise SystemError if two threads use it
at once."""


@dataclass(frozen=True)
class ArrayLayout:
    """Number, shape and dtype of the rows in a `.npy` file, and the byte offset at which they start."""

    rows: int
    row_shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    """Byte offset of the first row."""

    @property
    def row_bytes(self) -> int:
        """Size of a row in bytes."""
        return math.prod(self.row_shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FileHeader:
    """Header of a `.npy` file, or footer of a Parquet metadata file, in an embedding shard."""

    rows: int
    embed_dim: int
    """Embedding dimension; 0 for a metadata file."""
    size: int
    """File size in bytes."""
    content: str
    """Raw header or footer bytes, as hexadecimal digits."""
    layout: ArrayLayout | None
    """Layout of the array; None for a metadata file."""
    columns: tuple[str, ...]
    """Column names of a metadata file; empty for an array."""
    schema: pa.Schema | None = None
    """Arrow schema of a metadata file; None for an array."""


def read_header(store: Store, name: str, size: int | None = None) -> FileHeader:
    """Read the header of a `.npy` file of embeddings, or the footer of a Parquet metadata file.

    Args:
        name: name of the file; the extension `.parquet` marks a metadata file.
        size: file size in bytes; None to look it up.

    Raises:
        InputError: the header or footer is invalid, the array is not two-dimensional (one embedding per row) or is in
            Fortran order, its dtype is not accepted, or the `.npy` file does not have the size that its header implies.
    """
    if size is None:
        size = store.size(name) or 0
    return _read_footer(store, name, size) if name.endswith(".parquet") else _read_array_header(store, name, size)


def _read_array_header(store: Store, name: str, size: int) -> FileHeader:
    with store.open(name) as file:
        layout = _read_layout(store, name, file)
        file.seek(0)
        content = file.read(layout.start)
    if len(layout.row_shape) != 1 or not is_embed_dtype(layout.dtype):
        raise InputError(
            f"{store.url}/{name} holds {layout.dtype} of shape {[layout.rows, *layout.row_shape]}; embeddings are read "
            f"as [N, D] of {embed_dtypes_named()}: save it so"
        )
    whole = layout.start + layout.rows * layout.row_bytes
    if size != whole:
        raise InputError(f"{store.url}/{name} has {size} bytes instead of {whole}; fetch or embed it again")
    return FileHeader(layout.rows, layout.row_shape[0], size, content.hex(), layout, ())


def read_layout(store: Store, name: str) -> ArrayLayout:
    """Return the layout (number, shape, dtype and byte offset of the rows) of a `.npy` file.

    Raises:
        InputError: the file is not a numeric array, is in Fortran order, or does not have this machine's byte order.
    """
    with store.open(name) as file:
        return _read_layout(store, name, file)


def _read_layout(store: Store, name: str, file: BinaryIO) -> ArrayLayout:
    shape, fortran_order, dtype = read_array_start(store, name, file)
    if not shape or dtype.hasobject:
        raise _not_an_array(store, name, f"shape {shape} of {dtype}")
    if fortran_order and len(shape) > 1:
        raise InputError(
            f"{store.url}/{name} is in Fortran's order, which cannot be read by rows; save it in C's"
            f"{_save_command(store, name, 'np.ascontiguousarray(a)')}"
        )
    if not dtype.isnative:
        raise InputError(
            f"{store.url}/{name} is of {dtype}, in another machine's order of bytes; save it in this one's"
            f"{_save_command(store, name, 'a.astype(a.dtype.newbyteorder())')}"
        )
    return ArrayLayout(shape[0], shape[1:], dtype, file.tell())


def _save_command(store: Store, name: str, expression: str) -> str:
    """Return the command that replaces a local array by an expression of it, for a message; empty if it is remote."""
    if "://" in store.url:
        return ""
    code = f"import numpy as np; p = {store.path(name)!r}; a = np.load(p); np.save(p, {expression})"
    return f": `python3 -c {shlex.quote(code)}`"


def read_rows(store: Store, name: str, layout: ArrayLayout, first: int, target: np.ndarray) -> None:
    """Read consecutive rows of a `.npy` file into an existing array.

    Args:
        layout: layout of the file, from `read_layout`.
        first: index of the first row to read.
        target: contiguous array into which the rows are read. It must have the dtype of the layout. Its length is the
            number of rows to read.

    Raises:
        InputError: the file is truncated.
    """
    if target.size == 0:
        return
    start = layout.start + first * layout.row_bytes
    done = store.read_into(name, start, target.reshape(-1).view(np.uint8).data)
    if done != target.nbytes:
        row = first + done // max(1, layout.row_bytes)
        raise InputError(f"{store.url}/{name} ends early, in row {row} of {layout.rows}; fetch or embed it again")


def read_array_start(store: Store, name: str, file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the `.npy` header of an open file, and leave the file positioned at the first array element.

    Args:
        store: folder of the file, for messages.
        name: name of the file, for messages.
        file: the open file.

    Returns:
        Tuple of the shape, a flag that is True for Fortran order, and the dtype.

    Raises:
        InputError: the file does not start with a valid `.npy` header.
    """
    file.read(HEADER_BYTES)  # fetch the header before taking the lock, since remote reads are slow
    file.seek(0)
    try:
        with _PARSER:
            shape, fortran_order, dtype = _HEADER_READERS[np.lib.format.read_magic(file)](file)
    except (EOFError, ValueError, KeyError, SyntaxError, tokenize.TokenError) as error:  # headers are Python literals
        raise _not_an_array(store, name, error) from error
    return shape, fortran_order, dtype


def _read_footer(store: Store, name: str, size: int) -> FileHeader:
    """Return the footer of a Parquet file as a `FileHeader`."""
    try:
        with store.open(name) as file:
            parquet = open_parquet(file)
            metadata = parquet.metadata
            file.seek(max(0, size - _FOOTER_END_BYTES - metadata.serialized_size))
            content = file.read().hex()
            schema = parquet.schema_arrow
            return FileHeader(metadata.num_rows, 0, size, content, None, tuple(schema.names), schema)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{store.url}/{name} is damaged ({error}); fetch or embed it again") from error


def _not_an_array(store: Store, name: str, why: object) -> InputError:
    return InputError(f"{store.url}/{name} is not an array of numbers ({why})")
