"""The order of an epoch: a pure function of counts, seed and epoch, whatever the number of ranks.

Blocks of consecutive rows are put in random order; so many of them as make up a window are shuffled together. Hence
only a window has to be held in memory, and reading goes by blocks. Rows are known here by their *place*: how many rows
of the permuted blocks come before.

All randomness is a hash (SplitMix64 of a key), so that an order does not depend on the version of a library either.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def hash_key(*parts: int | str) -> np.uint64:
    """A key of a purpose and numbers: for `mix`, or for a stream of random numbers."""
    mark = hashlib.sha256(" ".join(["priorkit", *map(str, parts)]).encode()).digest()
    key: np.uint64 = np.uint64(int.from_bytes(mark[:8], "big"))
    return key


def mix(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """A hash of each uint64 value under a key; one to one (SplitMix64: Steele, Lea and Flood 2014)."""
    state = values * _GAMMA + key
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)))


def permutation(count: int, key: np.uint64) -> np.ndarray:
    """The numbers below `count`, `[count]` int64, in an order that follows from the key."""
    return np.argsort(mix(np.arange(count, dtype=np.uint64), key))  # no two are equal, so any sort will do


@dataclass(frozen=True)
class Share:
    """What one rank takes of a global batch."""

    places: np.ndarray
    """`[b]` int64: places in the epoch."""
    first: int
    """Place of its first row in the global batch."""
    global_rows: int
    """Rows of the global batch."""
    end: int
    """Place in the epoch where the global batch ends."""


class EpochPlan:
    """The order of one epoch, made in O(blocks); any batch of it follows without those before.

    Args:
        visits: `[blocks]` rows of each block that the epoch visits.
        sizes: `[blocks]` rows of each block that are stored.
        window_rows: stored rows of the blocks that are shuffled together; a window ends with the block that reaches it.
    """

    def __init__(self, visits: np.ndarray, sizes: np.ndarray, *, seed: int, epoch: int, window_rows: int) -> None:
        self.seed, self.epoch = seed, epoch
        order = permutation(len(visits), hash_key("blocks", seed, epoch))
        self.blocks = order[visits[order] > 0]
        """Block numbers in the order of the epoch; those without a visit are left out."""
        self.starts = np.concatenate([[0], np.cumsum(visits[self.blocks])])
        """`[n + 1]`: place of the first row of each block."""
        stored = sizes[self.blocks]
        window_of = (np.cumsum(stored) - stored) // window_rows
        firsts = np.flatnonzero(np.diff(window_of, prepend=-1))
        self.windows = np.append(firsts, len(self.blocks))
        """`[m + 1]`: where in `blocks` each window begins."""
        self.window_starts = self.starts[self.windows]
        """`[m + 1]`: place of the first row of each window."""
        self.rows = int(self.starts[-1])
        self._window_order = functools.lru_cache(maxsize=4)(self._shuffle_window)

    def _shuffle_window(self, window: int) -> np.ndarray:
        rows = int(self.window_starts[window + 1] - self.window_starts[window])
        return permutation(rows, hash_key("window", self.seed, self.epoch, window))

    def windows_of(self, start: int, end: int) -> range:
        """The windows that the rows from `start` to `end` of the epoch's order come from."""
        first, last = np.searchsorted(self.window_starts, [start, end - 1], side="right") - 1
        return range(int(first), int(last) + 1)

    def share(self, step: int, batch_size: int, rank: int = 0, ranks: int = 1) -> Share:
        """What a rank takes of batch number `step` of the epoch.

        The rows of a batch are put in order of their place in the window, so that each rank finds its own in a part of
        the window's blocks. Of a batch that lies in several windows it is by the relative place, to that end too.
        """
        start, end = step * batch_size, min((step + 1) * batch_size, self.rows)
        places, keys = [], []
        for window in self.windows_of(start, end):
            first, last = (int(at) for at in self.window_starts[window : window + 2])
            within = self._window_order(window)[max(0, start - first) : end - first]
            places.append(first + within)
            keys.append((within + 0.5) / (last - first))
        ordered = np.concatenate(places)[np.argsort(np.concatenate(keys), kind="stable")]
        count = end - start
        own = slice(count * rank // ranks, count * (rank + 1) // ranks)
        return Share(ordered[own], own.start, count, end)
