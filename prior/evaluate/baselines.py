"""Baselines that a prior has to beat: simple predictors fitted on training rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...pipeline.read.dataset import EmbeddingBatch, EmbeddingDataset
from .predictors import RANDOM, RESIDUAL, Predictor, RowNoise, to_unit_norm
from .settings import BASELINES

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties to try, relative to the mean variance of a text coordinate."""
_PENALTY_FOLD = 10
"""Interval between the training rows held out to choose the ridge penalty: every tenth row."""


@dataclass(frozen=True)
class Bank:
    """The M training rows used to fit the baselines, taken from the start of a seeded, content-based order."""

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
    """Fit all baselines and return them by name.

    Args:
        bank: training rows to fit on.
        draws: K, the number of draws per row for baselines that return more than one.
        seed: seed of the random baselines.
    """
    regression = Ridge(bank)
    fitted: tuple[Predictor, ...] = (
        text_embedding, MeanShift(bank), regression, LinearGaussian(regression, bank, draws, seed),
        NearestNeighbours(bank, draws), RandomImages(bank, draws, seed),
    )  # fmt: skip
    return dict(zip(BASELINES, fitted, strict=True))


def text_embedding(batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
    """Predict each caption's own text embedding, as one draw per row: `[B, 1, D]`."""
    return to_unit_norm(batch.text_embed.astype(np.float64))[:, None]


class MeanShift:
    """Text embedding plus the mean offset from text to image embeddings in the bank; one draw per row."""

    def __init__(self, bank: Bank) -> None:
        self._shift = bank.image.mean(axis=0, dtype=np.float64) - bank.text.mean(axis=0, dtype=np.float64)

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        return to_unit_norm(batch.text_embed + self._shift)[:, None]


class Ridge:
    """Ridge regression from text to image embeddings (Hoerl and Kennard 1970, Technometrics 12); one draw per row.

    The penalty is the one with the smallest squared error on a held-out tenth of the rows. The final fit uses all rows.
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
        """Predict image embeddings without normalising them: `[B, D]` -> `[B, D]`."""
        return np.asarray(self._image_mean + (text - self._text_mean) @ self._weights)

    def relative_variance(self, text: np.ndarray) -> np.ndarray:
        """Return the variance of the predicted mean, relative to the residual variance: `[B, D]` -> `[B]`.

        The formula for a text t is 1/n + (t - m)' (X'X + penalty)^-1 (t - m), where X holds the n centred training
        texts and m is their mean. If the penalty is read as a normal prior on the weights, this is the posterior
        variance (Bishop 2006, Pattern Recognition and Machine Learning, equation 3.59). For the case without a
        penalty, see Seber and Lee 2003, Linear Regression Analysis, section 5.3.
        """
        centred = text - self._text_mean
        return np.asarray(1 / self._rows + np.einsum("bd,de,be->b", centred, self._inverse, centred))

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        return to_unit_norm(self.predict(batch.text_embed.astype(np.float64)))[:, None]


class LinearGaussian:
    """Linear-Gaussian model: ridge regression plus normal noise, K draws per row.

    The noise covariance is the residual covariance times `1 + relative_variance`. The 1 accounts for the spread of
    images around the mean, `relative_variance` for the uncertainty of the regression itself.
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
    """Images of the K training captions most similar to the given caption."""

    def __init__(self, bank: Bank, draws: int) -> None:
        self._bank, self._draws = bank, min(draws, len(bank.text))

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        similarity = batch.text_embed @ self._bank.text.T
        nearest = np.argsort(-similarity, axis=-1, kind="stable")[:, : self._draws]
        return to_unit_norm(self._bank.image[nearest].astype(np.float64))


class RandomImages:
    """K random training images per row: the right overall distribution, but independent of the caption."""

    def __init__(self, bank: Bank, draws: int, seed: int) -> None:
        self._bank, self._draws, self._seed = bank, draws, seed

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        chosen = RowNoise(self._seed, RANDOM, row_ids, (self._draws,)).choose(len(self._bank.image))
        return to_unit_norm(self._bank.image[chosen].astype(np.float64))
