"""Shuffled batches of a split (training, validation or test), prefetched in threads.

A global batch consists of the rows that all ranks together process in one step. Its rows depend neither on the number
of ranks nor on the step at which reading starts.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from ..compute.read_ahead import DecodeAhead
from ..errors import InputError
from .dataset import EmbeddingDataset, Split
from .shuffle import EpochPlan, Share
from .window import BlockReader, Buffers, Columns, ShuffleWindow, TrainBatch

__all__ = ["BatchStream", "Columns", "TrainBatch"]

_READY_BATCHES = 2
"""Maximum number of finished batches that wait in the queue for the training loop."""
_WINDOWS = 2
"""Number of shuffle windows (groups of rows that are shuffled together) in memory.

Batches are filled from one window while the next window is read.
"""
Item = TypeVar("Item")


class BatchStream:
    """Endless stream of shuffled batches of a split, as read by one rank.

    A global batch consists of the rows that all ranks together process in one step. It is a slice of the epoch's row
    order. With the same settings, the rows of a global batch depend only on the assignment of rows to splits, the seed
    and the step. Each rank reads part of the global batch (see `EpochPlan.share`). The last global batch of an epoch
    may be shorter.

    Args:
        dataset: dataset to read.
        split: split to read.
        batch_size: number of rows per global batch.
        seed: seed of the row order.
        columns: columns to read; None for the defaults of `Columns`.
        rank: index of this rank.
        ranks: number of ranks that share each global batch.

    Raises:
        InputError: the split has no rows, or the folder lacks a requested column.
    """

    def __init__(
        self,
        dataset: EmbeddingDataset,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        columns: Columns | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._dataset, self._batch_size, self._seed = dataset, batch_size, seed
        self._rank, self._ranks = rank, ranks
        self._reader = BlockReader(dataset, split, columns or Columns())
        self.rows = self._reader.visits.rows
        """Number of rows that all ranks together read in each epoch."""
        if self.rows == 0:
            raise InputError(f"{dataset.store.url}: no row is in the split {split!r}; change the fractions in `read`")
        self.steps_per_epoch = -(-self.rows // batch_size)
        """Number of global batches per epoch, the same for every rank."""

    def plan(self, epoch: int) -> EpochPlan:
        """Return the row order of an epoch."""
        counts = self._reader.visits.counts(self._seed, epoch)
        window_rows = self._dataset.settings.shuffle_window
        return EpochPlan(counts, self._dataset.blocks.sizes, seed=self._seed, epoch=epoch, window_rows=window_rows)

    def batches(self, first_step: int = 0) -> Iterator[TrainBatch]:
        """Yield batches endlessly from global step `first_step` onwards. Closing the iterator stops all reading.

        Raises:
            InputError: a batch contains embeddings that are not unit vectors, or a file has changed since it was
                opened.
        """
        ahead = DecodeAhead(self._make_batches, _same, threads=1, depth=_READY_BATCHES)
        return ahead.samples(first_step, None)

    def _make_batches(self, first_step: int) -> Iterator[TrainBatch]:
        """Yield validated batches from global step `first_step` onwards.

        Batches are filled from one shuffle window (a group of rows that are shuffled together), while threads read the
        next window.
        """
        reader = self._reader
        free = [Buffers(self._dataset, reader.columns) for _ in range(_WINDOWS)]
        upcoming = self._windows(first_step)
        reading: collections.deque[tuple[ShuffleWindow, list[Share]]] = collections.deque()
        pool = ThreadPoolExecutor(self._dataset.settings.read_threads, thread_name_prefix="read")
        unfinished: TrainBatch | None = None
        try:
            while True:
                while free:
                    window, shares = next(upcoming)
                    reading.append((window, shares))
                    window.read(reader, free.pop(), pool)
                window, shares = reading[0]
                window.wait()
                for share in shares:
                    batch = unfinished or reader.new_batch(share)
                    window.fill(batch, share.places, reader)
                    unfinished = batch if share.end > window.end else None
                    if unfinished is None:
                        reader.require_sound(batch)
                        yield batch
                reading.popleft()
                free.append(window.close())
        finally:
            for window, _ in reading:
                window.close()
            pool.shutdown(cancel_futures=True)

    def _windows(self, first_step: int) -> Iterator[tuple[ShuffleWindow, list[Share]]]:
        """Yield shuffle windows in reading order, each with the shares that include rows of the window.

        A shuffle window is a group of rows that are shuffled together. A share is the part of a global batch that this
        rank reads. The first window is the one that contains the first row of step `first_step`. After the last window
        of an epoch comes the first window of the next epoch, without end.

        Yields:
            A window, and one share for each global batch that has rows in the window. Global batches before step
            `first_step` are left out.
        """
        epoch, step = divmod(first_step, self.steps_per_epoch)
        while True:
            plan = self.plan(epoch)
            shares: list[Share] = []
            first_place = step * self._batch_size
            first_window = plan.windows_between(first_place, first_place + 1).start
            for window in range(first_window, len(plan.windows) - 1):
                start, end = int(plan.window_starts[window]), int(plan.window_starts[window + 1])
                shares = [share for share in shares if share.end > start]
                while step * self._batch_size < end:
                    shares.append(plan.share(step, self._batch_size, self._rank, self._ranks))
                    step += 1
                places = np.concatenate([share.places for share in shares])
                yield ShuffleWindow(plan, window, places[(places >= start) & (places < end)]), shares
            epoch, step = epoch + 1, 0


def _same(item: Item) -> Item:
    """Return the item unchanged. `DecodeAhead` requires a decoding function, but batches need no decoding."""
    return item
