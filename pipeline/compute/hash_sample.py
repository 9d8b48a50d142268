"""Bounded sample of contents by their 64-bit hashes, which estimates how many rows are duplicates."""

from __future__ import annotations

import numpy as np


class HashSample:
    """Rows of the contents whose hash ends in `level` zero bits.

    A content is sampled with all its rows or with none, so the share of duplicates in the sample estimates their share
    in the whole. At level 0 the sample is complete. Samples of parts can be joined, since the choice depends on the
    hash alone.

    Args:
        dtype: integer type of the hashes, of 64 bits.
    """

    def __init__(self, dtype: type[np.int64] | type[np.uint64]) -> None:
        self.level = 0
        """Number of zero bits; 1 in `2**level` contents is sampled."""
        self._dtype = dtype
        self._blocks: list[tuple[np.ndarray, np.ndarray]] = []
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, hashes: np.ndarray, values: np.ndarray, level: int = 0) -> None:
        """Add rows, those of sampled contents only.

        Args:
            hashes: `[n]` hashes of the contents.
            values: `[n]` int64, one for each hash, such as row numbers or counts.
            level: level of the sample that the rows come from.
        """
        self.level = max(self.level, level)
        block = self._sampled(hashes, values)
        self._blocks.append(block)
        self._rows += len(block[0])

    def shrink(self, capacity: int) -> None:
        """Raise the level until at most `capacity` hashes remain."""
        while self._rows > capacity:
            self.level += 1
            self._blocks = [self._sampled(hashes, values) for hashes, values in self._blocks]
            self._rows = sum(len(hashes) for hashes, _ in self._blocks)

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the hashes and values `[n]` of all rows, in the order in which they were added."""
        blocks = [self._sampled(hashes, values) for hashes, values in self._blocks]
        hashes = np.concatenate([np.empty(0, self._dtype), *(hashes for hashes, _ in blocks)])
        return hashes, np.concatenate([np.empty(0, np.int64), *(values for _, values in blocks)])

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Remove all rows, and return them as `rows` does."""
        rows = self.rows()
        self._blocks, self._rows = [], 0
        return rows

    def _sampled(self, hashes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows whose hash ends in `level` zero bits."""
        chosen = hashes & self._dtype((1 << self.level) - 1) == 0
        return hashes[chosen], values[chosen]
