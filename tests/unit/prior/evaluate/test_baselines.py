"""Baselines against closed forms; draws depend on the row and the seed alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.evaluate import baselines
from priorkit.prior.evaluate.baselines import Bank, LinearGaussian, Ridge
from priorkit.prior.evaluate.settings import BASELINES

from ..embeddings import SPLITS, unit, write_embeddings

ROWS, D, K = 400, 6, 3


def make_bank(rows: int = ROWS, noise: float = 0.4) -> Bank:
    random = np.random.default_rng(0)
    text = random.standard_normal((rows, D))
    image = text @ random.standard_normal((D, D)) + 0.3 + noise * random.standard_normal((rows, D))
    return Bank(text.astype(np.float32), image.astype(np.float32))


BANK = make_bank()
IDS = np.arange(100, 109, dtype=np.uint64)


def batch(rows: int = 9) -> Any:
    text = unit(np.random.default_rng(5).standard_normal((9, D))).astype(np.float32)
    return SimpleNamespace(rows=np.arange(rows), text_embed=text[:rows], token_states=None)


@pytest.mark.parametrize("name", BASELINES)
def test_draws_are_units_that_follow_from_row_and_seed(name: str) -> None:
    made = baselines.fit_baselines(BANK, K, seed=3)[name]
    found = made(batch(), IDS)
    assert found.dtype == np.float64
    assert found.shape in ((9, K, D), (9, 1, D))
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1)
    assert np.array_equal(made(batch(4), IDS[:4]), found[:4])
    assert np.array_equal(baselines.fit_baselines(BANK, K, seed=3)[name](batch(), IDS), found)
    drawn = name in ("linear-Gaussian", "random training image")
    assert np.array_equal(baselines.fit_baselines(BANK, K, seed=4)[name](batch(), IDS), found) != drawn
    assert np.array_equal(made(batch(), IDS + np.uint64(1)), found) != drawn


def test_ridge_regression_is_least_squares_where_rows_are_exact() -> None:
    exact = make_bank(noise=0)
    regression = Ridge(exact)
    assert regression.penalty == min(baselines._PENALTIES)
    np.testing.assert_allclose(regression.predict(exact.text.astype(np.float64)), exact.image, atol=2e-3)


@pytest.mark.parametrize("rows", [8, 40, 400])
def test_ridge_regression_minimises_its_penalised_error(rows: int) -> None:
    bank = make_bank(rows, noise=3.0)
    regression = Ridge(bank)
    text, image = bank.text.astype(np.float64), bank.image.astype(np.float64)
    x, y = text - text.mean(axis=0), image - image.mean(axis=0)
    strength = regression.penalty * np.trace(x.T @ x) / D
    # the same problem as least squares with rows that pull the weights to 0
    augmented = np.concatenate([x, np.sqrt(strength) * np.eye(D)])
    weights = np.linalg.lstsq(augmented, np.concatenate([y, np.zeros((D, D))]), rcond=None)[0]
    new = np.random.default_rng(1).standard_normal((5, D))
    expected = image.mean(axis=0) + (new - text.mean(axis=0)) @ weights
    np.testing.assert_allclose(regression.predict(new), expected, rtol=1e-9)
    assert 1 <= regression.degrees_of_freedom <= D + 1


def test_more_noise_and_fewer_rows_choose_a_stronger_penalty() -> None:
    assert Ridge(make_bank(30, noise=20.0)).penalty > Ridge(make_bank(400, noise=0.1)).penalty


def test_linear_gaussian_has_the_mean_and_the_covariance_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "to_unit_norm", lambda values: values)
    bank = make_bank(4000, noise=0.5)
    regression = Ridge(bank)
    found = LinearGaussian(regression, bank, 4000, seed=0)(batch(2), IDS[:2])
    np.testing.assert_allclose(found.mean(axis=1), regression.predict(batch(2).text_embed), atol=0.05)
    for row in found:
        np.testing.assert_allclose(np.cov(row.T), 0.25 * np.eye(D), atol=0.03)


@pytest.mark.parametrize("rows", [8, 40, 400])
def test_relative_variance_is_the_posterior_variance_of_a_gaussian_process(rows: int) -> None:
    """The same model without weights: linear in the text with normal weights, and a constant of any size."""
    bank = make_bank(rows, noise=3.0)
    regression = Ridge(bank)
    text, new = bank.text.astype(np.float64), 2 * np.random.default_rng(1).standard_normal((5, D))
    centred = text - text.mean(axis=0)
    strength = regression.penalty * np.trace(centred.T @ centred) / D

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray((a - text.mean(axis=0)) @ (b - text.mean(axis=0)).T / strength + 1e6)

    across = kernel(text, new)
    left = kernel(new, new) - across.T @ np.linalg.solve(kernel(text, text) + np.eye(rows), across)
    np.testing.assert_allclose(regression.relative_variance(new), np.diag(left), rtol=1e-3)


def test_the_spread_of_linear_gaussian_draws_matches_their_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 20 rows the regression itself errs; over many problems, draws are as far from their mean as the truth."""
    monkeypatch.setattr(baselines, "to_unit_norm", lambda values: values)
    random = np.random.default_rng(0)
    claimed, wrong = [], []
    for problem in range(800):
        weights = random.standard_normal((D, D))
        text = random.standard_normal((29, D))
        image = text @ weights + 0.5 * random.standard_normal((29, D))
        bank = Bank(text[:20].astype(np.float32), image[:20].astype(np.float32))
        rows: Any = SimpleNamespace(text_embed=text[20:].astype(np.float32))
        regression = Ridge(bank)
        mean = regression.predict(text[20:])
        drawn = LinearGaussian(regression, bank, 8, seed=problem)(rows, IDS)
        claimed.append(np.square(drawn - mean[:, None]).sum(axis=-1).mean())
        wrong.append(np.square(image[20:] - mean).sum(axis=-1).mean())
    assert np.mean(wrong) > 1.3 * D * 0.25  # by much more than the noise of an image
    assert np.mean(claimed) == pytest.approx(np.mean(wrong), rel=0.04)


def test_nearest_neighbours_are_images_of_the_nearest_captions() -> None:
    found = baselines.fit_baselines(BANK, K, seed=0)["nearest neighbour"](batch(), IDS)
    order = np.argsort(-batch().text_embed @ BANK.text.T, axis=-1)[:, :K]
    np.testing.assert_allclose(found, unit(BANK.image[order].astype(np.float64)))


def test_random_training_images_are_training_images() -> None:
    found = baselines.fit_baselines(BANK, 50, seed=0)["random training image"](batch(), IDS)
    known = {row.tobytes() for row in unit(BANK.image.astype(np.float64)).round(6)}
    assert all(row.tobytes() in known for row in found.reshape(-1, D).round(6))
    assert len({row.tobytes() for row in found.reshape(-1, D)}) > 200


def test_mean_shift_adds_the_difference_of_the_means_of_images_and_texts() -> None:
    bank = Bank(np.array([[1, 0], [0, 1]], np.float32), np.array([[1, 2], [2, 3]], np.float32))
    rows: Any = SimpleNamespace(text_embed=np.array([[1, 0]], np.float32))
    found = baselines.MeanShift(bank)(rows, IDS[:1])
    np.testing.assert_allclose(found, [[unit(np.array([1 + 1.0, 0 + 2.0]))]])


def test_baselines_have_the_order_of_their_names() -> None:
    kinds = [type(fitted).__name__ for fitted in baselines.fit_baselines(BANK, K, seed=0).values()]
    assert kinds == ["function", "MeanShift", "Ridge", "LinearGaussian", "NearestNeighbours", "RandomImages"]
    assert list(baselines.fit_baselines(BANK, K, seed=0)) == list(BASELINES)


def test_a_bank_is_the_first_training_rows_by_content(tmp_path: Path) -> None:
    dataset = EmbeddingDataset(str(write_embeddings(tmp_path / "embeddings")), SPLITS)
    bank = Bank.read(dataset, 5, seed=3)
    expected = dataset.take(dataset.content_order("train", 3)[:5])
    np.testing.assert_array_equal(bank.text, expected.text_embed)
    np.testing.assert_array_equal(bank.image, expected.image_embed)
