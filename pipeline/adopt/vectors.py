"""Streams of embeddings from `.npy` files, `.npz` archives and Parquet columns, in blocks of bounded size.

embedding-reader streams the `.npy` files. Its readers of Parquet load a whole file at once and pair files by position,
so Parquet columns are streamed here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from embedding_reader.numpy_reader import NumpyReader

from ..contract.arrow.columns import decoded
from ..contract.arrow.parquet import open_parquet
from ..contract.arrow.types import is_list_view, plain_type
from ..contract.vectors.arrays import read_array_start
from ..contract.vectors.rules import row_fault
from ..errors import InputError
from .parts import STREAM_BYTES, Table, Vectors, open_member

_BLOCK_BYTES = 4 << 20
"""Approximate size in bytes of a block of embeddings as float32."""
_PIECES = 4
"""Number of blocks that embedding-reader reads at the same time."""


def block_rows(*dims: int) -> int:
    """Return the number of rows of a block, for embeddings of the given sizes: a power of two from 64 to 65,536."""
    rows = _BLOCK_BYTES // (4 * max(1, *dims, 1))
    return 1 << min(16, max(6, rows.bit_length() - 1))


def read_vectors(part: Vectors, first: int, count: int, rows: int) -> Iterator[np.ndarray]:
    """Yield embeddings in blocks of `rows` rows. Only the last block may be smaller.

    Args:
        part: file to read.
        first: index of the first row in the file.
        count: number of rows to read.
        rows: number of rows of a block.

    Yields:
        `[n, D]` float32 arrays. A row of a Parquet column without an embedding of size D is NaN.

    Raises:
        InputError: the file is damaged or truncated.
    """
    if part.layout is not None:
        return _read_array(part, first, count, rows)
    if part.name.endswith(".npz"):
        return _read_archive(part, first, count, rows)
    return _read_column(part, first, count, rows)


class _OneFile(NumpyReader):  # type: ignore[misc]
    """embedding-reader's reader for one file, whose header has already been read and checked.

    The reader's own constructor lists a folder, and takes the dtype of its first file for all files.
    """

    def __init__(self, part: Vectors) -> None:
        layout = part.layout
        assert layout is not None
        self.fs, self.count, self.dimension, self.dtype = part.store.fs, part.rows, part.dim, layout.dtype
        self.byte_per_item = layout.row_bytes
        self.total_size = self.max_file_size = part.rows * layout.row_bytes
        self.headers = {
            "filename": [part.store.path(part.name)],
            "count": [part.rows],
            "count_before": [0],
            "header_offset": [layout.start],
        }


def _read_array(part: Vectors, first: int, count: int, rows: int) -> Iterator[np.ndarray]:
    reader = _OneFile(part)
    step = _PIECES * rows
    # one call for a few pieces at a time: the reader hangs if it is stopped while pieces are waiting to be read
    for start in range(first, first + count, step):
        end = min(start + step, first + count)
        try:
            with np.errstate(over="ignore"):  # values too large for float32 become infinite and are rejected later
                for block, _ in reader(rows, start, end, rows, _PIECES, show_progress=False):
                    yield block
        except (ValueError, OSError) as error:
            cause = error.__cause__ or error
            raise InputError(f"{part.title} cannot be read ({cause}); fetch it again") from error


def _read_archive(part: Vectors, first: int, count: int, rows: int) -> Iterator[np.ndarray]:
    with open_member(part.store, part.name, part.column) as file:
        shape, _, dtype = read_array_start(part.store, f"{part.name}/{part.column}", file)
        row_bytes = shape[1] * dtype.itemsize
        to_skip = first * row_bytes
        while to_skip and (skipped := len(file.read(min(to_skip, STREAM_BYTES)))):
            to_skip -= skipped
        for start in range(first, first + count, rows):
            size = min(rows, first + count - start) * row_bytes
            data = file.read(size)
            if len(data) != size:
                raise InputError(f"{part.title} ends early, in row {start + len(data) // max(1, row_bytes)}")
            with np.errstate(over="ignore"):
                yield np.frombuffer(data, dtype).reshape(-1, shape[1]).astype(np.float32)


def _read_column(part: Vectors, first: int, count: int, rows: int) -> Iterator[np.ndarray]:
    for batch in read_batches(part, [part.column], first, count, rows):
        with np.errstate(over="ignore"):
            yield _matrix(batch.column(0), part.dim)


def read_batches(part: Vectors | Table, columns: list[str], first: int, count: int, rows: int) -> Iterator[pa.Table]:
    """Yield columns of a Parquet file as tables of `rows` rows. Only the last table may be smaller.

    Args:
        part: file to read.
        columns: names of the columns.
        first: index of the first row in the file.
        count: number of rows to read.
        rows: number of rows of a table.

    Raises:
        InputError: the file is damaged.
    """
    waiting: list[pa.RecordBatch] = []
    held, row = 0, 0
    try:
        with part.store.open(part.name) as file:
            parquet = open_parquet(file, buffer_size=STREAM_BYTES)
            sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            ends = np.cumsum(sizes)
            groups = [g for g in range(len(sizes)) if ends[g] > first and ends[g] - sizes[g] < first + count]
            row = int(ends[groups[0]] - sizes[groups[0]]) if groups else 0
            for batch in parquet.iter_batches(rows, groups, columns, use_threads=False) if groups else ():
                low, high = max(first - row, 0), min(first + count - row, batch.num_rows)
                row += batch.num_rows
                if low < high:
                    waiting.append(batch.slice(low, high - low))
                    held += high - low
                while held >= rows:
                    table = pa.Table.from_batches(waiting)
                    yield table.slice(0, rows)
                    waiting = table.slice(rows).to_batches()
                    held -= rows
            if held:
                yield pa.Table.from_batches(waiting)
    except (pa.ArrowException, OSError) as error:
        where = f"{part.store.url}/{part.name}"
        raise InputError(f"{where} is damaged at row {row:,} ({error}); fetch it again") from error


def vector_fault(part: Vectors, embed: np.ndarray, norm: float) -> str:
    """Return the reason why an embedding is refused, as a phrase for a message.

    Args:
        part: file that the embedding was read from.
        embed: the embedding `[D]`, from `read_vectors`.
        norm: L2 norm of the embedding.
    """
    if part.name.endswith(".parquet") and np.isnan(embed).all():
        return f"is null, or does not have {part.dim} values"
    return row_fault(embed, norm)


def _matrix(column: pa.ChunkedArray, dim: int) -> np.ndarray:
    """Return a column of lists as a matrix `[n, D]` of float32. A row that is not a list of D values is NaN."""
    matrix = np.empty((len(column), dim), np.float32)
    start = 0
    for chunk in column.chunks:
        values = decoded(chunk)
        if is_list_view(values.type):
            values = pa.array(values.to_pylist(), plain_type(values.type))
        rows = matrix[start : start + len(values)]
        start += len(values)
        if pa.types.is_null(values.type):
            rows[...] = np.nan
            continue
        sound = pc.fill_null(pc.equal(pc.list_value_length(values), dim), False).to_numpy(zero_copy_only=False)
        if not sound.all():
            values = values.filter(pa.array(sound))
            rows[~sound] = np.nan
        numbers = values.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        if sound.all():
            rows[...] = numbers
        else:
            rows[sound] = numbers
    return matrix
