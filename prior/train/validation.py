"""Validation during training: loss and other scores of the averaged weights.

Every validation run uses the same rows and the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ...pipeline.read.batches import Columns
from ...pipeline.read.dataset import EmbeddingDataset
from ..evaluate.metrics import cosine, energy_score
from ..evaluate.predictors import PriorPredictor, as_units
from ..evaluate.rows import BLOCK_ROWS
from ..evaluate.scoring import timestep_losses
from ..evaluate.settings import EvaluateSettings
from ..model.config import PriorConfig
from ..model.prior import Prior
from ..sampling.settings import SampleSettings
from .ranks import Ranks
from .settings import TrainSettings
from .step import Learner, NotFinite
from .text import TextSource, read_rows, with_text


class Validation:
    """Callable that computes the validation scores of the averaged weights during training.

    Every rank must call it. Each rank scores a part of the validation rows, and the results are combined. They do not
    depend on the number of ranks, apart from rounding errors in float64 sums.
    """

    def __init__(
        self,
        dataset: EmbeddingDataset,
        config: PriorConfig,
        settings: TrainSettings,
        ranks: Ranks,
        encode_text: TextSource,
        columns: Columns,
    ) -> None:
        self._dataset, self._config, self._ranks = dataset, config, ranks
        self._encode_text, self._columns = encode_text, columns
        self._rows = dataset.content_order("validation", settings.seed)[: settings.validation_rows]
        self._settings = EvaluateSettings(seed=settings.seed, device=settings.device, threads=settings.threads)
        self._draws = settings.validate_draws
        self._sample = SampleSettings(steps=settings.validate_steps)

    def __call__(self, learner: Learner, step: int) -> dict[str, float]:
        """Return the mean of each score over the validation rows on all ranks, keyed by score name.

        The scores are `validation_loss` and, if `validate_draws` is not 0, `validation_energy_score` and
        `validation_cosine`. The result is empty if the validation split is empty.

        Args:
            step: number of completed steps, for the error message.

        Raises:
            NotFinite: at least one score on any rank is not finite. Every rank then raises this error.
        """
        if not len(self._rows):
            return {}
        prior = Prior(self._config, learner.average, learner.normaliser)
        blocks = [self._scores(prior, rows) for rows in self._local_blocks()]
        names = ["validation_loss"] + (["validation_energy_score", "validation_cosine"] if self._draws else [])
        scores = np.concatenate(blocks, axis=1) if blocks else np.zeros((len(names), 0))  # (names, rows on this rank)
        sums = self._ranks.sum(torch.from_numpy(scores.sum(axis=1))).tolist()
        if not np.isfinite(sums).all():
            rows = [row for block in self._local_blocks() for row in block.tolist()]
            is_finite = np.atleast_1d(np.isfinite(scores).all(axis=0))
            bad_rows = self._ranks.gather([row for row, finite in zip(rows, is_finite, strict=True) if not finite])
            raise NotFinite(f"the validation loss is not finite at step {step} for {len(bad_rows)} rows", bad_rows)
        return {name: total / len(self._rows) for name, total in zip(names, sums, strict=True)}

    def _local_blocks(self) -> Iterator[np.ndarray]:
        """Yield the blocks of validation rows that this rank scores, each as an array of row numbers.

        With N ranks, each rank scores every N-th block. A block has `BLOCK_ROWS` rows; the last block may have fewer.
        """
        for first in range(self._ranks.rank * BLOCK_ROWS, len(self._rows), self._ranks.size * BLOCK_ROWS):
            yield self._rows[first : first + BLOCK_ROWS]

    def _scores(self, prior: Prior, rows: np.ndarray) -> np.ndarray:
        """Compute S scores for each row in one block of B validation rows, as an array `[S, B]`.

        S is 1 (the loss), or 3 if `validate_draws` is not 0 (loss, energy score and cosine similarity).

        Args:
            prior: prior with the averaged weights.
            rows: row numbers in the dataset, `[B]`.
        """
        ids = self._dataset.row_ids[rows]
        batch = with_text(read_rows(self._dataset, rows, self._columns), self._encode_text)
        losses = timestep_losses(prior, batch, ids, self._settings)
        scores = [np.mean(list(losses.values()), axis=0)]
        if self._draws:
            drawn = PriorPredictor(prior, self._sample, self._draws, self._settings.seed)(batch, ids)
            truth = as_units(batch.image_embed)
            scores += [energy_score(drawn, truth), cosine(drawn, truth)]
        return np.stack(scores)
