"""Sampling of rows by a 64-bit hash of their content, to estimate the proportion of duplicate rows."""

from __future__ import annotations

import numpy as np


class HashSample:
    """Sample of rows, chosen by a hash of each row's content.

    A row is in the sample if its hash ends in at least `level` zero bits. The level starts at 0, which includes all
    rows. `shrink` and `add` can raise it. On average, raising it by one removes half of the distinct rows from the
    sample, together with all their duplicates.

    Rows with the same content have the same hash, so either all or none of them are sampled. The proportion of
    duplicates in the sample therefore estimates their proportion among all rows. Samples of different parts of the data
    can be combined, because each row is selected by its hash alone.

    Args:
        dtype: 64-bit integer dtype of the hashes.
    """

    def __init__(self, dtype: type[np.int64] | type[np.uint64]) -> None:
        self.level = 0
        """Minimum number of trailing zero bits in the hash of a sampled row. On average, one in `2**level` distinct
        rows is sampled."""
        self._dtype = dtype
        self._blocks: list[tuple[np.ndarray, np.ndarray]] = []
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, hashes: np.ndarray, values: np.ndarray, level: int = 0) -> None:
        """Add rows to the sample. Rows whose hash ends in fewer than `self.level` zero bits are ignored.

        Args:
            hashes: `[n]` content hashes, one per row.
            values: `[n]` int64 values to store with the hashes, such as row numbers or counts.
            level: level of the `HashSample` from which the rows were taken; 0 if they do not come from one. If
                `self.level` is lower than `level`, it is first raised to `level`.
        """
        self.level = max(self.level, level)
        block = self._sampled(hashes, values)
        self._blocks.append(block)
        self._rows += len(block[0])

    def shrink(self, capacity: int) -> None:
        """Reduce the sample to at most `capacity` rows, by raising the level one step at a time.

        Each step removes the rows whose hash ends in too few zero bits. A sample that is already small enough is not
        changed.
        """
        while self._rows > capacity:
            self.level += 1
            self._blocks = [self._sampled(hashes, values) for hashes, values in self._blocks]
            self._rows = sum(len(hashes) for hashes, _ in self._blocks)

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the hashes `[n]` and values `[n]` of all sampled rows, in the order in which they were added."""
        blocks = [self._sampled(hashes, values) for hashes, values in self._blocks]
        hashes = np.concatenate([np.empty(0, self._dtype), *(hashes for hashes, _ in blocks)])
        return hashes, np.concatenate([np.empty(0, np.int64), *(values for _, values in blocks)])

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Remove all rows from the sample, and return their hashes and values as `rows` does.

        The level stays the same.
        """
        rows = self.rows()
        self._blocks, self._rows = [], 0
        return rows

    def _sampled(self, hashes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the hashes and values of the rows whose hash ends in at least `self.level` zero bits."""
        chosen = hashes & self._dtype((1 << self.level) - 1) == 0
        return hashes[chosen], values[chosen]
