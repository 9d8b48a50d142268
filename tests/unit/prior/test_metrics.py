"""Metrics against closed forms and brute force, and how often their intervals hold the truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from priorkit.prior import metrics
from priorkit.prior.metrics import Estimate


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def unit(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def pairs(seed: int, rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and predictions of them, `[N, D]` each: alike row for row, and of another distribution."""
    draw = random(seed)
    real = draw.standard_normal((rows, size))
    return unit(0.6 * real + draw.standard_normal((rows, size)) + 0.3), unit(real)


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


def with_moments(seed: int, rows: int, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """A sample `[N, D]` that has just these moments."""
    values = random(seed).standard_normal((rows, len(mean)))
    values -= values.mean(axis=0)
    values = values @ np.linalg.inv(np.linalg.cholesky(np.cov(values.T))).T
    return np.asarray(mean + values @ np.linalg.cholesky(covariance).T)


def test_frechet_distance_of_gaussians_is_the_analytic_one() -> None:
    """Of covariances that commute, |m - m'|^2 plus the squared differences of the roots of their eigenvalues."""
    basis = np.linalg.qr(random(0).standard_normal((6, 6)))[0]
    first, second = np.array([0.1, 0.5, 1, 2, 3, 4]), np.array([0.2, 0.4, 1, 3, 1, 5])
    mean = random(1).standard_normal(6)
    found = with_moments(2, 100, mean, basis * first @ basis.T)
    real = with_moments(3, 100, 3 * mean + 100, basis * second @ basis.T)
    expected = np.square(2 * mean + 100).sum() + np.square(np.sqrt(first) - np.sqrt(second)).sum()
    estimate = metrics.set_distances(found, real)["frechet_distance"]
    assert estimate.value == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_where_covariances_do_not_commute() -> None:
    """Against the root by another way: eigenvalues of the product of the covariances."""
    found, real = pairs(0, 80, 5)
    a, b = np.cov(found.T), np.cov(real.T)
    root = np.sqrt(np.linalg.eigvals(a @ b).real).sum()
    expected = np.square(found.mean(0) - real.mean(0)).sum() + np.trace(a) + np.trace(b) - 2 * root
    assert metrics.set_distances(found, real)["frechet_distance"].value == pytest.approx(expected, abs=1e-9)


def brute_force(found: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Energy distance and MMD by their sums over pairs of different rows."""
    rows = range(len(found))
    scale = np.median([np.linalg.norm(real[i] - real[j]) for i, j in itertools.combinations(rows, 2)])

    def mean(kernel: str, a: np.ndarray, b: np.ndarray) -> float:
        distances = np.array([np.linalg.norm(a[i] - b[j]) for i, j in itertools.permutations(rows, 2)])
        values = -distances if kernel == "energy_distance" else np.exp(-(distances**2) / (2 * scale**2))
        return float(values.mean())

    return {
        kernel: mean(kernel, found, found) + mean(kernel, real, real) - 2 * mean(kernel, found, real)
        for kernel in ("energy_distance", "mmd")
    }


def test_distances_are_their_sums_over_pairs() -> None:
    found, real = pairs(0, 47, 4)
    expected = brute_force(found, real)
    estimates = metrics.set_distances(found, real)
    for name, value in expected.items():
        assert estimates[name].value == pytest.approx(value, abs=1e-12)


def test_intervals_are_of_values_without_each_group() -> None:
    found, real = pairs(0, 60, 4)
    estimates = metrics.set_distances(found, real)
    scores = []
    for group in range(metrics.GROUPS):
        kept = np.arange(60) % metrics.GROUPS != group
        scores.append(brute_force(found[kept], real[kept])["energy_distance"])
    error = np.sqrt(np.var(scores) * (metrics.GROUPS - 1))
    estimate = estimates["energy_distance"]
    assert (estimate.high - estimate.low) / 2 == pytest.approx(2.0930 * error, rel=1e-9)
    assert (estimate.high + estimate.low) / 2 == pytest.approx(estimate.value)


def test_the_same_set_is_at_no_distance() -> None:
    real = pairs(0, 200, 4)[1]
    assert metrics.set_distances(real, real)["frechet_distance"].value == pytest.approx(0, abs=1e-6)
    for name in ("energy_distance", "mmd"):
        estimate = metrics.set_distances(random(5).permutation(real), real)[name]
        assert estimate.low < 0 < estimate.high + 0.05


def coverage(estimates: list[Estimate], truth: float) -> int:
    return sum(estimate.low <= truth <= estimate.high for estimate in estimates)


def test_row_mean_intervals_hold_the_truth() -> None:
    simulations = [
        metrics.mean_intervals({"x": random(seed).exponential(size=200)}, 300, 1000 + seed)["x"] for seed in range(100)
    ]
    assert 90 <= coverage(simulations, 1.0) <= 99


def test_row_mean_intervals_are_of_the_whole_row() -> None:
    values = random(0).standard_normal(300)
    both = metrics.mean_intervals({"a": values, "b": 3 - 2 * values}, 200, 0)
    assert both["b"].value == pytest.approx(3 - 2 * both["a"].value)
    assert both["b"].low == pytest.approx(3 - 2 * both["a"].high)


def test_intervals_of_distances_hold_the_truth() -> None:
    """The truth is the mean over many sets of this size: Frechet distance is quoted for its size."""
    estimates = [metrics.set_distances(*pairs(seed, 200, 4)) for seed in range(200)]
    for name in ("frechet_distance", "energy_distance", "mmd"):
        truth = float(np.mean([estimate[name].value for estimate in estimates]))
        assert 90 <= coverage([estimate[name] for estimate in estimates[:100]], truth) <= 99, name
