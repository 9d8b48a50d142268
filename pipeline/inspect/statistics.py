"""Streaming statistics in bounded memory: histograms with fixed bins, and a search for duplicate values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..compute.hash_sample import HashSample

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""Quantiles in the output of `Distribution.to_json`, as fractions from 0 to 1."""
_PRINTED_BINS = 64
"""Maximum number of bins in the histogram that `Distribution.to_json` returns."""
REPEATS_CAPACITY = 10_000_000
"""Maximum number of rows that `Repeats` stores. Each row takes 16 bytes, and another 32 bytes during sorting."""


class Distribution:
    """Mean, standard deviation, extremes and histogram of a stream of values.

    The first bin also counts the values below its lower edge, and the last bin the values above its upper edge.

    Args:
        edges: `[bins + 1]` bin edges, ascending.
        whole: True if the values are whole numbers. Quantiles are then rounded down to whole numbers.
    """

    def __init__(self, edges: np.ndarray, *, whole: bool = False) -> None:
        self._whole = whole
        self.edges = np.asarray(edges, np.float64)
        self.counts = np.zeros(len(edges) - 1, np.int64)
        self.rows = 0
        self._mean = self._squares = 0.0
        self._min, self._max = math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        """Add n values, given as an array `[n]`. NaN and infinity are skipped, because the callers report them."""
        values = np.asarray(values, np.float64)
        values = values[np.isfinite(values)]
        if not len(values):
            return
        mean, rows = values.mean(), self.rows + len(values)
        delta = mean - self._mean
        # combine the moments of both parts without cancellation (Chan, Golub and LeVeque 1979)
        self._squares += ((values - mean) ** 2).sum() + delta**2 * self.rows * len(values) / rows
        self._mean += delta * len(values) / rows
        self.rows = rows
        self._min, self._max = min(self._min, float(values.min())), max(self._max, float(values.max()))
        bins = np.searchsorted(self.edges, values, side="right") - 1
        self.counts += np.bincount(np.clip(bins, 0, len(self.counts) - 1), minlength=len(self.counts))

    def mean_and_error(self) -> tuple[float, float]:
        """Return the mean of the values, and the standard error of the mean."""
        return self._mean, math.sqrt(self._squares) / self.rows

    def quantile(self, share: float) -> float:
        """Return the value below which the fraction `share` of the values lies, such as the median for 0.5.

        The quantile is interpolated linearly within its bin, so its error is at most the bin width. Call this method
        only after at least one value has been added.
        """
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
        """Return the number of values, mean, standard deviation, extremes, quantiles and histogram.

        Empty bins at both ends of the histogram are omitted. Neighbouring bins are merged so that at most 64 remain.
        Call this method only after at least one value has been added.
        """
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
    """Search for duplicate rows, in which rows are compared by 64-bit hashes of their content.

    The search covers all rows if there are at most `capacity`. If there are more, it covers only the rows whose hash
    ends in a zero bit. If these are still too many, the hash must end in two zero bits, and so on. This limits memory
    use. Rows with the same content have the same hash, so either all or none of them are covered. Among 10 million rows
    with different content, the probability that any two have the same hash is 3e-6.

    Args:
        capacity: maximum number of stored rows.
    """

    def __init__(self, capacity: int = REPEATS_CAPACITY) -> None:
        self._capacity = capacity
        self._sample = HashSample(np.int64)

    @property
    def one_in(self) -> int:
        """Sampling interval N: on average, the search covers one in N distinct rows; 1 if it covers all rows."""
        return 1 << self._sample.level

    def add(self, hashes: np.ndarray, rows: np.ndarray) -> None:
        """Add rows to the search. If more than `capacity` rows are then stored, some are dropped; see `Repeats`.

        Args:
            hashes: `[n]` int64 hashes of the rows' content.
            rows: `[n]` row numbers, ascending.
        """
        self._sample.add(hashes, rows)
        self._sample.shrink(self._capacity)

    def find(self, most: int = 3) -> tuple[int, list[tuple[int, int]]]:
        """Find duplicates among the stored rows, and remove all stored rows.

        Returns:
            The number of rows that repeat an earlier row, and the first `most` of these rows as pairs (row number,
            earlier row number).
        """
        hashes, rows = self._sample.take()
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        same = np.flatnonzero(hashes[1:] == hashes[:-1])
        first = same[np.argsort(rows[order[same + 1]], kind="stable")[:most]]
        return len(same), [(int(rows[order[at + 1]]), int(rows[order[at]])) for at in first]


def content_hashes(values: Iterable[Any], count: int) -> np.ndarray:
    """Return an int64 hash of each value, computed by Python's `hash`.

    Python salts the hashes of text and bytes in each process, so an attacker cannot construct collisions. For the same
    reason, hashes from different processes cannot be compared.

    Args:
        values: values to hash. Unhashable values, such as lists, are converted to text by `repr` first.
        count: number of values.
    """
    return np.fromiter(map(_hash, values), np.int64, count)


def _hash(value: Any) -> int:
    """Return the hash of a value. For an unhashable value, such as a list or struct, return the hash of its repr."""
    try:
        return hash(value)
    except TypeError:
        return hash(repr(value))


def cosines() -> Distribution:
    """Return an empty histogram for cosine similarities, with 400 bins from -1 to 1."""
    return Distribution(np.linspace(-1, 1, 401))


def unit_norms() -> Distribution:
    """Return an empty histogram for norms that should be 1, with 200 bins from 0.99 to 1.01."""
    return Distribution(np.linspace(0.99, 1.01, 201))


def lengths() -> Distribution:
    """Return an empty histogram for lengths, with fine bins for short lengths.

    There is one bin for each whole number below 256. From 256 to 2^24, there are 32 bins between successive powers
    of 2.
    """
    return Distribution(np.concatenate([np.arange(256), 2.0 ** (8 + np.arange(16 * 32 + 1) / 32)]), whole=True)


def magnitudes() -> Distribution:
    """Return an empty histogram for positive numbers, with bins from 2^-10 to 2^20.

    There are 32 bins between successive powers of 2.
    """
    return Distribution(2.0 ** (np.arange(-10 * 32, 20 * 32 + 1) / 32))
