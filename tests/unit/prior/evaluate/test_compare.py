"""Differences of evaluations: paired by row, independent otherwise, and what cannot be compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.evaluate.compare import _independent_difference, compare, to_json
from priorkit.prior.evaluate.folder import read_metrics, read_rows
from priorkit.prior.evaluate.metrics import Interval, mean_intervals
from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.evaluate.stage import evaluate

from ..embeddings import DIM, write_embeddings

READ = ReadSettings(validation_fraction=0, test_fraction=0.6)
SETTINGS = EvaluateSettings(
    threads=1, device="cpu", draws=2, bootstrap_samples=100, baselines=("text embedding",), max_rows=50
)
Evaluate = Callable[..., str]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for embeddings and evaluations; evaluations are only read."""
    folder = tmp_path_factory.mktemp("shared")
    write_embeddings(folder / "embeddings")
    write_embeddings(folder / "wide", dim=DIM + 1)
    return folder


@pytest.fixture(scope="module")
def run(shared: Path) -> Evaluate:
    """Evaluate random predictions of a seed, or NaN for a negative seed, with changed settings."""

    def run(name: str, seed: int = 0, *, draws: int = 1, embeddings: str = "embeddings", **changes: Any) -> str:
        dim = DIM + (embeddings == "wide")
        made = np.random.default_rng(abs(seed)).standard_normal((120, draws, dim)).astype(np.float32)
        if seed < 0:
            made[:] = np.nan
        np.save(shared / f"{name}.npy", made)
        settings = SETTINGS.model_copy(update=changes)
        evaluate(str(shared / f"{name}.npy"), str(shared / embeddings), str(shared / name), settings, READ)
        return str(shared / name)

    return run


@pytest.fixture(scope="module")
def pair(run: Evaluate) -> tuple[str, str]:
    return run("a", 1), run("b", 2)


def test_differences_are_over_the_same_rows(pair: tuple[str, str]) -> None:
    found = {one.metric: one for one in compare(pair)}
    tables = [read_rows(one, "test").sort_by("row_id") for one in pair]
    groups = tables[0].column("group_id").to_numpy()
    columns = {
        metric: np.subtract(*(table.column(f"given predictions/{metric}").to_numpy() for table in tables[::-1]))
        for metric in read_metrics(pair[0])["splits"]["test"]["predictors"][0]["metrics"]
    }
    expected = mean_intervals(columns, groups, 1000, 0, are_differences=True)
    for metric, interval in expected.items():
        comparison = found[metric]
        assert comparison.paired == [True]
        assert comparison.differences == [interval]
        assert interval.value == pytest.approx(comparison.values[1].value - comparison.values[0].value)
    assert found["energy_score"].differences[0].value != 0


def test_a_comparison_of_an_evaluation_with_itself_is_zero(pair: tuple[str, str]) -> None:
    for one in compare([pair[0], pair[0]]):
        assert one.differences[0].value == 0


def test_another_predictor_is_compared_by_its_name(pair: tuple[str, str]) -> None:
    found = compare(pair, "text embedding")
    assert all(one.differences[0].value == 0 for one in found)
    metrics = read_metrics(pair[0])["splits"]["test"]["predictors"][1]["metrics"]
    assert found[0].values[0] == Interval(**metrics["energy_score"])
    with pytest.raises(InputError, match=r"has no predictor 'ridge'; it has given predictions, text embedding"):
        compare(pair, "ridge")


def test_every_later_evaluation_is_compared_with_the_first(pair: tuple[str, str]) -> None:
    found = next(one for one in compare([pair[0], pair[1], pair[0]]) if one.metric == "energy_score")
    assert len(found.values) == 3
    assert found.differences[1].value == 0
    assert found.differences[0].value == pytest.approx(found.values[1].value - found.values[0].value)


def test_other_rows_are_compared_as_independent(pair: tuple[str, str], shared: Path) -> None:
    settings = SETTINGS.model_copy(update={"seed": 7})  # another order of the rows, of which the first are taken
    evaluate(str(shared / "a.npy"), str(shared / "embeddings"), str(shared / "other"), settings, READ)
    found = next(one for one in compare([pair[0], str(shared / "other")]) if one.metric == "energy_score")
    assert found.paired == [False]
    assert found.differences == [_independent_difference(found.values[1], found.values[0])]


def test_half_widths_of_independent_values_add_in_squares() -> None:
    found = _independent_difference(Interval(5, 2, 9), Interval(1, 0, 5))
    assert (found.value, found.low, found.high) == pytest.approx((4, 4 - 5, 4 + np.hypot(4, 1)))


def test_distances_are_compared_as_independent(pair: tuple[str, str]) -> None:
    found = {one.metric: one for one in compare(pair)}
    stored = [read_metrics(one)["splits"]["test"]["predictors"][0]["distances"] for one in pair]
    assert set(stored[0]) == {"frechet_distance", "energy_distance", "mmd"}
    for name in stored[0]:
        values = [Interval(**one[name]) for one in stored]
        assert found[name].values == values
        assert found[name].differences == [_independent_difference(values[1], values[0])]
        assert found[name].paired == [False]


def test_small_evaluations_have_no_distances(run: Evaluate) -> None:
    small = run("small", 1, max_rows=40)
    assert {one.metric for one in compare([small, small])}.isdisjoint({"frechet_distance", "energy_distance", "mmd"})


def test_json_is_plain(pair: tuple[str, str]) -> None:
    found = compare(pair)
    first = to_json(found)[0]
    assert (first["split"], first["metric"], first["paired"]) == ("test", "energy_score", [True])
    assert first["values"][1] == {
        "value": found[0].values[1].value, "low": found[0].values[1].low, "high": found[0].values[1].high
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_rows": 30}, r"rows of the test split differ .* with evaluate\.max_rows, or --limit, at most 30"),
        ({"gallery_size": 20}, r"gallery of the test split differ .* with evaluate\.gallery_size at most 20"),
        ({"distance_rows": 48}, r"distance_rows of the test split differ .* with evaluate\.distance_rows at most 48"),
        ({"draws": 3}, r"draws a caption differ \(.*: 1, .*: 3\)"),
        ({"embeddings": "wide"}, r"their embeddings are of other sizes \(.*: 4, .*: 5\)"),
        ({"seed": -1}, "predictions of 'given predictions' are broken: not finite"),
    ],
    ids=["rows", "gallery", "distance rows", "draws", "size", "broken"],
)
def test_evaluations_that_differ_in_more_than_predictions_are_refused(
    change: dict[str, Any], named: str, pair: tuple[str, str], run: Evaluate, request: pytest.FixtureRequest
) -> None:
    other = run(request.node.callspec.id, **{"seed": 3, **change})
    with pytest.raises(InputError, match=named):
        compare([pair[0], other])


def test_one_evaluation_or_a_folder_of_something_else_is_refused(pair: tuple[str, str], shared: Path) -> None:
    with pytest.raises(InputError, match="compare needs at least two evaluations"):
        compare([pair[0]])
    with pytest.raises(InputError):
        compare([pair[0], str(shared / "embeddings")])
