"""Order of an epoch: a pure function of row counts, seed and epoch. It does not depend on the number of ranks.

Blocks of consecutive rows are put in random order. Consecutive blocks form a window, whose rows are shuffled together.
So rows are read in blocks, and memory holds one window at a time. The position of a row in the order of blocks is its
*place*: the number of visited rows in the blocks before it, plus its index among the visited rows of its block.

All randomness is a hash (SplitMix64 of a key), so no version of a library can change an order.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""Increment of SplitMix64."""


def hash_key(*parts: int | str) -> np.uint64:
    """Return the key of a purpose and numbers, for `mix` or as the seed of a random stream."""
    digest = hashlib.sha256(" ".join(["priorkit", *map(str, parts)]).encode()).digest()
    key: np.uint64 = np.uint64(int.from_bytes(digest[:8], "big"))
    return key


def mix(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """Hash uint64 values one to one under a key (SplitMix64: Steele, Lea and Flood 2014)."""
    state = values * _GAMMA + key
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)))


def permutation(count: int, key: np.uint64) -> np.ndarray:
    """Return the numbers below `count` in an order that depends on the key: `[count]` int64."""
    return np.argsort(mix(np.arange(count, dtype=np.uint64), key))  # hashes are distinct: any sort gives one order


@dataclass(frozen=True)
class Share:
    """Rows of a global batch that one rank reads."""

    places: np.ndarray
    """`[b]` int64: places in the epoch."""
    first: int
    """Position of its first row in the global batch."""
    global_rows: int
    """Number of rows of the global batch."""
    end: int
    """Place in the epoch at which the global batch ends."""


class EpochPlan:
    """Order of one epoch, built in O(blocks). Any batch can be computed without the batches before it.

    Args:
        visits: `[blocks]` rows of each block that the epoch visits.
        sizes: `[blocks]` rows of each block that are stored.
        window_rows: stored rows of the blocks that are shuffled together; a window ends with the block that reaches it.
    """

    def __init__(self, visits: np.ndarray, sizes: np.ndarray, *, seed: int, epoch: int, window_rows: int) -> None:
        self.seed, self.epoch = seed, epoch
        order = permutation(len(visits), hash_key("blocks", seed, epoch))
        self.blocks = order[visits[order] > 0]
        """`[n]`: block numbers in the order of the epoch; blocks without visited rows are left out."""
        self.starts = np.concatenate([[0], np.cumsum(visits[self.blocks])])
        """`[n + 1]`: place of the first row of each block, then the number of rows."""
        stored = sizes[self.blocks]
        window_of_block = (np.cumsum(stored) - stored) // window_rows
        first_blocks = np.flatnonzero(np.diff(window_of_block, prepend=-1))
        self.windows = np.append(first_blocks, len(self.blocks))
        """`[m + 1]`: index in `blocks` of the first block of each window, then the number of blocks."""
        self.window_starts = self.starts[self.windows]
        """`[m + 1]`: place of the first row of each window, then the number of rows."""
        self.rows = int(self.starts[-1])
        """Number of rows that the epoch visits."""
        self._window_order = functools.lru_cache(maxsize=4)(self._shuffle_window)

    def _shuffle_window(self, window: int) -> np.ndarray:
        """Return the shuffled offsets of a window's rows from its first place."""
        rows = int(self.window_starts[window + 1] - self.window_starts[window])
        return permutation(rows, hash_key("window", self.seed, self.epoch, window))

    def windows_between(self, start: int, end: int) -> range:
        """Return the windows that contain the rows `start` to `end` of the epoch."""
        first, last = np.searchsorted(self.window_starts, [start, end - 1], side="right") - 1
        return range(int(first), int(last) + 1)

    def share(self, step: int, batch_size: int, rank: int = 0, ranks: int = 1) -> Share:
        """Return the rows of batch number `step` of the epoch that a rank reads.

        The rows of a batch are sorted by place, and each rank takes a slice. So each rank needs only a part of the
        window's blocks. If a batch spans several windows, its rows are sorted by their relative place in the window.
        """
        start, end = step * batch_size, min((step + 1) * batch_size, self.rows)
        places, sort_keys = [], []
        for window in self.windows_between(start, end):
            first, last = (int(place) for place in self.window_starts[window : window + 2])
            offsets = self._window_order(window)[max(0, start - first) : end - first]
            places.append(first + offsets)
            sort_keys.append((offsets + 0.5) / (last - first))
        ordered = np.concatenate(places)[np.argsort(np.concatenate(sort_keys), kind="stable")]
        count = end - start
        rank_slice = slice(count * rank // ranks, count * (rank + 1) // ranks)
        return Share(ordered[rank_slice], rank_slice.start, count, end)
