"""Sample of a list's URLs, used to count or estimate duplicate rows in bounded memory."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..compute.hash_sample import HashSample


class UrlSample:
    """Sample of the distinct URLs in a list, stored as hashes with the number of rows that contain each URL.

    The hashes have 64 bits. If the sample contains 4 million hashes, the probability that the hash of a new URL equals
    one of them is 2e-13.

    Args:
        capacity: maximum number of hashes. If the list has more distinct URLs, only some of them are sampled.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._sample = HashSample(np.uint64)
        self._merged = 0
        """Number of distinct hashes after the last merge."""

    @property
    def level(self) -> int:
        """Sampling level: on average, 1 in `2**level` distinct URLs is sampled. At level 0, every URL is sampled."""
        return self._sample.level

    def __len__(self) -> int:
        return len(self._sample)

    def add(self, hashes: np.ndarray, counts: np.ndarray, level: int = 0) -> None:
        """Add the hashes of URLs to the sample.

        Args:
            hashes: uint64 array `[n]` of hashes, one for each of n distinct URLs.
            counts: int64 array `[n]`, number of rows that contain each URL.
            level: sampling level of the `UrlSample` from which the hashes were taken; 0 if the URLs were not sampled.
        """
        self._sample.add(hashes, counts, level)
        if len(self) - self._merged > self._capacity // 4:
            self._merge()

    def duplicates(self) -> int:
        """Return the number of rows whose URL occurs in an earlier row.

        The number is exact if `level` is 0, and an estimate otherwise.
        """
        _, counts = self._merge()
        return int((counts.sum() - len(counts)) << self.level)

    def to_json(self) -> dict[str, Any]:
        """Return the sample as JSON-serializable values for a shard's `_stats.json`."""
        hashes, counts = self._merge()
        return {
            "level": self.level,
            "hashes": base64.b64encode(hashes.astype("<u8").tobytes()).decode(),
            "counts": {str(index): int(counts[index]) for index in np.flatnonzero(counts > 1)},
        }

    def add_json(self, value: Mapping[str, Any]) -> None:
        """Add a sample in the form that `to_json` returns.

        Raises:
            ValueError, KeyError, IndexError, TypeError, AttributeError: `value` does not have that form.
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
        """Add up the counts of equal hashes and shrink the sample to its capacity.

        Returns:
            The sorted distinct hashes and their counts.
        """
        hashes, counts = self._sample.take()
        distinct, indices = np.unique(hashes, return_inverse=True)
        sums = np.bincount(indices.reshape(-1), counts, len(distinct)).astype(np.int64)
        self._sample.add(distinct, sums)
        self._sample.shrink(self._capacity)
        self._merged = len(self._sample)
        return self._sample.rows()


def url_hashes(urls: Iterable[str | None]) -> np.ndarray:
    """Return a uint64 array with the 64-bit hash of each URL, skipping URLs that are missing or blank."""
    digests = [hashlib.blake2b(url.encode(), digest_size=8).digest() for url in urls if url and url.strip()]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
