"""Near duplicates: how alike the rows of a seeded sample of a folder are to each other."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

BANK_ROWS = 100_000
NEAR_COSINE = 0.98
"""From which cosine on two images count as near duplicates."""
_SEED = 0
_QUERIES, _COLUMNS = 1024, 8192
_SECONDS = 60.0


def seeded_rows(total: int, most: int) -> np.ndarray:
    """At most `most` of the rows 0 to `total`, the same ones each time, ascending."""
    if total <= most:
        return np.arange(total)
    return np.sort(np.random.default_rng(_SEED).choice(total, most, replace=False, shuffle=False))


@dataclass
class Neighbours:
    """What comparing the rows of a bank has given."""

    compared: int
    """Rows that were held against the whole bank; fewer than it has where the time was up."""
    near_pairs: int
    """Pairs of rows, at least one of them compared, of `NEAR_COSINE` or more and of other content."""
    examples: list[tuple[int, int]]
    """Row numbers of some such pairs."""
    nearest: np.ndarray
    """`[compared]` float32: the cosine to the nearest other row of other content."""


class NeighbourBank:
    """Keeps the chosen rows as they stream by, 2 bytes a value, and compares them in the end.

    Args:
        total: rows of the folder.
        most: rows of the bank.
    """

    def __init__(self, total: int, most: int = BANK_ROWS) -> None:
        self._chosen = seeded_rows(total, most)
        self._rows: list[np.ndarray] = []
        self._embeds: list[np.ndarray] = []
        self._hashes: list[np.ndarray] = []
        self.rows = 0
        """Rows that the bank holds."""

    def add(self, rows: np.ndarray, embeds: np.ndarray, hashes: np.ndarray) -> None:
        """Take in what was chosen of sound unit vectors `[n, D]`, their row numbers and the hashes of their bytes."""
        first, last = np.searchsorted(self._chosen, [rows[0], rows[-1] + 1]) if len(rows) else (0, 0)
        at = np.isin(rows, self._chosen[first:last], assume_unique=True)
        if at.any():
            self._rows.append(rows[at])
            self._embeds.append(embeds[at].astype(np.float16))
            self._hashes.append(hashes[at])
            self.rows += int(at.sum())

    def compare(self, seconds: float = _SECONDS, near: float = NEAR_COSINE) -> Neighbours:
        """Compare all pairs, block by block, until the time is up. Copies of one content count as one row."""
        if not self.rows:
            return Neighbours(0, 0, [], np.empty(0, np.float32))
        hashes, rows, embeds = (np.concatenate(parts) for parts in (self._hashes, self._rows, self._embeds))
        self._rows, self._embeds, self._hashes = [], [], []
        _, first = np.unique(hashes, return_index=True)
        # in a shuffled order, so that what is compared when the time is up is a sample too
        order = np.random.default_rng(_SEED).permutation(np.sort(first))
        rows, embeds = rows[order], embeds[order]
        nearest = np.full(len(rows), -np.inf, np.float32)
        end, pairs, examples = time.monotonic() + seconds, 0, list[tuple[int, int]]()
        done = 0
        while done < len(rows) and (time.monotonic() < end or not done):
            queries = embeds[done : done + _QUERIES].astype(np.float32)
            stop = done + len(queries)
            for start in range(done, len(rows), _COLUMNS):
                block = embeds[start : start + _COLUMNS].astype(np.float32)
                cosines = queries @ block.T  # (queries, columns)
                here = np.arange(start, start + len(block))
                if start < stop:  # each pair once, and no row with itself: later rows only
                    cosines[here[None, :] <= np.arange(done, stop)[:, None]] = -np.inf
                np.maximum(nearest[done:stop], cosines.max(1), out=nearest[done:stop])
                np.maximum(nearest[here], cosines.max(0), out=nearest[start : start + len(block)])
                hits = np.argwhere(cosines >= near)
                pairs += len(hits)
                examples += [(int(rows[done + i]), int(rows[start + j])) for i, j in hits[: 3 - len(examples)]]
            done = stop
        found = nearest[:done]
        ordered = sorted((min(pair), max(pair)) for pair in examples)
        return Neighbours(done, pairs, ordered, found[np.isfinite(found)])
