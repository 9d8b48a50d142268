"""Distances between distributions against closed forms and brute force, and the coverage of their intervals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from priorkit.prior.evaluate.distances import LEAST_GROUPS, EmbeddingSet, set_distances
from priorkit.prior.evaluate.metrics import Interval


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def unit(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def pairs(seed: int, rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions and embeddings, `[N, D]` each: similar row by row, with different distributions."""
    draw = random(seed)
    real = draw.standard_normal((rows, size))
    return unit(0.6 * real + draw.standard_normal((rows, size)) + 0.3), unit(real)


def distances(found: np.ndarray, real: np.ndarray, groups: np.ndarray | None = None) -> dict[str, Interval]:
    """Return the distances between `[N, D]` each; row i of both has the same image."""
    groups = np.arange(len(found)) if groups is None else groups
    return set_distances(EmbeddingSet(found, groups), EmbeddingSet(real, groups))


def with_moments(seed: int, rows: int, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return rows `[N, D]` with exactly these moments."""
    values = random(seed).standard_normal((rows, len(mean)))
    values -= values.mean(axis=0)
    values = values @ np.linalg.inv(np.linalg.cholesky(np.cov(values.T))).T
    return np.asarray(mean + values @ np.linalg.cholesky(covariance).T)


def test_frechet_distance_of_gaussians_is_the_analytic_one() -> None:
    """For commuting covariances: |m - m'|^2 plus the squared differences of the roots of their eigenvalues."""
    basis = np.linalg.qr(random(0).standard_normal((6, 6)))[0]
    first, second = np.array([0.1, 0.5, 1, 2, 3, 4]), np.array([0.2, 0.4, 1, 3, 1, 5])
    mean = random(1).standard_normal(6)
    found = with_moments(2, 100, mean, basis * first @ basis.T)
    real = with_moments(3, 100, 3 * mean + 100, basis * second @ basis.T)
    expected = np.square(2 * mean + 100).sum() + np.square(np.sqrt(first) - np.sqrt(second)).sum()
    estimate = distances(found, real)["frechet_distance"]
    assert estimate.value == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_where_covariances_do_not_commute() -> None:
    """The trace of the root is computed from the eigenvalues of the product of the covariances."""
    found, real = pairs(0, 80, 5)
    a, b = np.cov(found.T), np.cov(real.T)
    root = np.sqrt(np.linalg.eigvals(a @ b).real).sum()
    expected = np.square(found.mean(0) - real.mean(0)).sum() + np.trace(a) + np.trace(b) - 2 * root
    assert distances(found, real)["frechet_distance"].value == pytest.approx(expected, abs=1e-9)


def brute_force(found: np.ndarray, real: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Compute energy distance and MMD as sums over pairs of rows of different groups."""
    scale = np.median(
        [
            np.linalg.norm(real[i] - real[j])
            for i, j in itertools.combinations(range(len(real)), 2)
            if groups[i] != groups[j]
        ]
    )

    def mean(kernel: str, a: np.ndarray, b: np.ndarray) -> float:
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if groups[i] != groups[j]]
        distances = np.array([np.linalg.norm(a[i] - b[j]) for i, j in pairs])
        values = -distances if kernel == "energy_distance" else np.exp(-(distances**2) / (2 * scale**2))
        return float(values.mean())

    return {
        kernel: mean(kernel, found, found) + mean(kernel, real, real) - 2 * mean(kernel, found, real)
        for kernel in ("energy_distance", "mmd")
    }


@pytest.mark.parametrize("captions", [1, 3])
def test_distances_are_their_sums_over_pairs(captions: int) -> None:
    groups = np.arange(61 * captions) // captions
    found, real = pairs(0, len(groups), 4)
    expected = brute_force(found, real, groups)
    estimates = distances(found, real, groups)
    for name, value in expected.items():
        assert estimates[name].value == pytest.approx(value, abs=1e-12)


def test_sets_of_different_sizes_are_compared() -> None:
    found, real = pairs(0, 90, 4)
    estimate = set_distances(EmbeddingSet(found[:70], np.arange(1000, 1070)), EmbeddingSet(real, np.arange(90)))
    across = np.linalg.norm(found[:70, None] - real, axis=-1).mean()
    within = [np.linalg.norm(a[:, None] - a, axis=-1).sum() / len(a) / (len(a) - 1) for a in (found[:70], real)]
    assert estimate["energy_distance"].value == pytest.approx(2 * across - sum(within), abs=1e-12)


def test_intervals_come_from_balanced_halves() -> None:
    """15 pairs of halves of 16 parts; any two parts are in the same half in about half of the pairs."""
    found, real = pairs(0, 96, 4)
    estimate = distances(found, real)["energy_distance"]
    differences = []
    for number in range(1, 16):
        half = np.array([bin(number & (row % 16)).count("1") % 2 == 0 for row in range(96)])
        assert half.sum() == 48
        one, other = (brute_force(found[h], real[h], np.flatnonzero(h))["energy_distance"] for h in (half, ~half))
        differences.append(one - other)
    reach = 1.96 * np.sqrt(np.mean(np.square(differences)) / 4)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(reach, rel=1e-9)
    assert (estimate.high + estimate.low) / 2 == pytest.approx(estimate.value)


def test_the_same_set_is_at_no_distance() -> None:
    real = pairs(0, 200, 4)[1]
    assert distances(real, real)["frechet_distance"].value == pytest.approx(0, abs=1e-6)
    for name in ("energy_distance", "mmd"):
        estimate = distances(random(5).permutation(real), real)[name]
        assert estimate.low < 0 < estimate.high + 0.05


def test_too_few_images_have_no_distances() -> None:
    found, real = pairs(0, 5 * LEAST_GROUPS, 4)
    groups = np.arange(len(found)) // 5
    assert distances(found, real, groups)
    assert distances(found[5:], real[5:], groups[5:]) == {}


@pytest.mark.parametrize("shared", [0, LEAST_GROUPS])
def test_few_images_are_dealt_evenly_for_any_ids(shared: int) -> None:
    """No part of either set is empty."""
    found, real = pairs(0, 2 * LEAST_GROUPS, 3)
    for seed in range(20):
        names = random(seed).permutation(4 * LEAST_GROUPS)
        others = names[2 * LEAST_GROUPS - shared :][:LEAST_GROUPS]
        estimates = set_distances(
            EmbeddingSet(found, names[: 2 * LEAST_GROUPS]), EmbeddingSet(real[:LEAST_GROUPS], others)
        )
        assert set(estimates) == {"frechet_distance", "energy_distance", "mmd"}


def test_singular_covariances_have_no_frechet_distance() -> None:
    found, real = pairs(0, 100, 50)
    assert set(distances(found, real)) == {"frechet_distance", "energy_distance", "mmd"}
    assert set(distances(found[1:], real[1:])) == {"energy_distance", "mmd"}


def test_most_real_images_may_be_copies() -> None:
    found, real = pairs(0, 100, 4)
    real[:80] = real[0]
    estimates = distances(found, real)
    assert all(np.isfinite([one.value, one.low, one.high]).all() for one in estimates.values())
    real[:] = real[0]
    assert np.isfinite(distances(found, real)["mmd"].value)


def simulated(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return predicted and real embeddings, and their groups."""
    draw = random(seed)
    rows, size, captions = {"many dimensions": (96, 32, 1), "captions of one image": (300, 8, 5)}.get(kind, (200, 4, 1))
    groups = np.arange(rows) // captions
    scales = np.linspace(1, 0.2, size)
    base = (draw.standard_normal((rows, size)) * scales)[groups]
    other = draw.standard_normal((rows, size)) * scales
    found = other if kind == "alike" else 0.6 * base + 0.8 * other + 0.1
    return unit(found), unit(base), groups


@pytest.mark.parametrize(
    "kind",
    [
        "alike",
        "captions of one image",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("unlike", "many dimensions")),
    ],
)
def test_intervals_hold_the_truth(kind: str) -> None:
    """The truth is the mean over many sets of this size: Frechet distance is quoted for its size."""
    estimates = [distances(*simulated(kind, seed)) for seed in range(100)]
    for name in ("frechet_distance", "energy_distance", "mmd"):
        truth = float(np.mean([estimate[name].value for estimate in estimates]))
        held = sum(estimate[name].low <= truth <= estimate[name].high for estimate in estimates)
        assert 90 <= held <= 99, name
