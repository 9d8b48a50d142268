"""Validation while training: the evaluator's losses and scores of the averaged weights, on rows and noise that stay."""

from __future__ import annotations

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
from .text import TextOf, read_rows, with_text


class Validation:
    """Averaged weights on the validation rows, which the ranks share; none where the split is empty.

    What it finds does not depend on the number of ranks, but for the order of sums of float64.
    """

    def __init__(
        self,
        dataset: EmbeddingDataset,
        config: PriorConfig,
        settings: TrainSettings,
        ranks: Ranks,
        text_of: TextOf,
        columns: Columns,
    ) -> None:
        self._dataset, self._config, self._ranks = dataset, config, ranks
        self._text_of, self._columns = text_of, columns
        self._rows = dataset.content_order("validation", settings.seed)[: settings.validation_rows]
        self._settings = EvaluateSettings(seed=settings.seed, device=settings.device, threads=settings.threads)
        self._draws = settings.validate_draws
        self._sample = SampleSettings(steps=settings.validate_steps)

    def __call__(self, learner: Learner, step: int) -> dict[str, float]:
        """Means over the rows: `validation_loss` and, if there are draws, their energy score and cosine.

        Raises:
            NotFinite: on all ranks alike.
        """
        if not len(self._rows):
            return {}
        prior = Prior(self._config, learner.average, learner.normaliser)
        found = [self._scores(prior, first) for first in self._starts()]
        names = ["validation_loss"] + (["validation_energy_score", "validation_cosine"] if self._draws else [])
        scores = np.concatenate(found, axis=1) if found else np.zeros((len(names), 0))  # (names, rows of this rank)
        sums = self._ranks.sum(torch.from_numpy(scores.sum(axis=1))).tolist()
        if not np.isfinite(sums).all():
            own = [row for first in self._starts() for row in self._rows[first : first + BLOCK_ROWS].tolist()]
            finite = np.atleast_1d(np.isfinite(scores).all(axis=0))
            bad = self._ranks.gather([row for row, sound in zip(own, finite, strict=True) if not sound])
            raise NotFinite(f"the validation loss is not finite at step {step} for {len(bad)} rows", bad)
        return {name: total / len(self._rows) for name, total in zip(names, sums, strict=True)}

    def _starts(self) -> range:
        """Where the blocks of this rank begin."""
        return range(self._ranks.rank * BLOCK_ROWS, len(self._rows), self._ranks.size * BLOCK_ROWS)

    def _scores(self, prior: Prior, first: int) -> np.ndarray:
        """`[names, B]` of one block."""
        rows = self._rows[first : first + BLOCK_ROWS]
        ids = self._dataset.row_ids[rows]
        batch = with_text(read_rows(self._dataset, rows, self._columns), self._text_of)
        losses = timestep_losses(prior, batch, ids, self._settings)
        scores = [np.mean(list(losses.values()), axis=0)]
        if self._draws:
            drawn = PriorPredictor(prior, self._sample, self._draws, self._settings.seed)(batch, ids)
            truth = as_units(batch.image_embed)
            scores += [energy_score(drawn, truth), cosine(drawn, truth)]
        return np.stack(scores)
