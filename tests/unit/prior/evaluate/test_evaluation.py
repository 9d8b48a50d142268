"""Gathering of scores: blocks in any order, columns by predictor, broken predictors, and a worker that is closed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.evaluate.distances import EmbeddingSet, set_distances
from priorkit.prior.evaluate.evaluation import SplitScores, compute_metrics
from priorkit.prior.evaluate.metrics import mean_intervals
from priorkit.prior.evaluate.predictors import as_units
from priorkit.prior.evaluate.rows import EvaluatedRows
from priorkit.prior.evaluate.scoring import GIVEN, BlockScores, Scorer, ScoreTask
from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.model.prior import Prior
from priorkit.prior.sampling.settings import SampleSettings

from ..embeddings import DIM, unit, write_embeddings
from ..reference import randomise

READ = ReadSettings(validation_fraction=0, test_fraction=0.6)
SETTINGS = EvaluateSettings(
    threads=1, device="cpu", draws=2, sample=SampleSettings(steps=2), bootstrap_samples=100, loss_bins=2,
    baselines=("text embedding", "random training image"), weights=("ema", "online"), distance_rows=60,
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingDataset:
    """250 rows, with more than one block of test rows."""
    return EmbeddingDataset(str(write_embeddings(tmp_path_factory.mktemp("a") / "embeddings", rows=250)), READ)


@pytest.fixture
def load(make_prior: Callable[..., Prior]) -> Callable[[Any], Prior]:
    """Priors with different weights by name."""
    made = {name: make_prior(embed_dim=DIM, timesteps=10) for name in ("ema", "online")}
    for seed, prior in enumerate(made.values()):
        randomise(prior.network, seed)
    return lambda weights: made[weights]


def given(dataset: EmbeddingDataset) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((dataset.count, 2, DIM))


def test_metrics_of_each_predictor_and_of_each_weights_are_its_own(
    dataset: EmbeddingDataset, load: Callable[[Any], Prior]
) -> None:
    scorer = Scorer(dataset, SETTINGS, load)
    found = compute_metrics(dataset, SETTINGS, lambda: scorer)
    rows = EvaluatedRows(dataset, "test", SETTINGS)
    assert rows.blocks == 2
    split, table = found.metrics["splits"]["test"], found.rows["test"]
    names = ["prior", "prior, online weights", "text embedding", "random training image"]
    assert [one["name"] for one in split["predictors"]] == names
    assert [one["draws"] for one in split["predictors"]] == [2, 2, 1, 2]
    assert [one.get("weights") for one in split["predictors"]] == ["ema", "online", None, None]
    assert list(split["losses"]) == ["ema", "online"]
    for number, name in enumerate(names):
        blocks = [scorer(ScoreTask("test", name, block)).values for block in range(2)]
        for metric in blocks[0]:
            values = np.concatenate([block[metric] for block in blocks])
            np.testing.assert_array_equal(table.column(f"{name}/{metric}").to_numpy(), values)
            assert split["predictors"][number]["metrics"][metric]["value"] == values.mean()
    for name in ("ema", "online"):
        blocks = [scorer(ScoreTask("test", name, block, is_loss=True)).values for block in range(2)]
        values = {metric: np.concatenate([block[metric] for block in blocks]) for metric in blocks[0]}
        overall = np.mean(list(values.values()), axis=0)
        assert {n: v["value"] for n, v in split["losses"][name].items()} == {
            "overall": overall.mean(), **{metric: column.mean() for metric, column in values.items()}
        }  # fmt: skip
    assert table.column("row_id").to_numpy().tolist() == rows.ids.tolist()
    assert table.column("group_id").to_numpy().tolist() == rows.groups.tolist()


def all_scores(dataset: EmbeddingDataset, predictions: np.ndarray) -> tuple[SplitScores, list[BlockScores]]:
    scorer = Scorer(dataset, SETTINGS, None, predictions)
    scores = SplitScores(dataset, "test", SETTINGS, given=True)
    return scores, [scorer(task) for task in scores.tasks()]


def training_images(dataset: EmbeddingDataset) -> EmbeddingSet:
    rows = dataset.content_order("train", SETTINGS.seed)[: SETTINGS.distance_rows]
    return EmbeddingSet(as_units(dataset.take(rows).image_embed), dataset.group_ids[rows])


def test_the_order_of_blocks_changes_nothing(dataset: EmbeddingDataset) -> None:
    results = []
    for step in (1, -1):
        scores, blocks = all_scores(dataset, given(dataset))
        for block in blocks[::step]:
            scores.add(block)
        results.append((scores.metrics(training_images(dataset)), scores.table()))
    assert results[0] == results[1]


def test_a_split_says_which_rows_and_images_it_is_over(dataset: EmbeddingDataset) -> None:
    found = compute_metrics(dataset, SETTINGS, lambda: Scorer(dataset, SETTINGS, None, given(dataset)), given=True)
    rows, split = EvaluatedRows(dataset, "test", SETTINGS), found.metrics["splits"]["test"]
    assert (found.metrics["seed"], found.metrics["read"]) == (0, READ.splits())
    assert (split["rows"], split["gallery"], split["distance_rows"]) == (len(rows.rows), len(rows.gallery), 60)
    assert split["rows_fingerprint"] == hashlib.sha256(rows.ids.tobytes()).hexdigest()
    assert split["gallery_fingerprint"] == hashlib.sha256(rows.groups[rows.gallery].tobytes()).hexdigest()
    assert split["losses"] == {}
    assert [one["name"] for one in split["predictors"]] == [GIVEN, *SETTINGS.baselines]


def test_distances_are_those_of_the_first_draws_and_the_floor_that_of_training_images(
    dataset: EmbeddingDataset,
) -> None:
    predictions = given(dataset)
    found = compute_metrics(dataset, SETTINGS, lambda: Scorer(dataset, SETTINGS, None, predictions), given=True)
    rows = EvaluatedRows(dataset, "test", SETTINGS).rows[:60]
    real = EmbeddingSet(as_units(dataset.take(rows).image_embed), dataset.group_ids[rows])
    split = found.metrics["splits"]["test"]
    expected = set_distances(EmbeddingSet(unit(predictions[rows, 0]), real.groups), real)
    for name, value in expected.items():
        assert split["predictors"][0]["distances"][name]["value"] == pytest.approx(value.value, abs=1e-12)
    floor = set_distances(training_images(dataset), real)
    assert {n: v["value"] for n, v in split["real_against_real"].items()} == {n: v.value for n, v in floor.items()}
    assert split["real_against_real_rows"] == 60


def test_a_floor_over_fewer_rows_has_no_frechet_distance(dataset: EmbeddingDataset) -> None:
    scores = SplitScores(dataset, "test", SETTINGS, given=True)
    few = training_images(dataset)
    few = EmbeddingSet(few.embeds[:59], few.groups[:59])
    scorer = Scorer(dataset, SETTINGS, None, given(dataset))
    for task in scores.tasks():
        scores.add(scorer(task))
    found = scores.metrics(few)
    assert set(found["real_against_real"]) == {"energy_distance", "mmd"}
    assert found["real_against_real_rows"] == 59


def test_intervals_are_over_images_with_the_seed_and_resamples_of_the_settings(dataset: EmbeddingDataset) -> None:
    scores, blocks = all_scores(dataset, given(dataset))
    for block in blocks:
        scores.add(block)
    rows = EvaluatedRows(dataset, "test", SETTINGS)
    metrics = scores.metrics(training_images(dataset))["predictors"][0]["metrics"]
    columns = {name: scores.table().column(f"{GIVEN}/{name}").to_numpy() for name in metrics}
    expected = mean_intervals(columns, rows.groups, 100, SETTINGS.seed)
    assert {name: (value["low"], value["high"]) for name, value in metrics.items()} == {
        name: (value.low, value.high) for name, value in expected.items()
    }


def test_a_broken_predictor_is_named_by_its_first_block_and_has_no_columns(dataset: EmbeddingDataset) -> None:
    predictions = given(dataset)
    order = EvaluatedRows(dataset, "test", SETTINGS).rows
    predictions[order[[5, 130]]] = np.nan
    scores, blocks = all_scores(dataset, predictions)
    for block in blocks[::-1]:
        scores.add(block)
    found = scores.metrics(training_images(dataset))["predictors"]
    assert found[0] == {"name": GIVEN, "draws": 2, "broken": f"not finite, or of norm 0, first for row {order[5]}"}
    assert "broken" not in found[1]
    assert not [name for name in scores.table().column_names if name.startswith(GIVEN)]


def test_predictions_that_are_the_same_for_every_caption_are_broken(dataset: EmbeddingDataset) -> None:
    scores, blocks = all_scores(dataset, np.ones((dataset.count, DIM)))
    for block in blocks:
        scores.add(block)
    assert scores.metrics(training_images(dataset))["predictors"][0]["broken"] == "the same for every caption"


def test_losses_that_are_not_finite_are_broken(dataset: EmbeddingDataset, load: Callable[[Any], Prior]) -> None:
    scores = SplitScores(dataset, "test", SETTINGS, given=False)
    scorer = Scorer(dataset, SETTINGS, load)
    for task in scores.tasks():
        block = scorer(task)
        if task.name == "online":
            block.values["0-4"][0] = np.inf
        scores.add(block)
    losses = scores.metrics(training_images(dataset))["losses"]
    assert losses["online"] == {"broken": "not finite"}
    assert set(losses["ema"]) == {"overall", "0-4", "5-9"}


class Closable(Scorer):
    """A scorer that records when it is closed."""

    is_closed = False

    def __enter__(self) -> Closable:
        return self

    def __exit__(self, *error: object) -> None:
        self.is_closed = True


def test_an_error_while_gathering_closes_the_worker(dataset: EmbeddingDataset) -> None:
    scorer = Closable(dataset, SETTINGS, None, given(dataset))

    def stop(done: int, total: int | None, note: str) -> None:
        assert not scorer.is_closed
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        compute_metrics(dataset, SETTINGS, lambda: scorer, given=True, progress=stop)
    assert scorer.is_closed
    assert caught.tb is not None  # the traceback is alive, so that no garbage collection has closed the worker


def test_progress_counts_the_rows_of_all_tasks(dataset: EmbeddingDataset) -> None:
    told: list[tuple[int, int | None, str]] = []
    compute_metrics(
        dataset, SETTINGS, lambda: Scorer(dataset, SETTINGS, None, given(dataset)), given=True,
        progress=lambda *values: told.append(values),
    )  # fmt: skip
    names = [GIVEN] * 2 + ["text embedding"] * 2 + ["random training image"] * 2
    assert told == [(128 * done, 128 * 6, name) for done, name in enumerate(names)]


def test_every_split_has_its_own_scores(tmp_path: Path) -> None:
    both = EmbeddingDataset(
        str(write_embeddings(tmp_path / "embeddings")), ReadSettings(validation_fraction=0.3, test_fraction=0.3)
    )
    settings = SETTINGS.model_copy(update={"splits": ("validation", "test"), "baselines": ("text embedding",)})
    found = compute_metrics(both, settings, lambda: Scorer(both, settings, None, given(both)), given=True)
    for split in ("validation", "test"):
        assert found.rows[split].column("row_id").to_pylist() == EvaluatedRows(both, split, settings).ids.tolist()
        assert found.metrics["splits"][split]["rows"] == len(both.rows(split))
