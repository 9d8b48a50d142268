"""Evaluation of a briefly trained prior on the synthetic problem, whose answer is known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from priorkit.pipeline.config import ReadSettings
from priorkit.pipeline.errors import FolderError, InputError
from priorkit.pipeline.read import EmbeddingDataset
from priorkit.prior.config import EvaluateSettings, SampleSettings
from priorkit.prior.evaluate import (
    compute_metrics,
    evaluate,
    evaluated_rows,
    mean_shift,
    plan_evaluate,
    prior_draws,
    random_training_image,
    read_metrics,
    row_values,
)
from priorkit.prior.load import load_prior
from priorkit.prior.train import train

from .synthetic import SMALL_TRAIN, changed, write_embeddings

READ = ReadSettings(validation_fraction=0.05, test_fraction=0.25)
SETTINGS = EvaluateSettings(threads=1, draws=8, sample=SampleSettings(steps=12), bootstrap_samples=200)
PREDICTORS = ("prior", "text embedding", "mean shift", "random training image")


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 rows, about 250 of them for testing; for reading only."""
    return write_embeddings(tmp_path_factory.mktemp("synthetic") / "embeddings", rows=1000)


@pytest.fixture(scope="module")
def prior(embeddings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior of 350 steps; for reading only."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained") / "prior"
    settings = changed(SMALL_TRAIN, steps=350, checkpoint_every=350, validate_every=350, log_every=350)
    train(str(embeddings), str(folder), settings, READ)
    return folder


@pytest.fixture(scope="module")
def metrics(prior: Path, embeddings: Path) -> dict[str, Any]:
    """What `evaluate` finds."""
    return compute_metrics(load_prior(str(prior)), EmbeddingDataset(str(embeddings), READ), SETTINGS)


# what is found


def test_the_prior_beats_every_baseline_on_the_energy_score(metrics: dict[str, Any]) -> None:
    score = {name: metrics["predictors"][name]["energy_score"] for name in PREDICTORS}
    for name in PREDICTORS[1:]:
        assert score["prior"]["high"] < score[name]["low"], name
    cosine = {name: metrics["predictors"][name]["cosine_to_image"]["mean"] for name in PREDICTORS}
    assert all(cosine["prior"] > cosine[name] + 0.2 for name in PREDICTORS[1:])
    recall = {name: metrics["predictors"][name]["recall_at_10"]["mean"] for name in PREDICTORS}
    assert recall["prior"] > 2 * max(recall[name] for name in PREDICTORS[1:])


def test_metrics_say_what_they_are_of(metrics: dict[str, Any], embeddings: Path) -> None:
    rows = len(EmbeddingDataset(str(embeddings), READ).rows("test"))
    assert 200 < rows < 300
    assert (metrics["split"], metrics["rows"], metrics["gallery"], metrics["draws"]) == ("test", rows, rows, 8)
    assert metrics["sample"]["steps"] == 12
    assert tuple(metrics["predictors"]) == PREDICTORS
    names = {"energy_score", "cosine_to_image", "cosine_to_text", "cosine_to_unrelated_caption"}
    for values in metrics["predictors"].values():
        assert set(values) == names | {"recall_at_1", "recall_at_5", "recall_at_10"}
        for value in values.values():
            assert value["low"] <= value["mean"] <= value["high"]
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_baselines_have_the_scores_that_are_known(metrics: dict[str, Any], embeddings: Path) -> None:
    dataset = EmbeddingDataset(str(embeddings), READ)
    batch = dataset.take(dataset.rows("test"))
    image, text = batch.image_embed.astype(np.float64), batch.text_embed.astype(np.float64)
    found = metrics["predictors"]["text embedding"]
    assert found["energy_score"]["mean"] == pytest.approx(np.linalg.norm(image - text, axis=1).mean(), abs=1e-9)
    cosine = (image * text).sum(axis=1).mean()
    assert found["cosine_to_image"]["mean"] == pytest.approx(cosine, abs=1e-6)
    assert metrics["text_image_cosine"]["mean"] == pytest.approx(cosine, abs=1e-6)
    assert found["cosine_to_text"]["mean"] == pytest.approx(1, abs=1e-3)
    # a random image: E|X - y| - E|X - X'| / 2 for X, X', y alike is half the mean distance of two images
    distances = np.linalg.norm(image[:, None] - image[None], axis=-1)
    expected = distances.sum() / (len(image) * (len(image) - 1)) / 2
    assert metrics["predictors"]["random training image"]["energy_score"]["mean"] == pytest.approx(expected, rel=0.05)
    recall = metrics["predictors"]["random training image"]["recall_at_10"]
    assert recall["low"] <= 10 / len(image) <= recall["high"]


def test_the_oracle_beats_the_conditional_mean_and_random_images(embeddings: Path) -> None:
    """A sampler of the true conditional distribution, under the very evaluator that priors get."""
    dataset = EmbeddingDataset(str(embeddings), READ)
    rows = evaluated_rows(dataset, SETTINGS)
    rotation = np.linalg.qr(np.random.default_rng(1234).standard_normal((16, 16)))[0]
    random = np.random.default_rng(0)

    def oracle(batch: Any, block: int) -> np.ndarray:
        noise = random.standard_normal((len(batch.rows), 8, 16)) * 0.5 / 4
        drawn = (batch.text_embed @ rotation)[:, None] + noise
        return np.asarray(drawn / np.linalg.norm(drawn, axis=-1, keepdims=True))

    def conditional_mean(batch: Any, block: int) -> np.ndarray:
        return np.asarray(batch.text_embed @ rotation)[:, None]

    gallery = dataset.take(rows)
    score = {
        name: row_values(draw, dataset, rows, gallery, 0)
        for name, draw in (
            ("oracle", oracle),
            ("mean", conditional_mean),
            ("random", random_training_image(dataset, SETTINGS)),
        )
    }
    for name in ("mean", "random"):
        difference = score[name]["energy_score"] - score["oracle"]["energy_score"]
        assert difference.mean() > 4 * difference.std() / np.sqrt(len(rows)), name
    # the mean-seeking predictor wins on cosine: why the energy score is the headline
    assert score["mean"]["cosine_to_image"].mean() > score["oracle"]["cosine_to_image"].mean()


def test_mean_shift_uses_training_rows_only(embeddings: Path) -> None:
    dataset = EmbeddingDataset(str(embeddings), READ)
    train_batch, batch = dataset.take(dataset.rows("train")), dataset.take(dataset.rows("test")[:7])
    shift = (train_batch.image_embed.astype(np.float64) - train_batch.text_embed).mean(axis=0)
    expected = batch.text_embed + shift
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = mean_shift(dataset, SETTINGS)(batch, 0)
    assert found.shape == (7, 1, 16)
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)


def test_random_training_images_are_training_images(embeddings: Path) -> None:
    dataset = EmbeddingDataset(str(embeddings), READ)
    trained = {row.tobytes() for row in dataset.take(dataset.rows("train")).image_embed}
    draw = random_training_image(dataset, SETTINGS)
    batch = dataset.take(dataset.rows("test")[:20])
    found = draw(batch, 0)
    assert found.shape == (20, 8, 16)
    assert all(row.tobytes() in trained for row in found.reshape(-1, 16))
    assert np.array_equal(draw(batch, 0), found)
    assert np.array_equal(draw(dataset.take(dataset.rows("test")[:5]), 0), found[:5])
    assert not np.array_equal(draw(batch, 1), found)


def test_draws_are_those_of_the_prior(prior: Path, embeddings: Path) -> None:
    dataset = EmbeddingDataset(str(embeddings), READ)
    batch = dataset.take(dataset.rows("test")[:5])
    loaded = load_prior(str(prior))
    found = prior_draws(loaded, SETTINGS)(batch, 0)
    assert found.shape == (5, 8, 16)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)
    random = np.random.Generator(np.random.Philox(key=np.array([0, 2**63], np.uint64)))
    noise = random.standard_normal((40, 16), np.float32)
    text = torch.from_numpy(batch.text_embed).repeat_interleave(8, 0)
    alone = loaded.sample(text_embed=text, steps=12, noise=iter([torch.from_numpy(noise)]))
    np.testing.assert_allclose(found.reshape(40, 16), alone.numpy(), atol=1e-5)


# sameness


def test_results_depend_on_the_seed_alone(prior: Path, embeddings: Path, metrics: dict[str, Any]) -> None:
    loaded, dataset = load_prior(str(prior)), EmbeddingDataset(str(embeddings), READ)
    torch.manual_seed(5)
    np.random.seed(5)
    assert compute_metrics(loaded, dataset, SETTINGS) == metrics
    other = compute_metrics(loaded, dataset, SETTINGS.model_copy(update={"seed": 1}))
    for name in ("prior", "random training image"):
        assert other["predictors"][name]["energy_score"] != metrics["predictors"][name]["energy_score"]


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_scores_of_a_row_do_not_change_when_rows_are_appended(prior: Path, embeddings: Path, sampler: Any) -> None:
    loaded, dataset = load_prior(str(prior)), EmbeddingDataset(str(embeddings), READ)
    settings = SETTINGS.model_copy(update={"sample": SampleSettings(steps=4, sampler=sampler)})
    rows = evaluated_rows(dataset, settings)
    scores = [
        row_values(prior_draws(loaded, settings), dataset, rows[:count], dataset.take(rows[:count]), 0)["energy_score"]
        for count in (20, 140, 200)
    ]
    np.testing.assert_allclose(scores[0], scores[2][:20], atol=1e-5)
    np.testing.assert_allclose(scores[1], scores[2][:140], atol=1e-5)


# the stage


def test_a_second_run_does_nothing_and_gives_the_same_file_anew(
    prior: Path, embeddings: Path, metrics: dict[str, Any], tmp_path: Path, folder_bytes: Callable[[Path], Any]
) -> None:
    calls: list[tuple[int, int, str]] = []
    first = evaluate(
        str(prior), str(embeddings), str(tmp_path / "one"), SETTINGS, progress=lambda *told: calls.append(told)
    )
    assert first.done_now == first.rows == metrics["rows"]
    assert calls[-1][0] == calls[-1][1] == metrics["rows"]
    assert read_metrics(str(tmp_path / "one")) == metrics  # the split is the one of the training
    second = evaluate(str(prior), str(embeddings), str(tmp_path / "one"), SETTINGS)
    assert (second.done_now, second.rows) == (0, metrics["rows"])
    before = folder_bytes(tmp_path / "one")
    (tmp_path / "one/metrics.json").unlink()
    assert evaluate(str(prior), str(embeddings), str(tmp_path / "one"), SETTINGS).done_now == metrics["rows"]
    assert folder_bytes(tmp_path / "one") == before


def test_a_new_prior_or_other_settings_make_it_stale(prior: Path, embeddings: Path, tmp_path: Path) -> None:
    quick = EvaluateSettings(draws=2, max_rows=40, sample=SampleSettings(steps=2), bootstrap_samples=100)
    own, folder = tmp_path / "prior", str(tmp_path / "evaluation")
    settings = changed(SMALL_TRAIN, steps=5)
    train(str(embeddings), str(own), settings, READ)

    def pending() -> int:
        return plan_evaluate(str(own), str(embeddings), folder, quick).pending_units

    assert pending() == 40
    assert not Path(folder).exists()
    evaluate(str(own), str(embeddings), folder, quick)
    first = read_metrics(folder)
    assert pending() == 0
    train(str(embeddings), str(own), changed(settings, seed=1), READ, overwrite=True)
    assert pending() == 40
    assert evaluate(str(own), str(embeddings), folder, quick).done_now == 40
    second = read_metrics(folder)
    assert first["predictors"]["prior"] != second["predictors"]["prior"]
    assert first["predictors"]["mean shift"] == second["predictors"]["mean shift"]
    more = quick.model_copy(update={"draws": 3})
    assert evaluate(str(own), str(embeddings), folder, more).done_now == 40
    assert read_metrics(folder)["draws"] == 3
    assert evaluate(str(own), str(embeddings), folder, more, limit=10).rows == 10


def test_token_states_reach_the_evaluated_prior(tmp_path: Path) -> None:
    embeddings = write_embeddings(tmp_path / "embeddings", rows=200, token_states=True)
    settings = changed(SMALL_TRAIN, steps=5, network__max_text_len=3)
    train(str(embeddings), str(tmp_path / "prior"), settings, READ)
    quick = EvaluateSettings(draws=2, sample=SampleSettings(steps=2), bootstrap_samples=100)
    evaluate(str(tmp_path / "prior"), str(embeddings), str(tmp_path / "evaluation"), quick)
    blind = tmp_path / "blind"
    write_embeddings(blind, rows=200)
    with pytest.raises(InputError, match="stores no token states"):
        evaluate(str(tmp_path / "prior"), str(blind), str(tmp_path / "other"), quick)


# refusals


def test_another_clip_is_refused(prior: Path, tmp_path: Path) -> None:
    other = write_embeddings(tmp_path / "other", clip="another")
    with pytest.raises(InputError, match="embedded by another CLIP"):
        evaluate(str(prior), str(other), str(tmp_path / "evaluation"), SETTINGS)
    assert not (tmp_path / "evaluation/metrics.json").exists()


def test_a_split_that_is_too_small_is_refused(prior: Path, embeddings: Path, tmp_path: Path) -> None:
    none = ReadSettings(validation_fraction=0, test_fraction=0)
    with pytest.raises(InputError, match=r"the test split has 0 rows, at least 2 .*read\.test_fraction"):
        evaluate(str(prior), str(embeddings), str(tmp_path / "evaluation"), SETTINGS, none)


def test_an_unfinished_or_missing_prior_is_refused(embeddings: Path, tmp_path: Path) -> None:
    train(str(embeddings), str(tmp_path / "prior"), SMALL_TRAIN, READ, limit=2)
    with pytest.raises(InputError, match="training has not ended"):
        evaluate(str(tmp_path / "prior"), str(embeddings), str(tmp_path / "evaluation"), SETTINGS)
    with pytest.raises(InputError, match="holds no result of `priorkit train`"):
        evaluate(str(tmp_path / "nowhere"), str(embeddings), str(tmp_path / "evaluation"), SETTINGS)
    with pytest.raises(InputError, match="was written by `priorkit embed`, not by `priorkit train`"):
        evaluate(str(embeddings), str(embeddings), str(tmp_path / "evaluation"), SETTINGS)


def test_a_folder_with_other_work_is_left_alone(prior: Path, embeddings: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FolderError, match=r"other work .*notes\.txt"):
        evaluate(str(prior), str(embeddings), str(tmp_path), SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_prior_that_draws_nan_is_refused(prior: Path, embeddings: Path, tmp_path: Path) -> None:
    loaded = load_prior(str(prior))
    with torch.no_grad():
        loaded.network.to_embed.weight[3] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        compute_metrics(loaded, EmbeddingDataset(str(embeddings), READ), SETTINGS)


def test_a_prior_that_was_moved_is_the_same_prior(prior: Path, embeddings: Path, tmp_path: Path) -> None:
    quick = EvaluateSettings(draws=2, max_rows=40, sample=SampleSettings(steps=2), bootstrap_samples=100)
    evaluate(str(prior), str(embeddings), str(tmp_path / "evaluation"), quick)
    shutil.copytree(prior, tmp_path / "moved")
    assert evaluate(str(tmp_path / "moved"), str(embeddings), str(tmp_path / "evaluation"), quick).done_now == 0
