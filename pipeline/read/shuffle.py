"""Row order of an epoch.

The order depends only on the row counts, the settings, the seed and the epoch, not on the number of ranks.

Blocks of consecutive rows are arranged in random order. Several successive blocks form a window, and the rows of a
window are shuffled together. Rows can therefore be read in blocks, and only one window has to be in memory.

An epoch may read only some rows of a block. A row's *place* is its position in the epoch after the blocks are arranged,
but before the rows are shuffled. Rows that the epoch does not read have no place and are not counted.

All randomness comes from a hash (SplitMix64 with a key), so the order does not depend on library versions.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""Increment of the SplitMix64 generator: 2**64 divided by the golden ratio, rounded to an odd number."""


def hash_key(*parts: int | str) -> np.uint64:
    """Return a 64-bit hash of the given parts, for use as the key of `mix` or as the seed of a random stream.

    Args:
        parts: a string that names the purpose of the key, followed by numbers such as the seed and the epoch.
    """
    digest = hashlib.sha256(" ".join(["priorkit", *map(str, parts)]).encode()).digest()
    key: np.uint64 = np.uint64(int.from_bytes(digest[:8], "big"))
    return key


def mix(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """Return a hash of each uint64 value. For a given key, different values have different hashes.

    The hash function is SplitMix64 (Steele, Lea and Flood, 2014).
    """
    state = values * _GAMMA + key
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)))


def permutation(count: int, key: np.uint64) -> np.ndarray:
    """Return the numbers from 0 to `count - 1` in a random order determined by the key: `[count]` int64."""
    # hashes are distinct, so every sorting algorithm gives the same order
    return np.argsort(mix(np.arange(count, dtype=np.uint64), key))


@dataclass(frozen=True)
class Share:
    """Rows of a global batch that one rank reads."""

    places: np.ndarray
    """`[b]` int64: positions of the rows in the epoch, before the rows of each window are shuffled."""
    first: int
    """Position of the share's first row in the global batch."""
    global_rows: int
    """Number of rows in the global batch."""
    end: int
    """Position, within the epoch, of the first row after the global batch."""


class EpochPlan:
    """Row order of one epoch, built in O(blocks) time.

    Any batch of the epoch can be computed without computing the others.

    Args:
        visits: `[blocks]` number of rows that the epoch reads from each block.
        sizes: `[blocks]` number of rows stored in each block.
        seed: seed of the order.
        epoch: epoch number.
        window_rows: approximate number of rows per shuffle window (a group of whole blocks whose rows are shuffled
            together). To decide where windows end, the rows of all blocks that the epoch reads from are counted in
            epoch order. All rows stored in these blocks are counted, even those that the epoch does not read. A window
            ends with the block at which the count reaches or passes the next multiple of `window_rows`.
    """

    def __init__(self, visits: np.ndarray, sizes: np.ndarray, *, seed: int, epoch: int, window_rows: int) -> None:
        self.seed, self.epoch = seed, epoch
        order = permutation(len(visits), hash_key("blocks", seed, epoch))
        self.blocks = order[visits[order] > 0]
        """`[n]`: indices of the n blocks from which the epoch reads at least one row, in epoch order."""
        self.starts = np.concatenate([[0], np.cumsum(visits[self.blocks])])
        """`[n + 1]`: position of each block's first row within the epoch, followed by the epoch's row count."""
        stored = sizes[self.blocks]
        window_of_block = (np.cumsum(stored) - stored) // window_rows
        first_blocks = np.flatnonzero(np.diff(window_of_block, prepend=-1))
        self.windows = np.append(first_blocks, len(self.blocks))
        """`[windows + 1]`: index of each window's first block in `self.blocks`, followed by the number of blocks."""
        self.window_starts = self.starts[self.windows]
        """`[windows + 1]`: position of each window's first row within the epoch, followed by the epoch's row count."""
        self.rows = int(self.starts[-1])
        """Number of rows read in the epoch."""
        self._window_order = functools.lru_cache(maxsize=4)(self._shuffle_window)

    def _shuffle_window(self, window: int) -> np.ndarray:
        """Return the rows of a window in shuffled order, as indices into the window."""
        rows = int(self.window_starts[window + 1] - self.window_starts[window])
        return permutation(rows, hash_key("window", self.seed, self.epoch, window))

    def windows_between(self, start: int, end: int) -> range:
        """Return the indices of the windows that contain the positions `start` to `end - 1` of the epoch."""
        first, last = np.searchsorted(self.window_starts, [start, end - 1], side="right") - 1
        return range(int(first), int(last) + 1)

    def share(self, step: int, batch_size: int, rank: int = 0, ranks: int = 1) -> Share:
        """Return the rows of a global batch that one rank reads.

        The rows of the batch are sorted by their relative position within their window: the position before shuffling,
        as a fraction of the number of rows in the window. Each rank then gets one slice of the sorted rows, so that it
        needs only some of the blocks. If the batch spans several windows, the rows of all of them are sorted together.

        Args:
            step: batch number within the epoch.
            batch_size: number of rows per global batch.
            rank: index of the rank.
            ranks: number of ranks that share the batch.
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
