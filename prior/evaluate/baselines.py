"""Baselines that a prior has to beat: simple predictors that are fitted on training rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...pipeline.read.dataset import EmbeddingBatch, EmbeddingDataset
from .predictors import RANDOM, RESIDUAL, Predictor, RowNoise, to_unit_norm
from .settings import BASELINES

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Penalties that ridge regression tries, relative to the mean variance of a text coordinate."""
_PENALTY_FOLD = 10
"""Reciprocal of the share of training rows that chooses the penalty: every tenth row."""


@dataclass(frozen=True)
class Bank:
    """M training rows that baselines are fitted on: the first in a seeded order by content."""

    text: np.ndarray
    """Text embeddings `[M, D]` float32."""
    image: np.ndarray
    """Image embeddings `[M, D]` float32."""

    @staticmethod
    def read(dataset: EmbeddingDataset, size: int, seed: int) -> Bank:
        """Read at most `size` rows of the training split."""
        batch = dataset.take(dataset.content_order("train", seed)[:size])
        return Bank(batch.text_embed, batch.image_embed)


def fit_baselines(bank: Bank, draws: int, seed: int) -> dict[str, Predictor]:
    """Fit all baselines, by name."""
    regression = Ridge(bank)
    fitted: tuple[Predictor, ...] = (
        text_embedding, MeanShift(bank), regression, LinearGaussian(regression, bank, draws, seed),
        NearestNeighbours(bank, draws), RandomImages(bank, draws, seed),
    )  # fmt: skip
    return dict(zip(BASELINES, fitted, strict=True))


def text_embedding(batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
    """Predict the text embedding itself: `[B, 1, D]`."""
    return to_unit_norm(batch.text_embed.astype(np.float64))[:, None]


class MeanShift:
    """The text embedding plus the mean difference between image and text; one draw per row."""

    def __init__(self, bank: Bank) -> None:
        self._shift = bank.image.mean(axis=0, dtype=np.float64) - bank.text.mean(axis=0, dtype=np.float64)

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        return to_unit_norm(batch.text_embed + self._shift)[:, None]


class Ridge:
    """Ridge regression of image on text (Hoerl and Kennard 1970, Technometrics 12); one draw per row.

    A tenth of the rows chooses the penalty by squared error; the final fit uses all rows.
    """

    def __init__(self, bank: Bank) -> None:
        text, image = bank.text.astype(np.float64), bank.image.astype(np.float64)
        chooses = np.arange(len(text)) % _PENALTY_FOLD == 0
        self.penalty = _PENALTIES[0]
        if not chooses.all():
            errors = []
            for penalty in _PENALTIES:
                self._fit(text[~chooses], image[~chooses], penalty)
                errors.append(float(np.square(self.predict(text[chooses]) - image[chooses]).sum()))
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
        """Effective number of parameters (Hastie, Tibshirani and Friedman 2009, section 3.4.1)."""

    def predict(self, text: np.ndarray) -> np.ndarray:
        """Predict image embeddings of any norm: `[B, D]` -> `[B, D]`."""
        return np.asarray(self._image_mean + (text - self._text_mean) @ self._weights)

    def relative_variance(self, text: np.ndarray) -> np.ndarray:
        """Return the variance of `predict` around the true mean, relative to the residuals: `[B, D]` -> `[B]`.

        1/n + (t - m)' (X'X + penalty)^-1 (t - m), for texts X with mean m. This is the posterior variance where the
        penalty is a normal prior on the weights (Bishop 2006, Pattern Recognition and Machine Learning, equation
        3.59). Without a penalty, see Seber and Lee 2003, Linear Regression Analysis, section 5.3.
        """
        centred = text - self._text_mean
        return np.asarray(1 / self._rows + np.einsum("bd,de,be->b", centred, self._inverse, centred))

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        return to_unit_norm(self.predict(batch.text_embed.astype(np.float64)))[:, None]


class LinearGaussian:
    """Ridge regression plus normal noise: the draws of a linear model.

    The noise has the covariance of the residuals, scaled by 1 for the image and `relative_variance` for the regression.
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
        mean, scale = self._regression.predict(text), np.sqrt(1 + self._regression.relative_variance(text))
        noise = RowNoise(self._seed, RESIDUAL, row_ids, (self._draws, mean.shape[1])).draw()
        return to_unit_norm(mean[:, None] + scale[:, None, None] * (noise.astype(np.float64) @ self._root.T))


class NearestNeighbours:
    """Images of the K training captions nearest to the caption."""

    def __init__(self, bank: Bank, draws: int) -> None:
        self._bank, self._draws = bank, min(draws, len(bank.text))

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        similarity = batch.text_embed @ self._bank.text.T
        nearest = np.argsort(-similarity, axis=-1, kind="stable")[:, : self._draws]
        return to_unit_norm(self._bank.image[nearest].astype(np.float64))


class RandomImages:
    """K random training images: the right distribution, independent of the caption."""

    def __init__(self, bank: Bank, draws: int, seed: int) -> None:
        self._bank, self._draws, self._seed = bank, draws, seed

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        chosen = RowNoise(self._seed, RANDOM, row_ids, (self._draws,)).choose(len(self._bank.image))
        return to_unit_norm(self._bank.image[chosen].astype(np.float64))
