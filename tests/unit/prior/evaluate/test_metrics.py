"""Metrics against closed forms and brute force, and the coverage of their intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from priorkit.prior.evaluate import metrics
from priorkit.prior.evaluate.metrics import Interval


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def unit(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def test_energy_score_is_its_definition() -> None:
    draws, truth = random(0).standard_normal((5, 4, 3)), random(1).standard_normal((5, 3))
    for row in range(5):
        error = np.mean([np.linalg.norm(draws[row, k] - truth[row]) for k in range(4)])
        spread = np.mean(
            [np.linalg.norm(draws[row, a] - draws[row, b]) for a, b in itertools.permutations(range(4), 2)]
        )
        assert metrics.energy_score(draws, truth)[row] == pytest.approx(error - spread / 2, rel=1e-12)
        assert metrics.diversity(draws)[row] == pytest.approx(spread, rel=1e-12)


def crps(mean: float, deviation: float, y: float) -> float:
    """The continuous ranked probability score of a normal forecast (Gneiting and Raftery 2007, eq. 21)."""
    z = (y - mean) / deviation
    density = math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    below = (1 + math.erf(z / math.sqrt(2))) / 2
    return deviation * (z * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi))


@pytest.mark.parametrize(("mean", "deviation", "y"), [(0.0, 1.0, 0.0), (1.0, 0.5, -0.3), (-2.0, 2.0, 1.0)])
@pytest.mark.parametrize("count", [2, 8])
def test_energy_score_in_one_dimension_is_the_closed_form(mean: float, deviation: float, y: float, count: int) -> None:
    """Unbiased for any number of draws, since pairs of a draw with itself do not count."""
    rows = 400_000 // count
    draws = random(0).normal(mean, deviation, (rows, count, 1))
    found = metrics.energy_score(draws, np.full((rows, 1), y))
    assert found.mean() == pytest.approx(crps(mean, deviation, y), abs=5 * found.std() / math.sqrt(rows))


def test_one_draw_is_a_point() -> None:
    draws, truth = random(0).standard_normal((5, 1, 3)), random(1).standard_normal((5, 3))
    assert metrics.diversity(draws) == pytest.approx(0)
    assert metrics.energy_score(draws, truth) == pytest.approx(np.linalg.norm(draws[:, 0] - truth, axis=-1))


def test_cosine_is_the_mean_of_the_draws() -> None:
    draws, others = unit(random(0).standard_normal((3, 4, 6))), unit(random(1).standard_normal((3, 6)))
    expected = [np.mean([draws[row, k] @ others[row] for k in range(4)]) for row in range(3)]
    assert metrics.cosine(draws, others) == pytest.approx(expected, rel=1e-12)


def test_rank_counts_nearer_rivals_of_a_number_that_is_the_same_for_all() -> None:
    gallery = unit(random(0).standard_normal((50, 8)))
    truth = np.concatenate([gallery[:10], unit(random(1).standard_normal((10, 8)))])
    place = np.array([*range(10), *[-1] * 10])
    predicted = unit(truth + 0.8 * random(2).standard_normal(truth.shape))
    found = metrics.rank(predicted, truth, gallery, place)
    for row in range(20):
        rivals = np.delete(gallery, place[row], axis=0)
        assert found[row] == sum(predicted[row] @ rival > predicted[row] @ truth[row] for rival in rivals)
    assert len(set(found.tolist())) > 3


def test_copies_of_the_true_image_are_no_rivals() -> None:
    truth = unit(random(0).standard_normal((1, 8)))
    gallery = np.repeat(truth, 5, axis=0)
    assert metrics.rank(unit(truth + 0.1), truth, gallery, np.array([2])) == 0


def coverage(estimates: list[Interval], truth: float) -> int:
    """Count the intervals that contain the truth."""
    return sum(estimate.low <= truth <= estimate.high for estimate in estimates)


def interval(values: np.ndarray, groups: np.ndarray | None = None, name: str = "x", **options: bool) -> Interval:
    groups = np.arange(len(values)) if groups is None else groups
    resamples = 2 if name in metrics.SHARES else 600  # the intervals of shares are not those of resamples
    return metrics.mean_intervals({name: values}, groups, resamples, 1, **options)[name]


def test_row_mean_intervals_hold_the_truth() -> None:
    simulations = [interval(random(seed).exponential(size=200)) for seed in range(100)]
    assert 90 <= coverage(simulations, 1.0) <= 99


@pytest.mark.parametrize("captions", [2, 20])
def test_intervals_hold_the_truth_where_rows_are_captions_of_one_image(captions: int) -> None:
    """Rows of an image are correlated, and the number of captions per image varies."""
    simulations = []
    for seed in range(100):
        draw = random(seed)
        groups = np.repeat(np.arange(100), draw.integers(1, 2 * captions, 100))
        simulations.append(interval(draw.standard_normal(100)[groups] + draw.standard_normal(len(groups)) / 2, groups))
    assert 90 <= coverage(simulations, 0.0) <= 99


def test_groups_are_resampled_whole() -> None:
    """Copies of all rows of a group do not narrow the interval, and group ids do not matter."""
    values, groups = random(0).standard_normal(60), np.repeat(np.arange(20), 3)
    once = interval(values, groups)
    copied = interval(np.tile(values, 4), np.tile(groups, 4))
    assert (copied.value, copied.low, copied.high) == pytest.approx((once.value, once.low, once.high))
    assert interval(values).high - interval(values).low < once.high - once.low + 1
    assert interval(values, groups + 7) == once


@pytest.mark.parametrize(
    ("share", "rows"),
    [(0.01, 300), (0.97, 150), (0.001, 1000), (0.5, 200), (0.999, 2000)],
)
def test_intervals_of_recalls_hold_the_truth_near_their_ends(share: float, rows: int) -> None:
    simulations = [
        interval((random(seed).random(rows) < share).astype(float), name="recall_at_1") for seed in range(200)
    ]
    assert coverage(simulations, share) >= 180
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in simulations)


def test_intervals_of_recalls_hold_the_truth_where_rows_are_captions_of_one_image() -> None:
    groups = np.repeat(np.arange(80), 5)
    simulations = [
        interval((random(seed).random(80) < 0.3)[groups].astype(float), groups, "recall_at_1") for seed in range(100)
    ]
    assert 90 <= coverage(simulations, 0.3) <= 99


def test_the_interval_of_a_share_is_agresti_and_coulls() -> None:
    """(successes + 2) / (n + 4) and the normal reach around it."""
    found = interval(np.repeat([1.0, 0.0], [12, 88]), name="recall_at_1")
    middle = 14 / 104
    reach = 1.96 * math.sqrt(middle * (1 - middle) / 104)
    assert (found.value, found.low, found.high) == pytest.approx((0.12, middle - reach, middle + reach), rel=1e-9)


@pytest.mark.parametrize(
    ("first", "second"),
    [(0.02, 0.01), (0.5, 0.6), (0.005, 0.005)],
)
def test_intervals_are_differences_of_recalls_hold_the_truth(first: float, second: float) -> None:
    """The two shares are over the same rows, as in two evaluations."""
    simulations = []
    for seed in range(200):
        hard = random(seed).random(300)  # for both
        difference = (hard < first).astype(float) - (hard < second)
        simulations.append(interval(difference, name="recall_at_1", are_differences=True))
    assert coverage(simulations, first - second) >= 180
    assert all(one.low <= one.value <= one.high for one in simulations)


def test_columns_are_resampled_together() -> None:
    values = random(0).standard_normal(300)
    both = metrics.mean_intervals({"a": values, "b": 3 - 2 * values}, np.arange(300), 200, 0)
    assert both["b"].value == pytest.approx(3 - 2 * both["a"].value)
    assert both["b"].low == pytest.approx(3 - 2 * both["a"].high)
