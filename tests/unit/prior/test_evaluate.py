"""The metrics against brute force, closed forms and oracles; no files."""

from __future__ import annotations

import math
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from priorkit.prior.config import EvaluateSettings, SampleSettings
from priorkit.prior.evaluate import BLOCK_ROWS, _block_noise, _recalls, energy_score, interval, prior_draws


def unit(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_energy_score_is_brute_force_over_all_pairs(count: int) -> None:
    random = np.random.default_rng(0)
    draws, truth = random.standard_normal((20, count, 5)), random.standard_normal((20, 5))
    expected = []
    for row in range(20):
        error = math.fsum(math.dist(draw, truth[row]) for draw in draws[row]) / count
        pairs = [math.dist(draws[row, i], draws[row, j]) for i in range(count) for j in range(count) if i != j]
        expected.append(error - (math.fsum(pairs) / len(pairs) / 2 if pairs else 0))
    found = energy_score(draws, truth)
    assert found.shape == (20,)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


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
    draws = np.random.default_rng(0).normal(mean, deviation, (rows, count, 1))
    found = energy_score(draws, np.full((rows, 1), y))
    assert found.mean() == pytest.approx(crps(mean, deviation, y), abs=5 * found.std() / math.sqrt(rows))


def test_a_point_prediction_is_its_distance() -> None:
    draws, truth = np.array([[[3.0, 4.0]], [[1.0, 1.0]]]), np.array([[0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(energy_score(draws, truth), [5.0, 0.0])
    # said eight times, it is the same prediction
    np.testing.assert_allclose(energy_score(draws.repeat(8, axis=1), truth), [5.0, 0.0])


def test_the_true_conditional_has_the_best_energy_score() -> None:
    """Better than its mean, than a blurred or too narrow version, and than the right marginal blind to the caption."""
    random = np.random.default_rng(0)
    rows, count, dim, spread = 4000, 8, 6, 0.7
    text = random.standard_normal((rows, dim))

    def images(text: np.ndarray, spread: float, count: int) -> np.ndarray:
        return text[:, None] + spread * random.standard_normal((len(text), count, dim))

    truth = images(text, spread, 1)[:, 0]
    score = {
        "oracle": energy_score(images(text, spread, count), truth),
        "mean": energy_score(text[:, None], truth),
        "narrow": energy_score(images(text, spread * 0.5, count), truth),
        "wide": energy_score(images(text, spread * 1.5, count), truth),
        "blind": energy_score(images(text[random.permutation(rows)], spread, count), truth),
    }
    for name, values in score.items():
        if name != "oracle":
            difference = values - score["oracle"]
            assert difference.mean() > 5 * difference.std() / math.sqrt(rows), name


@pytest.mark.parametrize("count", [1, 4])
def test_recall_is_brute_force(count: int) -> None:
    random = np.random.default_rng(0)
    gallery = unit(random.standard_normal((40, 6)))
    truth = gallery[:25]
    draws = unit(truth[:, None] + 0.6 * random.standard_normal((25, count, 6)))
    found = _recalls(draws, truth, gallery)
    assert sorted(found) == ["recall_at_1", "recall_at_10", "recall_at_5"]
    for top in (1, 5, 10):
        expected = np.zeros(25)
        for row in range(25):
            for draw in draws[row]:
                order = np.argsort(-gallery @ draw)
                expected[row] += (row in order[:top]) / count
        np.testing.assert_allclose(found[f"recall_at_{top}"], expected)
        assert 0.1 < expected.mean() < 1


def test_copies_of_the_true_image_do_not_count_against_it() -> None:
    random = np.random.default_rng(0)
    truth = unit(random.standard_normal((3, 6)))
    gallery = np.concatenate([truth] * 20).astype(np.float32)
    assert (_recalls(truth[:, None], truth.astype(np.float32), gallery)["recall_at_1"] == 1).all()


def test_recall_of_a_perfect_and_of_the_worst_prediction() -> None:
    truth = unit(np.random.default_rng(0).standard_normal((50, 6)))
    assert (_recalls(truth[:, None], truth, truth)["recall_at_1"] == 1).all()
    assert (_recalls(-truth[:, None], truth, truth)["recall_at_10"] == 0).all()


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    settings = EvaluateSettings(bootstrap_samples=300)
    covered = 0
    for dataset in range(100):
        values = np.random.default_rng([9, dataset]).exponential(2.0, 120)
        found = interval(values, settings)
        assert found["low"] < found["mean"] < found["high"]
        assert found["mean"] == pytest.approx(values.mean())
        covered += found["low"] <= 2.0 <= found["high"]
    assert 90 <= covered <= 99


def test_the_interval_has_the_width_of_the_standard_error() -> None:
    values = np.random.default_rng(0).standard_normal(400)
    found = interval(values, EvaluateSettings(bootstrap_samples=2000))
    width = 2 * 1.96 * values.std() / math.sqrt(400)
    assert found["high"] - found["low"] == pytest.approx(width, rel=0.1)


def test_the_interval_of_a_constant_is_a_point_and_its_seed_is_the_settings() -> None:
    settings = EvaluateSettings(bootstrap_samples=100)
    assert interval(np.full(50, 0.25), settings) == {"mean": 0.25, "low": 0.25, "high": 0.25}
    values = np.random.default_rng(0).standard_normal(50)
    np.random.seed(1)
    first = interval(values, settings)
    np.random.seed(2)
    assert interval(values, settings) == first
    assert interval(values, settings.model_copy(update={"seed": 1})) != first


@pytest.mark.parametrize("rows", [1, 5, BLOCK_ROWS])
def test_the_noise_of_a_row_does_not_depend_on_how_many_follow(rows: int) -> None:
    """Not even the noise of later steps, which ddpm takes."""
    few, many = (list(islice(_block_noise(3, 2, count, 4, 6), 3)) for count in (rows, BLOCK_ROWS))
    for a, b in zip(few, many, strict=True):
        assert a.shape == (rows * 4, 6)
        assert torch.equal(a, b[: rows * 4])
    assert not torch.equal(many[0], many[1])


def test_blocks_and_seeds_have_noise_of_their_own() -> None:
    found = [next(_block_noise(seed, block, 5, 4, 6)) for seed, block in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({value.numpy().tobytes() for value in found}) == 4


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_draws_of_a_row_do_not_change_when_rows_are_appended(sampler: Any, small_prior: Any) -> None:
    settings = EvaluateSettings(draws=3, sample=SampleSettings(steps=4, sampler=sampler))
    draw = prior_draws(small_prior, settings)
    text = unit(np.random.default_rng(0).standard_normal((9, 8))).astype(np.float32)

    def batch(rows: int) -> Any:
        return SimpleNamespace(rows=np.arange(rows), text_embed=text[:rows], token_states=None)

    few, many = draw(batch(4), 1), draw(batch(9), 1)
    assert many.shape == (9, 3, 8)
    np.testing.assert_allclose(few, many[:4], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(many, axis=-1), 1, atol=1e-6)
    assert np.array_equal(draw(batch(9), 1), many)
    assert not np.allclose(draw(batch(9), 2), many)
