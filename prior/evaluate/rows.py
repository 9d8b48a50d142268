"""The rows of a split that an evaluation is over: which, in what order and blocks, and what each is compared with."""

from __future__ import annotations

import numpy as np

from ...pipeline.errors import InputError
from ...pipeline.read.dataset import EmbeddingDataset, Split
from .settings import EvaluateSettings

BLOCK_ROWS = 128
"""Rows scored at once."""


class EvaluatedRows:
    """The rows of a split that are evaluated on, in the order of their content: N of them.

    Raises:
        InputError: the split has fewer than 2.
    """

    def __init__(self, dataset: EmbeddingDataset, split: Split, settings: EvaluateSettings) -> None:
        self.rows = dataset.content_order(split, settings.seed)[: settings.max_rows]
        """`[N]`: their numbers in the dataset."""
        if len(self.rows) < 2:
            raise InputError(
                f"{dataset.store.url}: the {split} split has {len(self.rows)} rows, at least 2 are needed; "
                f"raise read.{split}_fraction and train again"
            )
        self.ids = dataset.row_ids[self.rows]
        """`[N]`."""
        self.groups = dataset.group_ids[self.rows]
        """`[N]`: equal ones are of one image."""
        self.unrelated = _next_different(self.groups)
        """`[N]`: for each position the one of another image, whose caption is none of its own."""
        groups, firsts, number = np.unique(self.groups, return_index=True, return_inverse=True)
        self.gallery = np.sort(firsts)[: settings.gallery_size]
        """`[G]`: positions of the rows whose images are searched among: each image once."""
        places = np.full(len(groups), -1)
        places[number[self.gallery]] = np.arange(len(self.gallery))
        self.places = places[number]
        """`[N]`: of each row's image in the gallery; -1 of one that is not there."""
        self.blocks = -(-len(self.rows) // BLOCK_ROWS)

    def block(self, number: int) -> slice:
        """Positions of a block's rows."""
        return slice(number * BLOCK_ROWS, min((number + 1) * BLOCK_ROWS, len(self.rows)))


def _next_different(ids: np.ndarray) -> np.ndarray:
    """For each of `[N]` ids the position of the next that differs; its own where all are equal."""
    changes = np.flatnonzero(ids != np.roll(ids, -1)) + 1  # where the next run of equal ids begins
    if not len(changes):
        return np.arange(len(ids))
    following = np.searchsorted(changes, np.arange(len(ids)), side="right") % len(changes)
    return np.asarray(changes[following] % len(ids))
