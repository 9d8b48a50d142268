"""Selection of the rows to evaluate, the gallery images for recall, and an unrelated caption for each row."""

from __future__ import annotations

import numpy as np

from ...pipeline.errors import InputError
from ...pipeline.read.dataset import EmbeddingDataset, Split
from .settings import EvaluateSettings

BLOCK_ROWS = 128
"""Number of rows per block. Each task scores one block."""


class EvaluatedRows:
    """The N evaluated rows of a split, in a pseudorandom order that depends only on their content and the seed.

    If the split has more than `settings.max_rows` rows, only the first `max_rows` in this order are evaluated.

    Raises:
        InputError: the split has fewer than 2 rows.
    """

    def __init__(self, dataset: EmbeddingDataset, split: Split, settings: EvaluateSettings) -> None:
        self.rows = dataset.content_order(split, settings.seed)[: settings.max_rows]
        """Row numbers within the dataset, `[N]`."""
        if len(self.rows) < 2:
            raise InputError(
                f"{dataset.store.url}: the {split} split has {len(self.rows)} rows, at least 2 are needed; "
                f"raise read.{split}_fraction and train again"
            )
        self.ids = dataset.row_ids[self.rows]
        """Hash of each row's content, `[N]` uint64."""
        self.groups = dataset.group_ids[self.rows]
        """Group id of each row, `[N]`; rows with the same group id share an image."""
        self.unrelated = _next_different(self.groups)
        """For each row, the position in `rows` of the row that provides its unrelated caption: `[N]`.

        The two rows have different images, unless all evaluated rows share one image.
        """
        groups, firsts, group_numbers = np.unique(self.groups, return_index=True, return_inverse=True)
        self.gallery = np.sort(firsts)[: settings.gallery_size]
        """Positions in `rows` of the G gallery images (images searched for recall): `[G]`. Each image occurs once."""
        index_by_group = np.full(len(groups), -1)
        index_by_group[group_numbers[self.gallery]] = np.arange(len(self.gallery))
        self.gallery_index = index_by_group[group_numbers]
        """Index in `gallery` of each row's image, `[N]`; -1 if the gallery does not contain it."""
        self.blocks = -(-len(self.rows) // BLOCK_ROWS)
        """Number of blocks of `BLOCK_ROWS` rows. The last block may be smaller."""

    def block(self, number: int) -> slice:
        """Return the slice of `rows` that contains the rows of a block. Blocks are numbered from 0."""
        return slice(number * BLOCK_ROWS, min((number + 1) * BLOCK_ROWS, len(self.rows)))


def _next_different(ids: np.ndarray) -> np.ndarray:
    """Return, for each position in `ids`, the nearest later position that has a different id: `[N]`.

    After the last position, the search continues at the first. If all ids are equal, each position is mapped to itself.
    """
    changes = np.flatnonzero(ids != np.roll(ids, -1)) + 1  # start of each run of equal ids
    if not len(changes):
        return np.arange(len(ids))
    following = np.searchsorted(changes, np.arange(len(ids)), side="right") % len(changes)
    return np.asarray(changes[following] % len(ids))
