"""The prior as a predictor, given predictions, and noise that depends on the row and the seed alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.evaluate.predictors import (
    LOSS,
    PRIOR,
    RANDOM,
    RESIDUAL,
    GivenPredictions,
    PriorPredictor,
    RowNoise,
    as_units,
    read_predictions,
    to_unit_norm,
)
from priorkit.prior.sampling.settings import SampleSettings

from ..embeddings import DIM, write_embeddings

D, K = 6, 3
IDS = np.arange(100, 109, dtype=np.uint64)


def unit(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def test_given_predictions_are_those_of_their_rows() -> None:
    one = np.random.default_rng(0).standard_normal((20, D)).astype(np.float32)
    chosen = SimpleNamespace(rows=np.array([7, 3]))
    np.testing.assert_allclose(GivenPredictions(one)(chosen, IDS[:2])[:, 0], unit(one[[7, 3]]), atol=1e-6)  # type: ignore[arg-type]
    many = np.random.default_rng(1).standard_normal((20, K, D))
    np.testing.assert_allclose(GivenPredictions(many)(chosen, IDS[:2]), unit(many[[7, 3]]))  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1e-200, 1e300])
def test_given_predictions_may_be_of_any_norm(scale: float) -> None:
    made = np.random.default_rng(0).standard_normal((20, D))
    chosen: Any = SimpleNamespace(rows=np.arange(20))
    np.testing.assert_allclose(GivenPredictions(scale * made)(chosen, IDS)[:, 0], unit(made))


def test_predictions_without_a_direction_are_not_finite() -> None:
    found = to_unit_norm(np.array([[3.0, -4.0], [0, 0], [np.nan, 1], [np.inf, 1]]))
    np.testing.assert_allclose(found[0], [0.6, -0.8])
    assert not np.isfinite(found[1:]).all(axis=-1).any()


def test_stored_embeddings_become_float64_of_norm_1() -> None:
    found = as_units(np.array([[3, 4], [-2, 0]], np.float16))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [[0.6, 0.8], [-1, 0]])


def test_noise_depends_on_the_row_the_seed_and_the_purpose() -> None:
    def first(seed: int = 0, purpose: int = 0, ids: np.ndarray = IDS, draws: int = 2) -> np.ndarray:
        stream = RowNoise(seed, purpose, ids, (draws, D))
        return np.stack([stream.draw(), stream.draw()])

    found = first()
    assert found.shape == (2, 9, 2, D)
    assert np.array_equal(first(ids=IDS[::-1]), found[:, ::-1])
    for other in (first(seed=1), first(purpose=1), first(ids=IDS + np.uint64(9))):
        assert not np.isin(other, found).any()
    assert abs(found.mean()) < 0.2
    assert abs(found.std() - 1) < 0.2
    assert first(seed=2**63 - 1).shape == found.shape


def test_iterated_noise_is_that_of_successive_draws() -> None:
    stream = RowNoise(0, PRIOR, IDS, (D,))
    expected = np.stack([stream.draw(), stream.draw(), stream.draw()])
    assert np.array_equal(np.stack(list(itertools.islice(RowNoise(0, PRIOR, IDS, (D,)), 3))), expected)


def test_random_integers_are_below_their_bound_and_reach_all_below() -> None:
    chosen = RowNoise(0, RANDOM, IDS, (50,)).choose(3)
    assert chosen.shape == (9, 50)
    assert set(chosen.ravel().tolist()) == {0, 1, 2}


def test_purposes_of_noise_differ() -> None:
    assert len({PRIOR, RESIDUAL, RANDOM, LOSS}) == 4


def rows_of(text: np.ndarray, chosen: slice = slice(None)) -> Any:
    return SimpleNamespace(rows=np.arange(len(text))[chosen], text_embed=text[chosen], token_states=None)


@pytest.fixture
def text() -> np.ndarray:
    return unit(np.random.default_rng(0).standard_normal((9, 8))).astype(np.float32)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_draws_of_a_prior_depend_on_the_row_and_the_seed(sampler: Any, small_prior: Any, text: np.ndarray) -> None:
    make: Callable[[int], PriorPredictor] = lambda seed: PriorPredictor(  # noqa: E731
        small_prior, SampleSettings(steps=4, sampler=sampler), 3, seed
    )
    found = make(0)(rows_of(text), IDS)
    assert found.shape == (9, 3, 8)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1)
    np.testing.assert_allclose(make(0)(rows_of(text, slice(4, 9)), IDS[4:]), found[4:], atol=1e-6)
    assert not np.allclose(make(1)(rows_of(text), IDS), found)
    assert not np.allclose(make(0)(rows_of(text), IDS + np.uint64(1)), found)


def test_draws_of_a_prior_are_those_of_its_sampler_with_the_noise_of_the_rows(
    small_prior: Any, text: np.ndarray
) -> None:
    """The rows, the draws of a row, and all sampling settings reach the sampler in their places."""
    sample = SampleSettings(steps=3, sampler="ddpm")
    found = PriorPredictor(small_prior, sample, K, 5)(rows_of(text), IDS)
    noise = RowNoise(5, PRIOR, IDS, (K, 8))
    steps = [torch.from_numpy(noise.draw().reshape(-1, 8)) for _ in range(5)]
    expected = small_prior.draw(torch.from_numpy(text), None, K, sample, iter(steps))
    np.testing.assert_allclose(found, unit(expected.numpy().astype(np.float64)), atol=1e-6)


def test_token_states_reach_the_prior(make_prior: Any, text: np.ndarray) -> None:
    prior = make_prior(4)
    states = np.random.default_rng(1).standard_normal((9, 4, 6)).astype(np.float32)
    batch: Any = SimpleNamespace(rows=np.arange(9), text_embed=text, token_states=states)
    predictor = PriorPredictor(prior, SampleSettings(steps=2), 2, 0)
    found = predictor(batch, IDS)
    batch.token_states = states[::-1].copy()
    changed = np.abs(predictor(batch, IDS) - found).max(axis=(1, 2))
    assert (changed[[0, 1, 2, 3, 5, 6, 7, 8]] > 1e-3).all()
    assert changed[4] < 1e-6  # the middle row keeps its states


@pytest.fixture
def dataset(tmp_path: Path) -> EmbeddingDataset:
    return EmbeddingDataset(str(write_embeddings(tmp_path / "embeddings", rows=10)))


@pytest.mark.parametrize("shape", [(10, DIM), (10, 1, DIM), (10, 7, DIM)])
def test_predictions_of_every_row_are_read(shape: tuple[int, ...], dataset: EmbeddingDataset, tmp_path: Path) -> None:
    made = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.save(tmp_path / "a.npy", made)
    assert np.array_equal(read_predictions(str(tmp_path / "a.npy"), dataset), made)


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (np.ones((9, DIM)), r"has shape \[9, 4\], needed is \[10, 4\] or \[10, K, 4\]"),
        (np.ones((10, DIM + 1)), "has shape"),
        (np.ones((10, 2, DIM + 1)), "has shape"),
        (np.ones((10, 0, DIM)), "has shape"),
        (np.ones(10), "has shape"),
        (np.ones((10, 1, 1, DIM)), "has shape"),
        (np.ones((10, DIM), np.int64), "holds int64; predictions are read as float16"),
        (np.full((10, DIM), None, object), "cannot be read as an array of predictions"),
    ],
)
def test_predictions_that_do_not_fit_the_rows_are_refused(
    made: np.ndarray, named: str, dataset: EmbeddingDataset, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", made)
    with pytest.raises(InputError, match=named):
        read_predictions(str(tmp_path / "a.npy"), dataset)


def test_missing_and_remote_predictions_are_named(dataset: EmbeddingDataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"b\.npy: cannot be read as an array"):
        read_predictions(str(tmp_path / "b.npy"), dataset)
    with pytest.raises(InputError, match="is not on this machine"):
        read_predictions("memory://a.npy", dataset)
