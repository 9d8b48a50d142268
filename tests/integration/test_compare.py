"""Evaluations side by side: what their differences are, and which cannot be compared."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from priorkit.cli import app
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.evaluate.compare import Comparison, compare
from priorkit.prior.evaluate.folder import rows_name
from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.evaluate.stage import evaluate

from . import synthetic
from .synthetic import write_embeddings

READ = ReadSettings(validation_fraction=0.1, test_fraction=0.4)
SETTINGS = EvaluateSettings(threads=1, draws=2, bootstrap_samples=200, device="cpu")


def evaluated(
    folder: Path, embeddings: Path, spread: float, settings: EvaluateSettings = SETTINGS, draws: int = 4
) -> str:
    """An evaluation of predictions that are the truth with some noise."""
    dataset = EmbeddingDataset(str(embeddings), READ)
    truth = dataset.take(np.arange(dataset.count)).image_embed
    noise = np.random.default_rng(0).standard_normal((len(truth), draws, truth.shape[1])).astype(np.float32)
    folder.mkdir()
    np.save(folder / "predictions.npy", truth[:, None] + spread * noise)
    evaluate(str(folder / "predictions.npy"), str(embeddings), str(folder / "evaluation"), settings, READ)
    return str(folder / "evaluation")


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embeddings(tmp_path_factory.mktemp("compared") / "embeddings", rows=400)


@pytest.fixture(scope="module")
def runs(embeddings: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A good one and a worse one, on the same rows."""
    folder = tmp_path_factory.mktemp("runs")
    return evaluated(folder / "good", embeddings, 0.1), evaluated(folder / "worse", embeddings, 0.2)


def by_metric(found: list[Comparison]) -> dict[str, Comparison]:
    return {comparison.metric: comparison for comparison in found}


def test_differences_are_of_the_same_rows(runs: tuple[str, str]) -> None:
    found = by_metric(compare(runs))
    columns = [
        pq.read_table(f"{run}/{rows_name('test')}").column("given predictions/energy_score").to_numpy() for run in runs
    ]
    score = found["energy_score"]
    assert score.paired == [True]
    difference = columns[1] - columns[0]
    assert score.differences[0].value == pytest.approx(difference.mean())
    assert score.values[1].value - score.values[0].value == pytest.approx(difference.mean())
    error = difference.std() / np.sqrt(len(difference))
    assert score.differences[0].low == pytest.approx(difference.mean() - 1.96 * error, abs=error / 2)
    assert score.differences[0].low > 0
    # pairing takes out what is hard for both
    whole = score.values[1].high - score.values[1].low
    assert score.differences[0].high - score.differences[0].low < whole
    assert found["cosine_to_image"].differences[0].high < 0
    distance = found["frechet_distance"]
    assert distance.paired == [False]
    assert distance.differences[0].value == pytest.approx(distance.values[1].value - distance.values[0].value)


def test_differences_of_captions_of_one_image_are_one_image_to_intervals(tmp_path: Path) -> None:
    embeddings = write_embeddings(tmp_path / "embeddings", rows=1000, captions=5)
    runs = []
    for number, spread in enumerate((0.1, 0.2)):
        (tmp_path / f"{number}").mkdir()
        dataset = EmbeddingDataset(str(embeddings), READ)
        images = np.arange(dataset.count) // 5
        noise = np.random.default_rng(0).standard_normal((images[-1] + 1, dataset.embed_dim))[images]
        predictions = dataset.take(np.arange(dataset.count)).image_embed + spread * noise
        np.save(tmp_path / f"{number}/predictions.npy", predictions.astype(np.float32))
        runs.append(str(tmp_path / f"{number}/evaluation"))
        evaluate(str(tmp_path / f"{number}/predictions.npy"), str(embeddings), runs[-1], SETTINGS, READ)
    found = by_metric(compare(runs))["energy_score"].differences[0]
    one, other = (
        pq.read_table(f"{run}/{rows_name('test')}").column("given predictions/energy_score").to_numpy() for run in runs
    )
    error = (other - one).std() / np.sqrt(len(one) / 5)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.25)


def test_a_run_does_not_differ_from_itself(runs: tuple[str, str]) -> None:
    for comparison in compare([runs[0], runs[0]]):
        assert comparison.differences[0].value == 0
        assert comparison.differences[0].low <= 0 <= comparison.differences[0].high


def test_a_baseline_is_the_same_in_both(runs: tuple[str, str]) -> None:
    assert all(comparison.differences[0].value == 0 for comparison in compare(runs, "ridge regression"))
    with pytest.raises(InputError, match="no predictor 'best'; it has given predictions, text embedding"):
        compare(runs, "best")


def test_other_rows_of_the_same_number_are_compared_as_independent(runs: tuple[str, str], tmp_path: Path) -> None:
    other = evaluated(
        tmp_path / "other", write_embeddings(tmp_path / "embeddings", rows=400, seed=1), 0.2,
        SETTINGS.model_copy(update={"max_rows": 100}),
    )  # fmt: skip
    small = evaluated(
        tmp_path / "small", write_embeddings(tmp_path / "again", rows=400), 0.1,
        SETTINGS.model_copy(update={"max_rows": 100}),
    )  # fmt: skip
    found = by_metric(compare([small, other]))["energy_score"]
    assert found.paired == [False]
    low = found.differences[0].value - np.hypot(
        found.values[1].value - found.values[1].low, found.values[0].high - found.values[0].value
    )
    assert found.differences[0].low == pytest.approx(low)
    shown = CliRunner().invoke(app, ["compare", small, other]).stdout
    assert "Other rows: differences are those of independent means" in " ".join(shown.split())


def test_unlike_draws_of_what_is_compared_are_refused(runs: tuple[str, str], embeddings: Path, tmp_path: Path) -> None:
    more = evaluated(tmp_path / "more", embeddings, 0.1, SETTINGS.model_copy(update={"draws": 3}), draws=3)
    with pytest.raises(InputError, match=r"draws a caption differ .*: 4, .*: 3\); set evaluate\.draws alike"):
        compare([runs[0], more])
    with pytest.raises(InputError, match=r"draws a caption differ .*: 2, .*: 3\)"):
        compare([runs[0], more], "linear-Gaussian")
    assert compare([runs[0], more], "ridge regression")  # a point in both


def test_other_images_in_a_gallery_of_the_same_size_are_refused(embeddings: Path, tmp_path: Path) -> None:
    seeds = [
        evaluated(tmp_path / f"{seed}", embeddings, 0.1, SETTINGS.model_copy(update={"seed": seed, "gallery_size": 50}))
        for seed in (0, 1)
    ]
    with pytest.raises(InputError, match=r"galleries of the test split .*evaluate\.seed alike"):
        compare(seeds)


def test_embeddings_of_other_clips_are_refused(runs: tuple[str, str], tmp_path: Path) -> None:
    other = write_embeddings(tmp_path / "embeddings", rows=400, clip="another")
    with pytest.raises(InputError, match=r"embeddings are of other CLIPs .*evaluate on embeddings of one CLIP"):
        compare([runs[0], evaluated(tmp_path / "other", other, 0.1)])
    for folder in ("shards", "selections"):
        shutil.rmtree(other / folder, ignore_errors=True)
    (other / "manifest.json").unlink()  # of which nothing says the CLIP
    assert compare([runs[0], evaluated(tmp_path / "foreign", other, 0.1)])


def test_embeddings_of_other_sizes_are_refused(
    runs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "D", 8)
    other = write_embeddings(tmp_path / "embeddings", rows=400)
    with pytest.raises(InputError, match=r"embeddings are of other sizes .*: 16, .*: 8\)"):
        compare([runs[0], evaluated(tmp_path / "other", other, 0.1)])


def test_distances_are_compared_where_all_have_them(tmp_path: Path) -> None:
    """Of 50 rows of 10 images there are none."""
    settings = SETTINGS.model_copy(update={"max_rows": 50, "gallery_size": 5})
    found = []
    for captions in (1, 5):
        rows = write_embeddings(tmp_path / f"embeddings{captions}", rows=400, captions=captions)
        found.append(evaluated(tmp_path / f"run{captions}", rows, 0.1, settings))
    for pair in (found, found[::-1]):
        metrics = by_metric(compare(pair))
        assert "energy_score" in metrics
        assert "energy_distance" not in metrics


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_rows": 100}, r"rows of the test split differ .*: 100\), .*evaluate\.max_rows, or --limit, at most 100"),
        ({"gallery_size": 50}, r"gallery of the test split differ .*evaluate\.gallery_size at most 50"),
        ({"distance_rows": 60}, r"distance_rows of the test split differ .*evaluate\.distance_rows at most 60"),
        ({"splits": ("validation",)}, "no split in common; set evaluate.splits alike"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    changes: dict[str, Any], named: str, runs: tuple[str, str], embeddings: Path, tmp_path: Path
) -> None:
    other = evaluated(tmp_path / "other", embeddings, 0.1, SETTINGS.model_copy(update=changes))
    with pytest.raises(InputError, match=named):
        compare([runs[0], other])


def test_an_evaluation_that_was_changed_is_refused(runs: tuple[str, str], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "cut")
    path = tmp_path / "cut" / rows_name("test")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"rows_test\.parquet differs from what was written"):
        compare([runs[0], str(tmp_path / "cut")])


def test_one_evaluation_is_too_few(runs: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="at least two"):
        compare(runs[:1])


def test_the_command(runs: tuple[str, str]) -> None:
    shown = CliRunner().invoke(app, ["compare", *runs])
    assert shown.exit_code == 0
    assert "energy score" in shown.stdout
    assert " *" in shown.stdout
    refused = CliRunner().invoke(app, ["compare", runs[0], "nowhere"])
    assert refused.exit_code == 1
    assert "nowhere holds no result of `priorkit evaluate`" in refused.stderr


def test_a_command_that_evaluates_what_is_broken_fails(embeddings: Path, tmp_path: Path) -> None:
    rows = EmbeddingDataset(str(embeddings), READ).count
    np.save(tmp_path / "same.npy", np.ones((rows, 16), np.float32))
    folders = ["--embeddings", str(embeddings), "--evaluation", str(tmp_path / "evaluation")]
    options = ["--set", "read.test_fraction=0.4", "--set", "evaluate.threads=1"]
    shown = CliRunner().invoke(app, ["evaluate", str(tmp_path / "same.npy"), *folders, *options])
    assert shown.exit_code == 1
    assert "are the same for every caption" in shown.stderr
    with pytest.raises(InputError, match="'given predictions' are broken: the same for every caption"):
        compare([str(tmp_path / "evaluation")] * 2)
