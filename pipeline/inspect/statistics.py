"""Statistics of a stream in bounded memory: distributions by fixed bins, and values that come more than once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..compute.hash_sample import HashSample

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_PRINTED_BINS = 64
REPEATS_CAPACITY = 10_000_000
"""Rows of which `Repeats` keeps a hash: 16 bytes each, and 32 more while they are sorted."""


class Distribution:
    """Moments, and a histogram over fixed edges; the first and last bin take what lies beyond.

    Args:
        edges: `[bins + 1]` ascending.
        whole: values are whole numbers, and so are quantiles.
    """

    def __init__(self, edges: np.ndarray, *, whole: bool = False) -> None:
        self._whole = whole
        self.edges = np.asarray(edges, np.float64)
        self.counts = np.zeros(len(edges) - 1, np.int64)
        self.rows = 0
        self._mean = self._squares = 0.0
        self._min, self._max = math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        """Take in values `[n]`; those that are not finite are left out, and named elsewhere as damage."""
        values = np.asarray(values, np.float64)
        values = values[np.isfinite(values)]
        if not len(values):
            return
        mean, rows = values.mean(), self.rows + len(values)
        delta = mean - self._mean
        # moments of two parts together (Chan, Golub and LeVeque 1979): no cancellation, whatever the mean
        self._squares += ((values - mean) ** 2).sum() + delta**2 * self.rows * len(values) / rows
        self._mean += delta * len(values) / rows
        self.rows = rows
        self._min, self._max = min(self._min, float(values.min())), max(self._max, float(values.max()))
        bins = np.searchsorted(self.edges, values, side="right") - 1
        self.counts += np.bincount(np.clip(bins, 0, len(self.counts) - 1), minlength=len(self.counts))

    def mean_and_error(self) -> tuple[float, float]:
        """The mean and its standard error."""
        return self._mean, math.sqrt(self._squares) / self.rows

    def quantile(self, share: float) -> float:
        """A quantile by linear interpolation within its bin, so right to the bin's width."""
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
        """Rows, mean, standard deviation, extremes, quantiles by share, and the occupied part of the histogram."""
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
    """Finds rows of equal content by 8-byte hashes, exactly up to `capacity` rows.

    Beyond it only contents whose hash ends in a zero bit are kept, then in two, and so on: a sample of contents, all
    rows of each, so the memory stays bounded whatever the number of rows. Two contents of one hash among 10 million
    rows have a probability of 3e-6.
    """

    def __init__(self, capacity: int = REPEATS_CAPACITY) -> None:
        self._capacity = capacity
        self._sample = HashSample(np.int64)

    @property
    def one_in(self) -> int:
        """Number of contents of which one is sampled."""
        return 1 << self._sample.level

    def add(self, hashes: np.ndarray, rows: np.ndarray) -> None:
        """Take in `[n]` int64 hashes and the numbers of their rows, ascending."""
        self._sample.add(hashes, rows)
        self._sample.shrink(self._capacity)

    def find(self, most: int = 3) -> tuple[int, list[tuple[int, int]]]:
        """How many rows repeat an earlier one, and the first of them: (row, the earlier row). Ends the collecting."""
        hashes, rows = self._sample.take()
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        same = np.flatnonzero(hashes[1:] == hashes[:-1])
        first = same[np.argsort(rows[order[same + 1]], kind="stable")[:most]]
        return len(same), [(int(rows[order[at + 1]]), int(rows[order[at]])) for at in first]


def hashes_of(values: Iterable[Any], count: int) -> np.ndarray:
    """`[count]` int64 hashes of text or bytes; keyed anew in each process, so nobody can plant equal ones."""
    return np.fromiter(map(_hash, values), np.int64, count)


def _hash(value: Any) -> int:
    try:
        return hash(value)
    except TypeError:  # a list or a struct
        return hash(repr(value))


def cosines() -> Distribution:
    """Of cosines: 400 bins from -1 to 1."""
    return Distribution(np.linspace(-1, 1, 401))


def unit_norms() -> Distribution:
    """Of norms that should be 1: 200 bins from 0.99 to 1.01."""
    return Distribution(np.linspace(0.99, 1.01, 201))


def lengths() -> Distribution:
    """Of lengths and sizes: one bin for each number below 256, then 32 for each doubling up to 16 million."""
    return Distribution(np.concatenate([np.arange(256), 2.0 ** (8 + np.arange(16 * 32 + 1) / 32)]), whole=True)


def magnitudes() -> Distribution:
    """Of positive numbers of any size: 32 bins for each doubling, from 2^-10 to 2^20."""
    return Distribution(2.0 ** (np.arange(-10 * 32, 20 * 32 + 1) / 32))
