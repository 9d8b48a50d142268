"""Sample of the URLs of a list, which counts or estimates duplicate rows in bounded memory."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..compute.hash_sample import HashSample


class UrlSample:
    """Hashes of sampled URLs, with the number of rows of each.

    If the sample has 4 million hashes, another URL has one of these hashes with a probability of 2e-13.

    Args:
        capacity: largest number of distinct hashes.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._sample = HashSample(np.uint64)
        self._merged = 0
        """Number of distinct hashes at the last merge."""

    @property
    def level(self) -> int:
        """Level of the sample: 1 in `2**level` URLs is sampled."""
        return self._sample.level

    def __len__(self) -> int:
        return len(self._sample)

    def add(self, hashes: np.ndarray, counts: np.ndarray, level: int = 0) -> None:
        """Add URLs.

        Args:
            hashes: `[n]` uint64, distinct.
            counts: `[n]` int64, the number of rows of each.
            level: level of the sample that they come from.
        """
        self._sample.add(hashes, counts, level)
        if len(self) - self._merged > self._capacity // 4:
            self._merge()

    def duplicates(self) -> int:
        """Return the number of rows whose URL an earlier row has: exact at level 0, else an estimate."""
        _, counts = self._merge()
        return int((counts.sum() - len(counts)) << self.level)

    def to_json(self) -> dict[str, Any]:
        """Return the sample as JSON values, as `_stats.json` of a shard stores it."""
        hashes, counts = self._merge()
        return {
            "level": self.level,
            "hashes": base64.b64encode(hashes.astype("<u8").tobytes()).decode(),
            "counts": {str(index): int(counts[index]) for index in np.flatnonzero(counts > 1)},
        }

    def add_json(self, value: Mapping[str, Any]) -> None:
        """Add a sample that `to_json` returned.

        Raises:
            ValueError, KeyError, IndexError, TypeError, AttributeError: the value is none.
        """
        hashes = np.frombuffer(base64.b64decode(value["hashes"]), "<u8").astype(np.uint64)
        level = value["level"]
        if type(level) is not int or not 0 <= level < 64:
            raise ValueError(f"{level!r} is no level of a sample")
        counts = np.ones(len(hashes), np.int64)
        for index, count in value["counts"].items():
            counts[int(index)] = count
        self.add(hashes, counts, level)

    def _merge(self) -> tuple[np.ndarray, np.ndarray]:
        """Sum the counts of equal hashes, shrink to the capacity, and return the sorted hashes and their counts."""
        hashes, counts = self._sample.take()
        distinct, indices = np.unique(hashes, return_inverse=True)
        sums = np.bincount(indices.reshape(-1), counts, len(distinct)).astype(np.int64)
        self._sample.add(distinct, sums)
        self._sample.shrink(self._capacity)
        self._merged = len(self._sample)
        return self._sample.rows()


def url_hashes(urls: Iterable[str | None]) -> np.ndarray:
    """Return the 64-bit hashes `[n]` of all URLs that are not empty."""
    digests = [hashlib.blake2b(url.encode(), digest_size=8).digest() for url in urls if url and url.strip()]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
