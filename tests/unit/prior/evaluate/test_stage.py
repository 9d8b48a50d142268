"""The evaluate stage: its plan, its files, resume, limits, and the weights that it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from priorkit.pipeline.compute.device import ASSUMED_FLOPS
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import SettingsError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.evaluate.evaluation import compute_metrics
from priorkit.prior.evaluate.folder import read_metrics, read_rows, require_whole
from priorkit.prior.evaluate.scoring import Scorer
from priorkit.prior.evaluate.settings import EvaluateSettings, SweepSettings
from priorkit.prior.evaluate.stage import evaluate, plan_evaluate
from priorkit.prior.evaluate.subject import PriorSource, find_subject
from priorkit.prior.model.config import PriorConfig
from priorkit.prior.model.folder import WEIGHTS_NAME, save_prior
from priorkit.prior.model.prior import Prior
from priorkit.prior.sampling.settings import SampleSettings

from ..embeddings import DIM, SPLITS, write_embeddings

SETTINGS = EvaluateSettings(
    threads=1, device="cpu", draws=2, bootstrap_samples=100, baselines=("text embedding",), max_rows=30,
    sample=SampleSettings(steps=3), sweep=SweepSettings(steps=(2,)),
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, make_prior: Callable[..., Prior]) -> Path:
    """Embeddings, a prior and predictions."""
    write_embeddings(tmp_path / "embeddings")
    prior = make_prior(embed_dim=DIM)
    values = {name: getattr(prior.config, name) for name in PriorConfig.model_fields}
    config = PriorConfig(**{**values, "clip": {}, "clip_settings": {}})
    save_prior(Store(str(tmp_path / "prior")).create, config, prior.network, prior.normaliser)
    np.save(tmp_path / "given.npy", np.random.default_rng(0).standard_normal((120, DIM)).astype(np.float32))
    return tmp_path


def arguments(folder: Path, subject: str = "given.npy", settings: EvaluateSettings = SETTINGS) -> tuple[Any, ...]:
    return str(folder / subject), str(folder / "embeddings"), str(folder / "evaluation"), settings, SPLITS


def test_the_files_of_an_evaluation(folder: Path) -> None:
    result = evaluate(*arguments(folder))
    require_whole(str(folder / "evaluation"))
    metrics = read_metrics(str(folder / "evaluation"))
    dataset = EmbeddingDataset(str(folder / "embeddings"), SPLITS)
    assert list(metrics) == ["format_version", "subject", "embeddings", "seed", "read", "splits"]
    assert metrics["subject"] == find_subject(PriorSource(str(folder / "given.npy")), SPLITS).described(dataset)
    assert metrics["embeddings"] == {
        "path": str(folder / "embeddings"), "content": dataset.content_fingerprint, "clip": None, "embed_dim": DIM
    }  # fmt: skip
    assert read_rows(str(folder / "evaluation"), "test").num_rows == 30
    assert (result.stage, result.units, result.done_now, result.rows) == ("evaluate", 30, 30, 30)


def test_a_prior_is_evaluated_with_its_own_weights(folder: Path) -> None:
    evaluate(*arguments(folder, "prior"))
    found = read_metrics(str(folder / "evaluation"))
    dataset = EmbeddingDataset(str(folder / "embeddings"), SPLITS)
    loaded = PriorSource(str(folder / "prior")).load()
    expected = compute_metrics(dataset, SETTINGS, lambda: Scorer(dataset, SETTINGS, lambda weights: loaded))
    assert found["splits"] == json.loads(json.dumps(expected.metrics["splits"]))
    assert [one["name"] for one in found["splits"]["test"]["predictors"]] == [
        "prior",
        "prior, steps=2",
        "text embedding",
    ]


def test_a_second_run_does_nothing_and_another_seed_evaluates_again(folder: Path) -> None:
    evaluate(*arguments(folder))
    before = (folder / "evaluation" / "metrics.json").read_bytes()
    assert evaluate(*arguments(folder)).done_now == 0
    assert (folder / "evaluation" / "metrics.json").read_bytes() == before
    changed = SETTINGS.model_copy(update={"seed": 1})
    assert evaluate(*arguments(folder, settings=changed)).done_now == 30
    assert read_metrics(str(folder / "evaluation"))["seed"] == 1


@pytest.mark.parametrize("changed", ["embeddings", "predictions"])
def test_other_content_is_evaluated_again(changed: str, folder: Path) -> None:
    evaluate(*arguments(folder))
    path = folder / "given.npy" if changed == "predictions" else folder / "embeddings/img_emb/img_emb_0.npy"
    np.save(path, np.load(path)[::-1])
    assert evaluate(*arguments(folder)).done_now == 30


def test_the_plan_counts_rows_draws_and_steps_of_every_variant(folder: Path) -> None:
    plan = plan_evaluate(*arguments(folder, "prior"))
    assert (plan.stage, plan.units, plan.pending_units, plan.bytes_needed) == ("evaluate", 30, 30, 3000)
    parameters = (folder / "prior" / WEIGHTS_NAME).stat().st_size / 4
    evaluations = 30 * 2 * (3 + 2)  # rows, draws, and steps of both variants
    assert plan.seconds == pytest.approx(evaluations * 6 * parameters / ASSUMED_FLOPS["cpu"])
    doubled = plan_evaluate(*arguments(folder, "prior", SETTINGS.model_copy(update={"draws": 4})))
    assert doubled.seconds == pytest.approx(2 * plan.seconds)
    longer = SETTINGS.model_copy(update={"sample": SampleSettings(steps=8)})
    assert plan_evaluate(*arguments(folder, "prior", longer)).seconds == pytest.approx(2 * plan.seconds)
    assert plan_evaluate(*arguments(folder)).seconds == 0


def test_nothing_is_planned_after_an_evaluation_unless_it_is_overwritten(folder: Path) -> None:
    evaluate(*arguments(folder))
    assert plan_evaluate(*arguments(folder)).pending_units == 0
    assert plan_evaluate(*arguments(folder), overwrite=True).pending_units == 30
    assert plan_evaluate(*arguments(folder), limit=10).pending_units == 10


def test_a_limit_lowers_the_rows_and_never_raises_them(folder: Path) -> None:
    evaluate(*arguments(folder), limit=12)
    assert read_rows(str(folder / "evaluation"), "test").num_rows == 12
    evaluate(*arguments(folder), limit=1000)
    assert read_rows(str(folder / "evaluation"), "test").num_rows == 30
    for function in (evaluate, plan_evaluate):
        with pytest.raises(SettingsError, match="--limit 1: an evaluation needs at least 2 rows"):
            function(*arguments(folder), limit=1)
