"""Inputs of a report: the subject is found again, and embeddings are drawn as in the evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.evaluate.predictors import PriorPredictor
from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.evaluate.stage import evaluate
from priorkit.prior.model.config import PriorConfig
from priorkit.prior.model.folder import save_prior
from priorkit.prior.model.prior import Prior
from priorkit.prior.report.source import ReportSource
from priorkit.prior.sampling.settings import SampleSettings

from ..embeddings import DIM, SPLITS, unit
from ..reference import randomise


def dataset_of(evaluation: Path) -> EmbeddingDataset:
    return EmbeddingDataset(str(evaluation.parent / "embeddings"), SPLITS)


def test_an_evaluation_names_its_subject_embeddings_and_splits(given: Path) -> None:
    source = ReportSource(str(given))
    assert source.prior.path == str(given.parent / "given.npy")
    assert source.embeddings == str(given.parent / "embeddings")
    assert (source.first_split, list(source.splits), list(source.rows)) == ("test", ["test"], ["test"])
    assert source.main is source.splits["test"]["predictors"][0]
    assert (source.is_given, source.no_subject) == (True, "")
    assert source.rows["test"].num_rows == 40


def test_given_predictions_are_the_first_of_their_rows(given: Path) -> None:
    rows = np.array([7, 3, 100])
    predicted, reason = ReportSource(str(given)).predicted(dataset_of(given), rows)
    assert predicted is not None
    np.testing.assert_allclose(predicted, unit(np.load(given.parent / "given.npy")[rows, 0].astype(np.float64)))
    assert reason == ""


def test_a_subject_that_was_moved_is_named_and_another_is_refused(given: Path, tmp_path: Path) -> None:
    moved, other = tmp_path / "moved.npy", tmp_path / "other.npy"
    shutil.copy(given.parent / "given.npy", moved)
    np.save(other, np.ones((120, DIM)))
    assert ReportSource(str(given), str(moved), "elsewhere").embeddings == "elsewhere"
    with pytest.raises(
        InputError, match=r"other\.npy is not what .* is of: that was .*given\.npy \(predictions, content"
    ):
        ReportSource(str(given), str(other))
    gone = ReportSource(str(given), str(tmp_path / "gone.npy"))
    assert gone.subject is None
    predicted, reason = gone.predicted(dataset_of(given), np.array([1]))
    assert predicted is None
    assert "gone.npy" in reason


def test_broken_predictions_are_not_drawn(given: Path) -> None:
    source = ReportSource(str(given))
    source.main = {**source.main, "broken": "not finite"}
    predicted, reason = source.predicted(dataset_of(given), np.array([1]))
    assert (predicted, reason) == (None, "given predictions is broken: not finite.")


@pytest.fixture
def evaluated_prior(given: Path, make_prior: Callable[..., Prior], tmp_path: Path) -> tuple[Prior, Path]:
    """A prior and its evaluation with settings unlike the default."""
    prior = make_prior(embed_dim=DIM)
    values = {name: getattr(prior.config, name) for name in PriorConfig.model_fields}
    prior = Prior(
        PriorConfig(**{**values, "clip": {}, "clip_settings": {}}), randomise(prior.network, 4), prior.normaliser
    )
    save_prior(Store(str(tmp_path / "prior")).create, prior.config, prior.network, prior.normaliser)
    settings = EvaluateSettings(
        threads=1, device="cpu", draws=2, bootstrap_samples=100, baselines=(), max_rows=20, seed=9,
        sample=SampleSettings(steps=3, sampler="ddpm"),
    )  # fmt: skip
    evaluate(str(tmp_path / "prior"), str(given.parent / "embeddings"), str(tmp_path / "evaluation"), settings, SPLITS)
    return prior, tmp_path / "evaluation"


def test_a_prior_is_drawn_from_with_the_seed_weights_and_settings_of_its_evaluation(
    evaluated_prior: tuple[Prior, Path], given: Path
) -> None:
    prior, evaluation = evaluated_prior
    dataset, rows = dataset_of(given), np.array([5, 50, 99])
    told: list[tuple[int, int | None]] = []
    predicted, _ = ReportSource(str(evaluation)).predicted(dataset, rows, lambda *values: told.append(values[:2]))
    assert predicted is not None
    sample = SampleSettings(steps=3, sampler="ddpm")
    expected = PriorPredictor(prior, sample, 1, 9)(dataset.take(rows), dataset.row_ids[rows])
    np.testing.assert_allclose(predicted, expected[:, 0], atol=1e-6)
    assert told == [(0, 3), (3, 3)]
