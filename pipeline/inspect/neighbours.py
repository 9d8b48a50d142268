"""Search for near-duplicate images in a random sample of a folder's rows. The sample is drawn with a fixed seed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

BANK_ROWS = 100_000
"""Maximum number of rows that are compared with each other. 100,000 rows form 5 billion pairs."""
NEAR_COSINE = 0.98
"""Minimum cosine similarity of two image embeddings that count as near duplicates."""
_SEED = 0
_QUERIES, _COLUMNS = 1024, 8192
"""Maximum number of rows and columns of a cosine matrix. Such a matrix takes 32 MiB as float32."""
_SECONDS = 60.0
"""Time limit in seconds for comparing rows. Rows that remain after that time are not compared."""


def seeded_rows(total: int, most: int) -> np.ndarray:
    """Return `most` random row numbers below `total`, or all row numbers if `total` is at most `most`.

    The numbers are in ascending order. The seed is fixed, so the same arguments give the same row numbers.
    """
    if total <= most:
        return np.arange(total)
    return np.sort(np.random.default_rng(_SEED).choice(total, most, replace=False, shuffle=False))


@dataclass
class Neighbours:
    """Result of the search for near-duplicate images among the sampled rows of a `NeighbourBank`."""

    compared: int
    """Number of rows with distinct embeddings that were compared with all others within the time limit."""
    near_pairs: int
    """Number of near-duplicate pairs.

    The embeddings of such a pair differ, but their cosine similarity is at least the argument `near` of `compare`.
    """
    examples: list[tuple[int, int]]
    """Row numbers of up to three near-duplicate pairs."""
    nearest: np.ndarray
    """`[compared]` float32: for each compared row, the largest cosine similarity to a row with a different embedding.

    Empty if all rows have the same embedding.
    """


class NeighbourBank:
    """Fixed-seed random sample of a folder's rows, in which `compare` searches for near-duplicate images.

    The embeddings of the sampled rows are stored as float16.

    Args:
        total: number of rows in the folder.
        most: maximum number of rows in the sample.
    """

    def __init__(self, total: int, most: int = BANK_ROWS) -> None:
        self._chosen = seeded_rows(total, most)
        self._rows: list[np.ndarray] = []
        self._embeds: list[np.ndarray] = []
        self._hashes: list[np.ndarray] = []
        self.rows = 0
        """Number of rows added to the sample."""

    def add(self, rows: np.ndarray, embeds: np.ndarray, hashes: np.ndarray) -> None:
        """Add the rows of a block that belong to the random sample, and skip the others.

        Args:
            rows: `[n]` row numbers of the n rows in the block, ascending.
            embeds: `[n, D]` unit vectors, where D is the embedding dimension.
            hashes: `[n]` hashes of the vectors' bytes.
        """
        first, last = np.searchsorted(self._chosen, [rows[0], rows[-1] + 1]) if len(rows) else (0, 0)
        sampled = np.isin(rows, self._chosen[first:last], assume_unique=True)
        if sampled.any():
            self._rows.append(rows[sampled])
            self._embeds.append(embeds[sampled].astype(np.float16))
            self._hashes.append(hashes[sampled])
            self.rows += int(sampled.sum())

    def compare(self, seconds: float = _SECONDS, near: float = NEAR_COSINE) -> Neighbours:
        """Compute the cosine similarity of each pair of sampled embeddings, and count the near duplicates.

        If several rows have identical embeddings, only one of them is compared. The rows are compared block by block
        until the time limit. The sample is emptied, so call this method only once.

        Args:
            seconds: time limit in seconds. At least one block is compared, even if it takes longer.
            near: minimum cosine similarity of two embeddings that count as near duplicates.
        """
        if not self.rows:
            return Neighbours(0, 0, [], np.empty(0, np.float32))
        hashes, rows, embeds = (np.concatenate(parts) for parts in (self._hashes, self._rows, self._embeds))
        self._rows, self._embeds, self._hashes = [], [], []
        _, first = np.unique(hashes, return_index=True)
        # random order, so that the rows compared before time runs out are also a random sample
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
                columns = np.arange(start, start + len(block))
                if start < stop:  # mask the row itself and earlier rows, so that each pair counts once
                    cosines[columns[None, :] <= np.arange(done, stop)[:, None]] = -np.inf
                np.maximum(nearest[done:stop], cosines.max(1), out=nearest[done:stop])
                np.maximum(nearest[columns], cosines.max(0), out=nearest[start : start + len(block)])
                hits = np.argwhere(cosines >= near)
                pairs += len(hits)
                examples += [(int(rows[done + i]), int(rows[start + j])) for i, j in hits[: 3 - len(examples)]]
            done = stop
        finished = nearest[:done]
        ordered = sorted((min(pair), max(pair)) for pair in examples)
        return Neighbours(done, pairs, ordered, finished[np.isfinite(finished)])
