"""What predicts image embeddings from captions: a prior, a baseline that it has to beat, or an array of predictions.

Every predictor gives K draws for each of B rows, of norm 1. Its randomness is a function of the seed and of what the
row holds, so that neither the order of rows nor who computes them changes a draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ...pipeline.contract.storage import Store
from ...pipeline.contract.vectors.rules import embed_dtypes_named, is_embed_dtype
from ...pipeline.errors import InputError
from ...pipeline.read.dataset import EmbeddingBatch, EmbeddingDataset
from ...pipeline.read.shuffle import hash_key
from ..model.prior import Prior
from ..sampling.settings import SampleSettings
from .settings import BASELINES

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of ridge regression, as shares of the mean variance of a text's coordinate."""
_HELD_OUT = 10
"""One in so many training rows chooses the penalty."""


class Predictor(Protocol):
    """Draws image embeddings for captions."""

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """B rows and their ids `[B]` -> `[B, K, D]` float64."""


PRIOR, RESIDUAL, RANDOM, LOSS = range(4)
"""Purposes of noise."""


class RowNoise:
    """Endless standard normal noise `[B * K, D]` float32, of which each row has a stream of its own.

    Args:
        purpose: tells streams of one seed apart.
        row_ids: `[B]` uint64.
    """

    def __init__(self, seed: int, purpose: int, row_ids: np.ndarray, shape: tuple[int, ...]) -> None:
        key = hash_key("noise", seed, purpose)
        keys = [np.array([key, row_id], np.uint64) for row_id in row_ids]
        self._streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        self._shape = shape

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            yield self.draw()

    def draw(self) -> np.ndarray:
        """`[B, *shape]` float32."""
        return np.stack([stream.standard_normal(self._shape, np.float32) for stream in self._streams])

    def choose(self, count: int) -> np.ndarray:
        """`[B, *shape]` whole numbers below `count`."""
        return np.stack([stream.integers(0, count, self._shape) for stream in self._streams])


class PriorPredictor:
    """A prior, sampled in one way."""

    def __init__(self, prior: Prior, sample: SampleSettings, draws: int, seed: int) -> None:
        self._prior, self._sample, self._draws, self._seed = prior, sample, draws, seed

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        dim = self._prior.config.embed_dim
        noise = (
            torch.from_numpy(values.reshape(-1, dim))
            for values in RowNoise(self._seed, PRIOR, row_ids, (self._draws, dim))
        )
        states = None if batch.token_states is None else torch.from_numpy(batch.token_states)
        drawn = self._prior.draw(torch.from_numpy(batch.text_embed), states, self._draws, self._sample, noise)
        return _unit(drawn.numpy().astype(np.float64))


@dataclass(frozen=True)
class Bank:
    """Training rows that baselines are fitted on: M of them, the first in the order of their content."""

    text: np.ndarray
    """`[M, D]` float32."""
    image: np.ndarray
    """`[M, D]` float32."""

    @staticmethod
    def read(dataset: EmbeddingDataset, size: int, seed: int) -> Bank:
        """At most `size` rows of the training split."""
        batch = dataset.take(dataset.content_order("train", seed)[:size])
        return Bank(batch.text_embed, batch.image_embed)


def baselines(bank: Bank, draws: int, seed: int) -> dict[str, Predictor]:
    """All baselines by name, fitted on training rows."""
    regression = Ridge(bank)
    made: tuple[Predictor, ...] = (
        text_embedding, MeanShift(bank), regression, LinearGaussian(regression, bank, draws, seed),
        NearestNeighbours(bank, draws), RandomImages(bank, draws, seed),
    )  # fmt: skip
    return dict(zip(BASELINES, made, strict=True))


def text_embedding(batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
    """The text embedding itself, as a point."""
    return _unit(batch.text_embed.astype(np.float64))[:, None]


class MeanShift:
    """The text embedding moved by the mean difference of image and text, as a point."""

    def __init__(self, bank: Bank) -> None:
        self._shift = bank.image.mean(axis=0, dtype=np.float64) - bank.text.mean(axis=0, dtype=np.float64)

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        return _unit(batch.text_embed + self._shift)[:, None]


class Ridge:
    """Ridge regression of image on text (Hoerl and Kennard 1970, Technometrics 12), as a point.

    The penalty is the one of a few that does best on a tenth of the rows, which the others then take in again.
    """

    def __init__(self, bank: Bank) -> None:
        text, image = bank.text.astype(np.float64), bank.image.astype(np.float64)
        held_out = np.arange(len(text)) % _HELD_OUT == 0
        self.penalty = _PENALTIES[0]
        if not held_out.all():
            errors = []
            for penalty in _PENALTIES:
                self._fit(text[~held_out], image[~held_out], penalty)
                errors.append(float(np.square(self.predict(text[held_out]) - image[held_out]).sum()))
            self.penalty = _PENALTIES[int(np.argmin(errors))]
        self._fit(text, image, self.penalty)

    def _fit(self, text: np.ndarray, image: np.ndarray, penalty: float) -> None:
        self._text_mean, self._image_mean = text.mean(axis=0), image.mean(axis=0)
        centred = text - self._text_mean
        products = centred.T @ centred
        added = penalty * max(float(np.trace(products)) / len(products), 1e-12) * np.eye(len(products))
        self._weights = np.linalg.solve(products + added, centred.T @ (image - self._image_mean))
        self._inverse, self._rows = np.linalg.inv(products + added), len(text)
        self.degrees_of_freedom = 1 + float(np.sum(self._inverse * products))
        """That the fit has taken from the rows (Hastie, Tibshirani and Friedman 2009, section 3.4.1)."""

    def predict(self, text: np.ndarray) -> np.ndarray:
        """`[B, D]` -> `[B, D]`, of whatever norm."""
        return np.asarray(self._image_mean + (text - self._text_mean) @ self._weights)

    def own_variance(self, text: np.ndarray) -> np.ndarray:
        """The variance of `predict` about the true mean, as a multiple of the residuals' own: `[B, D]` -> `[B]`.

        1/n + (t - m)' (X'X + penalty)^-1 (t - m), for texts X about their mean m: the posterior variance where the
        penalty is a normal prior of the weights (Bishop 2006, Pattern Recognition and Machine Learning, equation 3.59;
        without penalty that of Seber and Lee 2003, Linear Regression Analysis, section 5.3).
        """
        centred = text - self._text_mean
        return np.asarray(1 / self._rows + np.einsum("bd,de,be->b", centred, self._inverse, centred))

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        return _unit(self.predict(batch.text_embed.astype(np.float64)))[:, None]


class LinearGaussian:
    """Ridge regression and normal noise: what a linear model knows, as draws.

    The noise has the covariance of the residuals, times 1 for the image's own and `own_variance` for the regression's.
    """

    def __init__(self, regression: Ridge, bank: Bank, draws: int, seed: int) -> None:
        self._regression, self._draws, self._seed = regression, draws, seed
        residuals = bank.image - regression.predict(bank.text.astype(np.float64))
        covariance = residuals.T @ residuals / max(1.0, len(residuals) - regression.degrees_of_freedom)
        values, vectors = np.linalg.eigh(covariance)
        self._root = vectors * np.sqrt(np.maximum(values, 0))

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        text = batch.text_embed.astype(np.float64)
        mean, scale = self._regression.predict(text), np.sqrt(1 + self._regression.own_variance(text))
        noise = RowNoise(self._seed, RESIDUAL, row_ids, (self._draws, mean.shape[1])).draw()
        return _unit(mean[:, None] + scale[:, None, None] * (noise.astype(np.float64) @ self._root.T))


class NearestNeighbours:
    """Images of the K training captions that are nearest to the caption."""

    def __init__(self, bank: Bank, draws: int) -> None:
        self._bank, self._draws = bank, min(draws, len(bank.text))

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        similarity = batch.text_embed @ self._bank.text.T
        nearest = np.argsort(-similarity, axis=-1, kind="stable")[:, : self._draws]
        return _unit(self._bank.image[nearest].astype(np.float64))


class RandomImages:
    """K random training images: the right distribution, blind to the caption."""

    def __init__(self, bank: Bank, draws: int, seed: int) -> None:
        self._bank, self._draws, self._seed = bank, draws, seed

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        chosen = RowNoise(self._seed, RANDOM, row_ids, (self._draws,)).choose(len(self._bank.image))
        return _unit(self._bank.image[chosen].astype(np.float64))


class GivenPredictions:
    """Predictions that were made elsewhere, one or K for every row of the dataset."""

    def __init__(self, predictions: np.ndarray) -> None:
        self._predictions = predictions if predictions.ndim == 3 else predictions[:, None]  # (N, K, D)

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        return _unit(self._predictions[batch.rows].astype(np.float64))


def read_predictions(path: str, dataset: EmbeddingDataset) -> np.ndarray:
    """Predictions for every row of a dataset, mapped from a local `.npy`: `[N, D]` or `[N, K, D]`.

    Raises:
        InputError: the file is missing, remote, no such array, or of another shape than the dataset has.
    """
    if not Store(path).is_local:
        raise InputError(f"{path} is not on this machine, where predictions are read row by row; copy it here first")
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as an array of predictions ({error})") from error
    wanted = f"[{dataset.count}, {dataset.embed_dim}] or [{dataset.count}, K, {dataset.embed_dim}]"
    if (
        found.ndim not in (2, 3)
        or found.size == 0
        or (found.shape[0], found.shape[-1]) != (dataset.count, dataset.embed_dim)
    ):
        raise InputError(
            f"{path} has shape {list(found.shape)}, needed is {wanted}: a prediction for each row, in order"
        )
    if not is_embed_dtype(found.dtype):
        raise InputError(f"{path} holds {found.dtype}; predictions are read as {embed_dtypes_named()}")
    return found


def as_units(embeds: np.ndarray) -> np.ndarray:
    """Stored embeddings `[B, D]`, rounded to float16, as float64 of norm 1."""
    values = embeds.astype(np.float64)
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def _unit(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):  # what is not finite is looked for, and named
        scaled = values / np.abs(values).max(axis=-1, keepdims=True)  # whose squares neither overflow nor vanish
        return np.asarray(scaled / np.linalg.norm(scaled, axis=-1, keepdims=True))
