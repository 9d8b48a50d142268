"""Batches of the training rows, without end."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from .read import EmbeddingDataset, Split


@dataclass(frozen=True)
class Columns:
    """What is read of each row besides its image embedding."""

    text_embed: bool = True
    max_text_len: int = 0
    captions: bool = False


@dataclass(frozen=True)
class TrainBatch:
    """This rank's rows of a global batch."""

    rows: np.ndarray
    image_embed: np.ndarray
    text_embed: np.ndarray | None
    token_states: np.ndarray | None
    captions: list[str] | None
    first: int
    global_rows: int


class BatchStream:
    """Shares of global batches for one rank."""

    def __init__(
        self, dataset: EmbeddingDataset, split: Split, *, batch_size: int, seed: int, columns: Columns,
        rank: int = 0, ranks: int = 1,
    ) -> None:  # fmt: skip
        self._dataset, self._split, self._size, self._seed = dataset, split, batch_size, seed
        self._columns, self._rank, self._ranks = columns, rank, ranks
        self.rows = len(dataset.rows(split))
        self.steps_per_epoch = math.ceil(self.rows / batch_size)

    def batches(self, first_step: int) -> Generator[TrainBatch, None, None]:
        """From a global step on."""
        step, epoch_read = first_step, -1
        while True:
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != epoch_read:
                order, epoch_read = self._dataset.epoch_order(self._split, self._seed, epoch), epoch
            rows = order[position * self._size : (position + 1) * self._size]
            first, end = (len(rows) * rank // self._ranks for rank in (self._rank, self._rank + 1))
            yield self._read(rows[first:end], first, len(rows))
            step += 1

    def _read(self, rows: np.ndarray, first: int, global_rows: int) -> TrainBatch:
        batch = self._dataset.take(rows, self._columns.max_text_len)
        captions = None
        if self._columns.captions:
            captions = [str(c or "") for c in self._dataset.metadata(rows, ["caption"]).column("caption").to_pylist()]
        return TrainBatch(rows, batch.image_embed, batch.text_embed, batch.token_states, captions, first, global_rows)
