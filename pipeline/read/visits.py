"""Visits: the rows of a split that an epoch reads, determined for each block of rows.

By default, an epoch reads every row of the split. With the setting `read.captions=one`, it reads one random row of each
content group (the rows with the same image).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..contract.vectors.spool import RowSpool
from .shards import EmbeddingShard
from .shuffle import hash_key, mix
from .split_plan import group_digests

_CHUNK_ROWS = 1 << 24
"""Number of rows of a memory-mapped array that are processed at a time. As int64, they take 128 MiB."""
_GROUP_PARTS = 256
"""Number of parts into which rows are divided by the hash of their image. One part is in memory at a time."""


@dataclass(frozen=True)
class Blocks:
    """Division of a dataset into blocks of consecutive rows.

    A block never spans two shards, and an empty shard has no blocks.
    """

    starts: np.ndarray
    """`[blocks + 1]` int64: row number of each block's first row, followed by the total number of rows."""
    shards: np.ndarray
    """`[blocks]` int64: shard index of each block."""

    @staticmethod
    def from_shards(shard_starts: np.ndarray, block_rows: int) -> Blocks:
        """Divide shards into blocks.

        Args:
            shard_starts: `[shards + 1]` row number of each shard's first row, followed by the total number of rows.
            block_rows: number of rows per block; the last block of a shard may be shorter.
        """
        shard_rows = np.diff(shard_starts)
        per_shard = -(-shard_rows // block_rows)
        shards = np.repeat(np.arange(len(shard_rows)), per_shard)
        within = np.arange(len(shards)) - np.repeat(np.cumsum(per_shard) - per_shard, per_shard)
        return Blocks(np.append(shard_starts[:-1][shards] + within * block_rows, shard_starts[-1]), shards)

    @property
    def sizes(self) -> np.ndarray:
        """`[blocks]` int64: number of rows in each block."""
        return np.diff(self.starts)

    def count_splits(self, split_plan: np.ndarray, splits: int) -> Iterator[np.ndarray]:
        """Count the rows of each split in each block.

        Args:
            split_plan: `[count]` split of each row, as an index.
            splits: number of splits.

        Yields:
            `[n, splits]` uint32 counts for the next `n` blocks.
        """
        block, blocks = 0, len(self.shards)
        while block < blocks:
            chunk_end = self.starts[block] + _CHUNK_ROWS
            end = max(block + 1, int(np.searchsorted(self.starts, chunk_end, side="right")) - 1)
            codes = split_plan[self.starts[block] : self.starts[end]]
            firsts = self.starts[block:end] - self.starts[block]
            counts = [np.add.reduceat(codes == code, firsts, dtype=np.uint32) for code in range(splits)]
            yield np.stack(counts, axis=1)
            block = end


class Visits:
    """Selection of the rows of one split to read in each epoch: all rows, or one random row per image.

    Args:
        blocks: blocks of the dataset.
        split_plan: `[count]` uint8, the split of each row.
        split: split to read, as an index into `SPLITS`.
        counts: `[blocks]` number of rows of the split in each block.
        shared: table from `find_shared_groups` that lists the rows whose image also occurs in other rows. If given,
            each epoch reads one row of each image. If None, each epoch reads all rows of the split.
    """

    def __init__(
        self, blocks: Blocks, split_plan: np.ndarray, split: int, counts: np.ndarray, shared: np.ndarray | None
    ) -> None:
        self._blocks, self._split_plan, self._split = blocks, split_plan, split
        self._counts, self._shared = counts.astype(np.int64), shared
        self._shared_bounds = np.zeros(len(counts) + 1, np.int64)
        self.rows = int(self._counts.sum())
        """Number of rows read in each epoch."""
        for part in self._shared_parts():
            self._shared_bounds[1:] += self._count_per_block(part)
            copies = part[part[:, 2] > 0]
            self.rows -= int((split_plan[copies[:, 0]] == split).sum())
        np.cumsum(self._shared_bounds, out=self._shared_bounds)

    def counts(self, seed: int, epoch: int) -> np.ndarray:
        """Return the number of rows that an epoch reads from each block: `[blocks]` int64."""
        counts: np.ndarray = self._counts.copy()
        for part in self._shared_parts():
            skipped = part[~_drawn(part, seed, epoch)]
            counts -= self._count_per_block(skipped[self._split_plan[skipped[:, 0]] == self._split])
        return counts

    def rows_in_block(self, block: int, seed: int, epoch: int) -> np.ndarray:
        """Return the dataset row numbers that an epoch reads from a block, in ascending order: `[n]` int64."""
        start, end = (int(row) for row in self._blocks.starts[block : block + 2])
        visited = self._split_plan[start:end] == self._split
        if self._shared is not None:
            shared = np.asarray(self._shared[slice(*self._shared_bounds[block : block + 2])])
            visited[shared[~_drawn(shared, seed, epoch), 0] - start] = False
        return start + np.flatnonzero(visited)

    def _shared_parts(self) -> Iterator[np.ndarray]:
        """Yield `self._shared` (rows whose image also occurs in other rows) in chunks; yield nothing if it is None."""
        if self._shared is not None:
            for start in range(0, len(self._shared), _CHUNK_ROWS):
                yield np.asarray(self._shared[start : start + _CHUNK_ROWS])

    def _count_per_block(self, shared: np.ndarray) -> np.ndarray:
        """Return how many rows of a table from `find_shared_groups` lie in each block: `[blocks]` int64."""
        blocks = np.searchsorted(self._blocks.starts, shared[:, 0], side="right") - 1
        counts: np.ndarray = np.bincount(blocks, minlength=len(self._counts))
        return counts


def _drawn(shared: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return a mask of the rows that are chosen if an epoch reads one random row of each image.

    The rows with the same image form a group. In each epoch, one row of every group is chosen at random.

    Args:
        shared: `[n, 4]` rows of the table that `find_shared_groups` creates. Some rows of a group may be left out.
        seed: seed of the row order.
        epoch: epoch number.

    Returns:
        `[n]` bool: True for each row that is chosen.
    """
    _, group, number, size = shared.T
    draw = mix(group.astype(np.uint64), hash_key("caption", seed, epoch)) % size.astype(np.uint64)
    return np.asarray(draw == number)


def find_shared_groups(shards: Iterable[EmbeddingShard]) -> Iterator[np.ndarray]:
    """Find the rows whose image also occurs in other rows, and yield one table that lists them.

    Rows with the same image form a group. To save memory, all rows are first divided by hash into parts on disk, and
    then sorted one part at a time. Only one part is in memory at a time, plus 32 bytes for each row in the table.

    Yields:
        One `[n, 4]` int64 array, sorted by row number. Its columns are the row number, 64 bits of the group's hash, the
        row's index in its group, and the number of rows in the group.
    """
    with contextlib.ExitStack() as stack:
        spools = [stack.enter_context(contextlib.closing(RowSpool(np.int64, (2,)))) for _ in range(_GROUP_PARTS)]
        row = 0
        for digests in group_digests(shards):
            groups = digests[:, 1]
            rows = np.stack([np.arange(row, row + len(groups)), groups.view(np.int64)], axis=1)
            parts = groups >> np.uint64(56)
            order = np.argsort(parts, kind="stable")
            bounds = np.searchsorted(parts[order], np.arange(_GROUP_PARTS + 1))
            for part, spool in enumerate(spools):
                if bounds[part] < bounds[part + 1]:
                    spool.append(rows[order[bounds[part] : bounds[part + 1]]])
            row += len(groups)
        shared = np.concatenate([number_within_groups(spool.mapped()) for spool in spools])
    yield shared[np.argsort(shared[:, 0])]


def number_within_groups(rows: np.ndarray) -> np.ndarray:
    """Number the rows of each group (rows with the same image) from 0, and omit groups with a single row.

    Args:
        rows: `[n, 2]` row numbers and group hashes.

    Returns:
        `[m, 4]` int64 array with the columns that `find_shared_groups` describes.
    """
    ordered = rows[np.lexsort((rows[:, 0], rows[:, 1]))]
    _, first, sizes = np.unique(ordered[:, 1], return_index=True, return_counts=True)
    number = np.arange(len(ordered)) - np.repeat(first, sizes)
    size = np.repeat(sizes, sizes)
    return np.column_stack([ordered, number, size])[size > 1]
