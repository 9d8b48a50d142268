"""Temporary files to which rows are appended, so that an array larger than memory can be saved or memory-mapped."""

from __future__ import annotations

import shutil
import tempfile
from typing import BinaryIO, cast

import numpy as np

_COPY_BYTES = 1 << 20
"""Block size in bytes for copying rows."""


class RowSpool:
    """Array that is built row by row in a temporary file instead of in memory.

    Args:
        dtype: dtype of the array. Appended rows are converted to it.
        row_shape: shape of a row; `()` for scalars.
    """

    def __init__(self, dtype: type[np.generic] | np.dtype, row_shape: tuple[int, ...]) -> None:
        self._dtype, self._row_shape = np.dtype(dtype), row_shape
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, closed by `close`
        self.rows = 0

    def append(self, rows: np.ndarray) -> None:
        """Append `n` rows, given as an array of shape `[n, *row_shape]`."""
        assert rows.shape[1:] == self._row_shape, (rows.shape, self._row_shape)
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self.rows += len(rows)

    def save(self, target: BinaryIO) -> None:
        """Write all rows in `.npy` format, byte-identical to the output of `np.save`."""
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.rows, *self._row_shape),
        }
        np.lib.format.write_array_header_1_0(target, header)
        self._file.seek(0)
        shutil.copyfileobj(cast(BinaryIO, self._file), target, _COPY_BYTES)

    def mapped(self) -> np.ndarray:
        """Return all rows as a read-only memory-mapped array of shape `(rows, *row_shape)`.

        The array remains valid after `close`. If there are no rows, it is an ordinary empty array.
        """
        if self.rows == 0:
            return np.empty((0, *self._row_shape), self._dtype)
        self._file.flush()
        return np.memmap(self._file, self._dtype, "r", shape=(self.rows, *self._row_shape))

    def close(self) -> None:
        """Close the temporary file. Its disk space is freed once no array returned by `mapped` is in use."""
        self._file.close()
