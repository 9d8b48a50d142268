"""A small folder of synthetic embeddings, and settings of a training of 6 steps on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.train.job import TrainJob, make_job
from priorkit.prior.train.settings import TrainSettings

from ....integration.synthetic import SMALL_TRAIN, changed, write_embeddings

READ = ReadSettings(validation_fraction=0.3)
MakeJob = Callable[..., TrainJob]


@pytest.fixture(scope="session")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 rows of size 16 with token states of width 6; for reading only."""
    return write_embeddings(tmp_path_factory.mktemp("train") / "embeddings", rows=60, token_states=True)


@pytest.fixture(scope="session")
def dataset(embeddings: Path) -> EmbeddingDataset:
    """The embeddings, of which about 30% are the validation split."""
    return EmbeddingDataset(str(embeddings), READ)


@pytest.fixture(scope="session")
def settings() -> TrainSettings:
    """6 steps of 8 rows with a small network."""
    return changed(
        SMALL_TRAIN, network__width=16, network__depth=1, steps=6, batch_size=8, log_every=2, validate_every=3,
        checkpoint_every=4, optimiser__warmup_steps=2,
    )  # fmt: skip


@pytest.fixture
def job(make_train_job: MakeJob) -> TrainJob:
    """A training with the default settings of these tests."""
    return make_train_job()


@pytest.fixture
def make_train_job(dataset: EmbeddingDataset, settings: TrainSettings, tmp_path: Path) -> MakeJob:
    """Make the job of a training into `tmp_path/prior`, with some settings changed."""

    def make(limit: int | None = None, **values: Any) -> TrainJob:
        store = Store(str(tmp_path / "prior"))
        return make_job(dataset, store, changed(settings, **values), ComputeSettings(), None, limit)

    return make
