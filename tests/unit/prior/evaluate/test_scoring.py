"""Scores of blocks: the right weights, sampling settings, rows, columns and randomness reach every metric."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.evaluate import scoring
from priorkit.prior.evaluate.evaluation import LossScores
from priorkit.prior.evaluate.predictors import LOSS, GivenPredictions, PriorPredictor, RowNoise, as_units
from priorkit.prior.evaluate.rows import EvaluatedRows
from priorkit.prior.evaluate.scoring import (
    GIVEN,
    Scorer,
    ScorerMaker,
    ScoreTask,
    row_metrics,
    timestep_losses,
    variants,
)
from priorkit.prior.evaluate.settings import EvaluateSettings, SweepSettings
from priorkit.prior.evaluate.subject import PriorSource
from priorkit.prior.model.prior import Prior
from priorkit.prior.model.settings import WeightsName
from priorkit.prior.objective.diffusion import StepRandomness, diffusion_loss
from priorkit.prior.sampling.settings import SampleSettings

from ..embeddings import DIM, SPLITS, unit, write_embeddings
from ..raw_priors import make_raw_config, make_raw_prior
from ..reference import randomise

SETTINGS = EvaluateSettings(
    threads=1, device="cpu", draws=3, max_rows=40, gallery_size=10, distance_rows=48, loss_bins=4,
    weights=("ema", "online", "best"), sample=SampleSettings(steps=2), sweep=SweepSettings(steps=(2, 3)),
)  # fmt: skip


@pytest.fixture
def dataset(tmp_path: Path) -> EmbeddingDataset:
    return EmbeddingDataset(str(write_embeddings(tmp_path / "embeddings")), SPLITS)


@pytest.fixture
def priors(make_prior: Callable[..., Prior]) -> dict[str, Prior]:
    """Three priors with different weights, by the name of the weights."""
    made = {}
    for seed, name in enumerate(get_args(WeightsName)):
        made[name] = make_prior(embed_dim=DIM)
        randomise(made[name].network, seed)
    return made


@pytest.fixture
def scorer(dataset: EmbeddingDataset, priors: dict[str, Prior]) -> Scorer:
    return Scorer(dataset, SETTINGS, lambda weights: priors[weights])


def expected_draws(prior: Prior, dataset: EmbeddingDataset, steps: int = 2) -> np.ndarray:
    rows = EvaluatedRows(dataset, "test", SETTINGS)
    sample = SampleSettings(steps=steps)
    return PriorPredictor(prior, sample, 3, SETTINGS.seed)(dataset.take(rows.rows), rows.ids)


def test_variants_change_one_thing_each_and_the_first_is_the_prior() -> None:
    settings = EvaluateSettings(
        weights=("online", "ema"),
        sample=SampleSettings(steps=8),
        sweep=SweepSettings(steps=(8, 4), samplers=("ddpm",), guidance_scales=(2.0,)),
    )
    found = [(one.name, one.weights, one.sample.model_dump(exclude_defaults=True)) for one in variants(settings)]
    assert found == [
        ("prior", "online", {"steps": 8}),
        ("prior, ema weights", "ema", {"steps": 8}),
        ("prior, steps=4", "online", {"steps": 4}),
        ("prior, sampler=ddpm", "online", {"steps": 8, "sampler": "ddpm"}),
        ("prior, guidance_scale=2.0", "online", {"steps": 8, "guidance_scale": 2.0}),
    ]


@pytest.mark.parametrize(
    ("name", "weights", "steps"),
    [("prior", "ema", 2), ("prior, online weights", "online", 2), ("prior, best weights", "best", 2),
     ("prior, steps=3", "ema", 3)],
)  # fmt: skip
def test_each_variant_is_scored_with_its_own_weights_and_sampling_settings(
    name: str, weights: str, steps: int, scorer: Scorer, priors: dict[str, Prior], dataset: EmbeddingDataset
) -> None:
    scores = scorer(ScoreTask("test", name, 0))
    np.testing.assert_allclose(scores.first_draws, expected_draws(priors[weights], dataset, steps)[:, 0], atol=1e-6)
    assert (scores.draws, scores.broken) == (3, None)


def test_priors_with_different_weights_get_different_scores(scorer: Scorer) -> None:
    names = ("prior", "prior, online weights", "prior, best weights")
    scores = [scorer(ScoreTask("test", name, 0)).values["energy_score"] for name in names]
    assert len({tuple(one) for one in scores}) == 3
    losses = [scorer(ScoreTask("test", name, 0, is_loss=True)).values["0-24"] for name in get_args(WeightsName)]
    assert len({tuple(one) for one in losses}) == 3


@pytest.mark.parametrize("weights", get_args(WeightsName))
def test_losses_are_those_of_the_named_weights(
    weights: str, scorer: Scorer, priors: dict[str, Prior], dataset: EmbeddingDataset
) -> None:
    scores = scorer(ScoreTask("test", weights, 0, is_loss=True))
    rows = EvaluatedRows(dataset, "test", SETTINGS)
    expected = timestep_losses(priors[weights], dataset.take(rows.rows), rows.ids, SETTINGS)
    assert list(scores.values) == list(expected) == ["0-24", "25-49", "50-74", "75-99"]
    for name, values in expected.items():
        np.testing.assert_allclose(scores.values[name], values, rtol=1e-6)
    assert (scores.draws, scores.first_draws.size) == (0, 0)


def test_each_weights_are_loaded_once(dataset: EmbeddingDataset, priors: dict[str, Prior]) -> None:
    loaded: list[str] = []

    def load(weights: str) -> Prior:
        loaded.append(weights)
        return priors[weights]

    scorer = Scorer(dataset, SETTINGS, load)
    for name in ("prior", "prior, steps=3", "prior, online weights", "prior", "text embedding"):
        scorer(ScoreTask("test", name, 0))
    assert loaded == ["ema", "online"]


def test_metrics_of_a_block_are_those_of_its_rows(scorer: Scorer, dataset: EmbeddingDataset) -> None:
    """Text against image, unrelated captions and ranks in the gallery, written out for the text embedding."""
    scores = scorer(ScoreTask("test", "text embedding", 0))
    rows = EvaluatedRows(dataset, "test", SETTINGS)
    batch = dataset.take(rows.rows)
    text, image = as_units(batch.text_embed), as_units(batch.image_embed)
    images = as_units(dataset.take(rows.rows[rows.gallery]).image_embed)
    found = scores.values
    np.testing.assert_allclose(found["energy_score"], np.linalg.norm(text - image, axis=1), atol=1e-12)
    np.testing.assert_allclose(found["cosine_to_image"], (text * image).sum(axis=1))
    np.testing.assert_allclose(found["cosine_to_text"], 1)
    np.testing.assert_allclose(found["cosine_to_unrelated_caption"], (text * text[rows.unrelated]).sum(axis=1))
    np.testing.assert_allclose(found["difference_from_baseline"], 1 - (text * image).sum(axis=1))
    np.testing.assert_array_equal(found["diversity"], 0)
    for row in range(40):
        place = rows.gallery_index[row]
        rivals = np.delete(images, place if place >= 0 else 9, axis=0)
        nearer = (text[row] @ rivals.T > text[row] @ image[row] + 1e-9).sum()
        assert [found[f"recall_at_{n}"][row] for n in (1, 5, 10)] == [float(nearer < n) for n in (1, 5, 10)]


def test_row_metrics_take_the_first_draw_for_ranks_and_all_draws_for_means() -> None:
    draws = unit(np.random.default_rng(0).standard_normal((3, 2, 4)))
    image, text, unrelated = (unit(np.random.default_rng(seed).standard_normal((3, 4))) for seed in (1, 2, 3))
    found = row_metrics(draws, image, (text, unrelated), np.array([0, 4, 5]))
    assert [found[f"recall_at_{n}"].tolist() for n in (1, 5, 10)] == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    np.testing.assert_allclose(found["cosine_to_image"], (draws * image[:, None]).sum(-1).mean(1))
    np.testing.assert_allclose(found["cosine_to_text"], (draws * text[:, None]).sum(-1).mean(1))
    np.testing.assert_allclose(found["cosine_to_unrelated_caption"], (draws * unrelated[:, None]).sum(-1).mean(1))
    expected = (draws * text[:, None]).sum(-1).mean(1) - (image * text).sum(-1)
    np.testing.assert_allclose(found["difference_from_baseline"], expected)


def test_blocks_are_the_rows_in_order_and_distances_use_the_first(dataset: EmbeddingDataset) -> None:
    read = ReadSettings(validation_fraction=0, test_fraction=0.99)
    many = EmbeddingDataset(str(write_embeddings(Path(dataset.store.root).parent / "many", rows=150)), read)
    settings = EvaluateSettings(threads=1, draws=2, distance_rows=130, max_rows=140)
    given = np.random.default_rng(0).standard_normal((150, 2, DIM))
    rows = EvaluatedRows(many, "test", settings)
    blocks = [Scorer(many, settings, None, given)(ScoreTask("test", GIVEN, block)) for block in range(2)]
    assert [len(block.values["energy_score"]) for block in blocks] == [128, 12]
    np.testing.assert_allclose(
        np.concatenate([block.first_draws for block in blocks]), unit(given[rows.rows[:130], 0]), atol=1e-12
    )
    expected = GivenPredictions(given)(many.take(rows.rows[128:]), rows.ids[128:])
    np.testing.assert_allclose(
        blocks[1].values["cosine_to_image"],
        (expected * as_units(many.take(rows.rows[128:]).image_embed)[:, None]).sum(-1).mean(1),
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_block_with_a_bad_prediction_is_broken_and_names_its_row(value: float, dataset: EmbeddingDataset) -> None:
    rows = EvaluatedRows(dataset, "test", SETTINGS)
    given = np.random.default_rng(0).standard_normal((120, DIM))
    given[rows.rows[[7, 30]]] = value
    scores = Scorer(dataset, SETTINGS, None, given)(ScoreTask("test", GIVEN, 0))
    assert scores.broken == f"not finite, or of norm 0, first for row {rows.rows[7]}"
    assert (scores.values, scores.draws) == ({}, 1)


def test_baselines_need_two_training_rows(tmp_path: Path) -> None:
    folder = str(write_embeddings(tmp_path / "embeddings", rows=3))
    dataset = EmbeddingDataset(folder, ReadSettings(validation_fraction=0.0, test_fraction=0.99))
    with pytest.raises(InputError, match="the training split has 0 rows, and baselines need at least 2"):
        Scorer(dataset, SETTINGS, None)(ScoreTask("test", "mean shift", 0))


def test_losses_are_the_training_loss_at_a_timestep_of_each_bin(
    priors: dict[str, Prior], dataset: EmbeddingDataset
) -> None:
    """Noise is the first D values of a row's stream, and the last value selects the timestep; nothing is dropped."""
    prior = priors["ema"]
    rows = EvaluatedRows(dataset, "test", SETTINGS)
    batch = dataset.take(rows.rows)
    stream = RowNoise(SETTINGS.seed, LOSS, rows.ids, (DIM + 1,))
    for name, found in timestep_losses(prior, batch, rows.ids, SETTINGS).items():
        first, last = map(int, name.split("-"))
        drawn = stream.draw()
        timesteps = first + (np.abs(drawn[:, -1].astype(np.float64)) * 4096 % 1 * (last + 1 - first)).astype(int)
        assert timesteps.min() >= first
        assert timesteps.max() <= last
        assert len(set(timesteps.tolist())) > 10
        no_drop = torch.zeros(len(rows.ids), 1, dtype=torch.bool)
        with torch.inference_mode():
            random = StepRandomness(
                torch.from_numpy(drawn[:, None, :-1].copy()), torch.from_numpy(timesteps)[:, None], *[no_drop] * 3
            )
            expected = diffusion_loss(
                prior.network, prior.schedule, prior.config.diffusion, prior.normaliser,
                torch.from_numpy(batch.image_embed), prior.condition(torch.from_numpy(batch.text_embed), None), random,
            )  # fmt: skip
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


def test_there_are_no_more_bins_than_timesteps(make_prior: Any, dataset: EmbeddingDataset) -> None:
    prior = make_prior(embed_dim=DIM, timesteps=3)
    rows = EvaluatedRows(dataset, "test", SETTINGS)
    losses = timestep_losses(prior, dataset.take(rows.rows), rows.ids, SETTINGS)
    assert list(losses) == ["0-0", "1-1", "2-2"]


def test_a_prior_reads_its_token_states_and_baselines_read_none(
    dataset: EmbeddingDataset, make_prior: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the number of token states that is asked for is observed; the dataset has none to give."""
    asked: list[int] = []
    take = dataset.take

    def observed(rows: np.ndarray, max_text_len: int = 0, **_: bool) -> Any:
        asked.append(max_text_len)
        return take(rows)

    monkeypatch.setattr(dataset, "take", observed)
    prior = make_prior(embed_dim=DIM)
    monkeypatch.setattr(type(prior), "token_states_used", property(lambda _: 7))
    scorer = Scorer(dataset, SETTINGS, lambda weights: prior)
    scorer(ScoreTask("test", "prior", 0))
    scorer(ScoreTask("test", "ema", 0, is_loss=True))
    assert asked.count(7) == 2
    asked.clear()
    scorer(ScoreTask("test", "text embedding", 0))
    assert set(asked) == {0}


def test_a_maker_gives_a_scorer_of_its_source(dataset: EmbeddingDataset, tmp_path: Path) -> None:
    given = np.random.default_rng(0).standard_normal((120, DIM)).astype(np.float32)
    np.save(tmp_path / "given.npy", given)
    maker = ScorerMaker(dataset.store.url, SPLITS, SETTINGS, PriorSource(str(tmp_path / "given.npy")))
    scores = pickle.loads(pickle.dumps(maker))()(ScoreTask("test", GIVEN, 0))
    rows = EvaluatedRows(dataset, "test", SETTINGS)
    np.testing.assert_allclose(scores.first_draws, unit(given[rows.rows].astype(np.float64)))


def test_a_maker_loads_the_named_weights(
    dataset: EmbeddingDataset, priors: dict[str, Prior], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def load(source: PriorSource, weights: str = "ema", device: str = "cpu") -> Prior:
        asked.append((weights, device))
        return priors[weights]

    monkeypatch.setattr(scoring.PriorSource, "load", load)
    scorer = ScorerMaker(dataset.store.url, SPLITS, SETTINGS, PriorSource("prior"))()
    scorer(ScoreTask("test", "best", 0, is_loss=True))
    scorer(ScoreTask("test", "prior, online weights", 0))
    assert asked == [("best", "cpu"), ("online", "cpu")]


def test_a_prior_that_ignores_the_timestep_has_no_losses(dataset: EmbeddingDataset) -> None:
    config = make_raw_config({"time_token": False}, {"text_drop": 0}, embed_dim=DIM, text_dim=DIM)
    scorer = Scorer(dataset, SETTINGS, lambda weights: make_raw_prior(config))
    scores = scorer(ScoreTask("test", "ema", 0, is_loss=True))
    assert scores.broken == "none: this prior does not see the timestep"
    losses = LossScores(EvaluatedRows(dataset, "test", SETTINGS), SETTINGS)
    for block in range(EvaluatedRows(dataset, "test", SETTINGS).blocks):
        losses.add(dataclasses.replace(scores, task=ScoreTask("test", "ema", block, is_loss=True)))
    assert losses.summary == {"broken": scores.broken}
