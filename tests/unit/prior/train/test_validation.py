"""Means over the validation rows, the division among ranks, and scores that are not finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.evaluate.metrics import cosine, energy_score
from priorkit.prior.evaluate.predictors import PriorPredictor, as_units
from priorkit.prior.evaluate.scoring import timestep_losses
from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.model.prior import Prior
from priorkit.prior.sampling.settings import SampleSettings
from priorkit.prior.train import validation as module
from priorkit.prior.train.job import TrainJob
from priorkit.prior.train.ranks import Ranks
from priorkit.prior.train.settings import TrainSettings
from priorkit.prior.train.step import Learner, NotFinite
from priorkit.prior.train.text import stored_text, text_columns
from priorkit.prior.train.validation import Validation

from ....integration.synthetic import changed

ALONE = Ranks(0, 1, torch.device("cpu"))


def validation(
    job: TrainJob, dataset: EmbeddingDataset, settings: TrainSettings | None = None, ranks: Ranks = ALONE
) -> Validation:
    settings = settings or job.settings
    return Validation(dataset, job.config, settings, ranks, stored_text, text_columns(job.config, settings))


def test_the_loss_is_the_mean_over_rows_and_timestep_bins(job: TrainJob, dataset: EmbeddingDataset) -> None:
    learner = Learner(job.config, job.settings, ALONE)
    rows = dataset.rows("validation")
    assert 5 < len(rows) < 40
    prior = Prior(job.config, learner.average, learner.normaliser)
    evaluate = EvaluateSettings(seed=0, device="cpu", threads=1)
    losses = timestep_losses(prior, dataset.take(rows), dataset.row_ids[rows], evaluate)
    expected = float(np.mean(list(losses.values())))
    assert validation(job, dataset)(learner, 1) == {"validation_loss": pytest.approx(expected, rel=1e-6)}


def test_draws_add_the_energy_score_and_the_cosine(job: TrainJob, dataset: EmbeddingDataset) -> None:
    settings = changed(job.settings, validate_draws=2, validate_steps=2)
    learner = Learner(job.config, settings, ALONE)
    scores = validation(job, dataset, settings)(learner, 1)
    rows = dataset.rows("validation")
    prior = Prior(job.config, learner.average, learner.normaliser)
    batch = dataset.take(rows)
    drawn = PriorPredictor(prior, SampleSettings(steps=2), 2, 0)(batch, dataset.row_ids[rows])
    truth = as_units(batch.image_embed)
    assert scores["validation_energy_score"] == pytest.approx(energy_score(drawn, truth).mean(), rel=1e-5)
    assert scores["validation_cosine"] == pytest.approx(cosine(drawn, truth).mean(), rel=1e-5)


def test_a_limit_of_rows_holds(job: TrainJob, dataset: EmbeddingDataset) -> None:
    rows = [row for block in validation(job, dataset, changed(job.settings, validation_rows=4))._local_blocks()
            for row in block.tolist()]  # fmt: skip
    assert rows == dataset.content_order("validation", 0)[:4].tolist()


def test_ranks_divide_the_blocks(job: TrainJob, dataset: EmbeddingDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 3)
    order = dataset.content_order("validation", 0)
    blocks = [order[first : first + 3].tolist() for first in range(0, len(order), 3)]
    for rank in range(2):
        local = validation(job, dataset, ranks=Ranks(rank, 2, torch.device("cpu")))._local_blocks()
        assert [block.tolist() for block in local] == blocks[rank::2]


def test_an_empty_split_is_not_scored(job: TrainJob, embeddings: Path) -> None:
    dataset = EmbeddingDataset(str(embeddings), ReadSettings(validation_fraction=0))
    assert validation(job, dataset)(Learner(job.config, job.settings, ALONE), 1) == {}


def test_rows_whose_loss_is_not_finite_are_named(job: TrainJob, dataset: EmbeddingDataset) -> None:
    learner = Learner(job.config, job.settings, ALONE)
    with torch.no_grad():
        learner.average.query.fill_(float("nan"))
    rows = dataset.content_order("validation", 0).tolist()
    with pytest.raises(NotFinite, match=f"the validation loss is not finite at step 7 for {len(rows)} rows") as caught:
        validation(job, dataset)(learner, 7)
    assert caught.value.rows == rows
