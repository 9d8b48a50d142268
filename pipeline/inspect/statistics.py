"""Statistics of a stream in bounded memory: distributions over fixed bins, and repeated values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..compute.hash_sample import HashSample

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""Shares of the quantiles that are printed."""
_PRINTED_BINS = 64
"""Largest number of bins of a printed histogram."""
REPEATS_CAPACITY = 10_000_000
"""Number of rows whose hash `Repeats` keeps: 16 bytes for each, and 32 more while they are sorted."""


class Distribution:
    """Moments and a histogram over fixed edges. The first and last bin also count the values beyond them.

    Args:
        edges: `[bins + 1]` ascending.
        whole: True if values are whole numbers; quantiles then are too.
    """

    def __init__(self, edges: np.ndarray, *, whole: bool = False) -> None:
        self._whole = whole
        self.edges = np.asarray(edges, np.float64)
        self.counts = np.zeros(len(edges) - 1, np.int64)
        self.rows = 0
        self._mean = self._squares = 0.0
        self._min, self._max = math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        """Add values `[n]`. Values that are not finite are skipped; they are reported as faults elsewhere."""
        values = np.asarray(values, np.float64)
        values = values[np.isfinite(values)]
        if not len(values):
            return
        mean, rows = values.mean(), self.rows + len(values)
        delta = mean - self._mean
        # combine the moments of two parts without cancellation (Chan, Golub and LeVeque 1979)
        self._squares += ((values - mean) ** 2).sum() + delta**2 * self.rows * len(values) / rows
        self._mean += delta * len(values) / rows
        self.rows = rows
        self._min, self._max = min(self._min, float(values.min())), max(self._max, float(values.max()))
        bins = np.searchsorted(self.edges, values, side="right") - 1
        self.counts += np.bincount(np.clip(bins, 0, len(self.counts) - 1), minlength=len(self.counts))

    def mean_and_error(self) -> tuple[float, float]:
        """Return the mean and its standard error."""
        return self._mean, math.sqrt(self._squares) / self.rows

    def quantile(self, share: float) -> float:
        """Return a quantile, interpolated linearly within its bin; its error is at most the bin's width."""
        target = share * self.rows
        below = np.cumsum(self.counts)
        at = int(np.searchsorted(below, target))
        edges = self.edges.copy()
        first, last = np.flatnonzero(self.counts)[[0, -1]]
        edges[first], edges[last + 1] = self._min, self._max
        inside = self.counts[at]
        part = (target - (below[at] - inside)) / inside if inside else 0.0
        value = float(edges[at] + part * (edges[at + 1] - edges[at]))
        return min(math.floor(value), self._max) if self._whole else value

    def to_json(self) -> dict[str, Any]:
        """Return moments, extremes, quantiles by share, and the histogram without empty bins at its ends."""
        first, last = np.flatnonzero(self.counts)[[0, -1]]
        step = -(-(last + 1 - first) // _PRINTED_BINS)
        starts = np.arange(first, last + 1, step)
        return {
            "rows": self.rows,
            "mean": self._mean,
            "std": math.sqrt(self._squares / self.rows),
            "min": self._min,
            "max": self._max,
            "quantiles": {str(share): self.quantile(share) for share in QUANTILES},
            "histogram": {
                "edges": [float(edge) for edge in [*self.edges[starts], self.edges[last + 1]]],
                "counts": [int(count) for count in np.add.reduceat(self.counts[: last + 1], starts)],
            },
        }


class Repeats:
    """Finder of rows with equal content, by 8-byte hashes.

    It is exact up to `capacity` rows. Beyond that it keeps only contents whose hash ends in a zero bit, then in two,
    and so on. So it keeps all rows of a sample of contents, in bounded memory. The probability that any two of 10
    million contents have the same hash is 3e-6.
    """

    def __init__(self, capacity: int = REPEATS_CAPACITY) -> None:
        self._capacity = capacity
        self._sample = HashSample(np.int64)

    @property
    def one_in(self) -> int:
        """Sampling rate of contents: 1 if all are kept, 2 for every second one, and so on."""
        return 1 << self._sample.level

    def add(self, hashes: np.ndarray, rows: np.ndarray) -> None:
        """Add `[n]` int64 hashes and their row numbers, ascending."""
        self._sample.add(hashes, rows)
        self._sample.shrink(self._capacity)

    def find(self, most: int = 3) -> tuple[int, list[tuple[int, int]]]:
        """Return the number of rows that repeat an earlier one, and the first pairs (row, earlier row); clear all."""
        hashes, rows = self._sample.take()
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        same = np.flatnonzero(hashes[1:] == hashes[:-1])
        first = same[np.argsort(rows[order[same + 1]], kind="stable")[:most]]
        return len(same), [(int(rows[order[at + 1]]), int(rows[order[at]])) for at in first]


def content_hashes(values: Iterable[Any], count: int) -> np.ndarray:
    """Return `[count]` int64 hashes of values. Python salts them in each process, so collisions cannot be planted."""
    return np.fromiter(map(_hash, values), np.int64, count)


def _hash(value: Any) -> int:
    """Return the hash of a value, by its text if it is a list or a struct."""
    try:
        return hash(value)
    except TypeError:
        return hash(repr(value))


def cosines() -> Distribution:
    """Return a distribution for cosines: 400 bins from -1 to 1."""
    return Distribution(np.linspace(-1, 1, 401))


def unit_norms() -> Distribution:
    """Return a distribution for norms that should be 1: 200 bins from 0.99 to 1.01."""
    return Distribution(np.linspace(0.99, 1.01, 201))


def lengths() -> Distribution:
    """Return a distribution for lengths: one bin per number below 256, then 32 per doubling up to 16 million."""
    return Distribution(np.concatenate([np.arange(256), 2.0 ** (8 + np.arange(16 * 32 + 1) / 32)]), whole=True)


def magnitudes() -> Distribution:
    """Return a distribution for positive numbers: 32 bins per doubling, from 2^-10 to 2^20."""
    return Distribution(2.0 ** (np.arange(-10 * 32, 20 * 32 + 1) / 32))
