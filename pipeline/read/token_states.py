"""Token states (the text encoder's output for each token of a caption), read from a file when a batch needs them."""

from __future__ import annotations

import os
import tempfile

import numpy as np

from ..errors import InputError
from .shards import EmbeddingShard

_COPY_BYTES = 1 << 23
"""Number of bytes that are copied from a remote file at a time."""


class StateRanges:
    """Token states (the text encoder's output for each token) of consecutive rows in a shard, read row by row.

    Token states need many times as much memory as embeddings. Therefore, only the byte range of each row is kept in
    memory, and the states stay on disk until a batch needs them. If the shard is remote, they are first copied to a
    temporary file.

    Args:
        shard: shard that stores the token states.
        first: index of the first of these rows, counted from the start of the shard.
        count: number of rows.

    Raises:
        InputError: the stored start indices of the rows' token states are not in ascending order, or exceed the number
            of token states in the file.
    """

    def __init__(self, shard: EmbeddingShard, first: int, count: int) -> None:
        self._layout, self._title = shard.layout("token_states"), shard.title("token_states")
        offsets = shard.read("offsets", first, count + 1)
        if offsets[0] < 0 or offsets[-1] > self._layout.rows or (np.diff(offsets) < 0).any():
            raise InputError(
                f"{shard.title('offsets')}: rows {first} to {first + count - 1} are not within the "
                f"{self._layout.rows} token states, in order; embed it again"
            )
        path = shard.local_path("token_states")
        if path is not None:
            self._file = os.open(path, os.O_RDONLY)
            self._starts = self._layout.start + offsets * self._layout.row_bytes
        else:
            self._file = _temporary_copy(shard, int(offsets[0]), int(offsets[-1]))
            self._starts = (offsets - offsets[0]) * self._layout.row_bytes

    def fill(self, row: int, target: np.ndarray) -> None:
        """Copy the token states of a row into `target`.

        Args:
            row: index of the row, counted from `first`.
            target: contiguous `[T, W]` array with room for T token states of width W. If the row has more than T
                states, only the first T are copied. If it has fewer, the rest of the array is unchanged.

        Raises:
            InputError: the file ends within the row.
        """
        start, length = int(self._starts[row]), int(self._starts[row + 1] - self._starts[row])
        buffer = target.reshape(-1).view(np.uint8).data[:length]
        done = os.preadv(self._file, [buffer], start) if len(buffer) else 0
        if done != len(buffer):
            raise InputError(f"{self._title} ends early, at byte {start + done}; embed that shard again")

    def close(self) -> None:
        """Close the file that contains the token states. `fill` must not be called after that."""
        os.close(self._file)


def _temporary_copy(shard: EmbeddingShard, first: int, last: int) -> int:
    """Copy token states `first` to `last - 1` to an unnamed temporary file, and return its file descriptor."""
    layout = shard.layout("token_states")
    step = max(1, _COPY_BYTES // max(1, layout.row_bytes))
    with tempfile.TemporaryFile() as file:
        for start in range(first, last, step):
            file.write(shard.read("token_states", start, min(step, last - start)).data)
        file.flush()
        return os.dup(file.fileno())
