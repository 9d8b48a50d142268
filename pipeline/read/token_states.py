"""Token states of consecutive rows, read row by row from a file when a batch needs them."""

from __future__ import annotations

import os
import tempfile

import numpy as np

from ..errors import InputError
from .shards import EmbeddingShard

_COPY_BYTES = 1 << 23


class StateRanges:
    """Token states of consecutive rows: where they are in a file, from which each batch reads its own.

    They take many times the memory of embeddings, so those of a window are not held; of a remote file they are copied
    to a temporary one.
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
        """Copy the first token states of a row into `target` `[T, W]`."""
        start, length = int(self._starts[row]), int(self._starts[row + 1] - self._starts[row])
        wanted = target.reshape(-1).view(np.uint8).data[:length]
        done = os.preadv(self._file, [wanted], start) if len(wanted) else 0
        if done != len(wanted):
            raise InputError(f"{self._title} ends early, at byte {start + done}; embed that shard again")

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def _temporary_copy(shard: EmbeddingShard, first: int, last: int) -> int:
    """A file without a name that holds token states `first` to `last`."""
    layout = shard.layout("token_states")
    step = max(1, _COPY_BYTES // max(1, layout.row_bytes))
    with tempfile.TemporaryFile() as file:
        for start in range(first, last, step):
            file.write(shard.read("token_states", start, min(step, last - start)).data)
        file.flush()
        return os.dup(file.fileno())
