"""Baselines that a prior should outperform: simple predictors, most of them fitted to training rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...pipeline.read.dataset import EmbeddingBatch, EmbeddingDataset
from .predictors import RANDOM, RESIDUAL, Predictor, RowNoise, to_unit_norm
from .settings import BASELINES, ONE_SPACE_BASELINES, BaselineName

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties to try, as multiples of the mean diagonal element of X'X, where X holds centred text embeddings."""
_PENALTY_FOLD = 10
"""Spacing of the held-out rows: every tenth training row is held out to choose the ridge penalty."""


@dataclass(frozen=True)
class Bank:
    """Embeddings of M training rows (pairs of an image and a caption), used to fit the baselines."""

    text: np.ndarray
    """Text embeddings `[M, S]` float32, whose size S equals D unless they come from another model."""
    image: np.ndarray
    """Image embeddings `[M, D]` float32, where D is the embedding size."""

    @staticmethod
    def read(dataset: EmbeddingDataset, size: int, seed: int) -> Bank:
        """Read the image and text embeddings of at most `size` rows of the training split.

        If the split has more rows, `size` of them are chosen pseudorandomly. The choice depends only on `seed` and the
        content of the rows.
        """
        batch = dataset.take(dataset.content_order("train", seed)[:size])
        return Bank(batch.text_embed, batch.image_embed)


def fit_baselines(bank: Bank, draws: int, seed: int, *, one_space: bool = True) -> dict[str, Predictor]:
    """Fit all baselines to training rows, and return the resulting predictors, keyed by baseline name.

    Args:
        bank: embeddings of the training rows.
        draws: K, the number of embeddings to predict per row. `text_embedding`, `MeanShift` and `Ridge` ignore it and
            always predict one.
        seed: seed for the baselines that use random numbers.
        one_space: False if text and image embeddings are in different spaces. `text_embedding` and `MeanShift`, which
            take a text embedding for an image embedding, are then left out.
    """
    regression = Ridge(bank)
    of_one_space: tuple[Predictor, ...] = (text_embedding, MeanShift(bank)) if one_space else ()
    fitted: tuple[Predictor, ...] = (
        *of_one_space, regression, LinearGaussian(regression, bank, draws, seed), NearestNeighbours(bank, draws),
        RandomImages(bank, draws, seed),
    )  # fmt: skip
    return dict(zip(known_baselines(one_space), fitted, strict=True))


def known_baselines(one_space: bool) -> tuple[BaselineName, ...]:
    """Return the names of the baselines that can be evaluated, in the order of tables and plots.

    Args:
        one_space: False if text and image embeddings are in different spaces.
    """
    return BASELINES if one_space else tuple(name for name in BASELINES if name not in ONE_SPACE_BASELINES)


def text_embedding(batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
    """Return each caption's text embedding, scaled to norm 1, as its predicted image embedding: `[B, 1, D]`.

    B is the number of rows, and D is the embedding size. This baseline makes one prediction per row, and does not use
    `row_ids`.
    """
    return to_unit_norm(batch.text_embed.astype(np.float64))[:, None]


class MeanShift:
    """Predictor that adds a fixed vector to each text embedding, and returns one prediction per row.

    The vector is the mean image embedding of the training rows minus their mean text embedding.
    """

    def __init__(self, bank: Bank) -> None:
        self._shift = bank.image.mean(axis=0, dtype=np.float64) - bank.text.mean(axis=0, dtype=np.float64)

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """Return one prediction of norm 1 per row: `[B, 1, D]`; see `Predictor.__call__`.

        B is the number of rows, and D is the embedding size. This baseline does not use `row_ids`.
        """
        return to_unit_norm(batch.text_embed + self._shift)[:, None]


class Ridge:
    """Predictor that uses ridge regression from text to image embeddings (Hoerl and Kennard 1970, Technometrics 12).

    It returns one prediction per row. To choose the ridge penalty, a tenth of the training rows is held out. The
    value in `_PENALTIES` with the smallest squared error on the held-out rows is chosen. The regression is then fitted
    to all training rows with this penalty.
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
        """Effective number of parameters of the regression (Hastie, Tibshirani and Friedman 2009, section 3.4.1)."""

    def predict(self, text: np.ndarray) -> np.ndarray:
        """Return the predicted image embeddings of B captions, not scaled to norm 1: `[B, D]`.

        Args:
            text: text embeddings of the captions, `[B, D]`, where D is the embedding size.
        """
        return np.asarray(self._image_mean + (text - self._text_mean) @ self._weights)

    def relative_variance(self, text: np.ndarray) -> np.ndarray:
        """Return the variance of the predicted mean, divided by the residual variance, for each of B captions: `[B]`.

        Let X hold the n centred text embeddings of the training rows, let m be their mean before centring, and let P be
        the diagonal matrix that the ridge penalty adds to X'X. The result for a text embedding t is
        1/n + (t - m)' (X'X + P)^-1 (t - m). If the penalty is interpreted as a normal prior on the weights, this value
        is the posterior variance (Bishop 2006, Pattern Recognition and Machine Learning, equation 3.59). For the case
        without a penalty, see Seber and Lee 2003, Linear Regression Analysis, section 5.3.

        Args:
            text: text embeddings of the captions, `[B, D]`, where D is the embedding size.
        """
        centred = text - self._text_mean
        return np.asarray(1 / self._rows + np.einsum("bd,de,be->b", centred, self._inverse, centred))

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """Return one prediction of norm 1 per row: `[B, 1, D]`; see `Predictor.__call__`.

        B is the number of rows, and D is the embedding size. This baseline does not use `row_ids`.
        """
        return to_unit_norm(self.predict(batch.text_embed.astype(np.float64)))[:, None]


class LinearGaussian:
    """Predictor that returns K samples per row: the ridge regression's prediction plus normally distributed noise.

    The covariance of the noise is that of the regression's residuals, multiplied by 1 + v, where v is the row's
    `Ridge.relative_variance`. The 1 accounts for the spread of image embeddings around the predicted mean. The term v
    accounts for the uncertainty of the predicted mean itself.
    """

    def __init__(self, regression: Ridge, bank: Bank, draws: int, seed: int) -> None:
        self._regression, self._draws, self._seed = regression, draws, seed
        residuals = bank.image - regression.predict(bank.text.astype(np.float64))
        covariance = residuals.T @ residuals / max(1.0, len(residuals) - regression.degrees_of_freedom)
        values, vectors = np.linalg.eigh(covariance)
        self._root = vectors * np.sqrt(np.maximum(values, 0))

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """Return K samples of norm 1 per row: `[B, K, D]`; see `Predictor.__call__`.

        B is the number of rows, and D is the embedding size.
        """
        text = batch.text_embed.astype(np.float64)
        mean, scale = self._regression.predict(text), np.sqrt(1 + self._regression.relative_variance(text))
        noise = RowNoise(self._seed, RESIDUAL, row_ids, (self._draws, mean.shape[1])).draw()
        return to_unit_norm(mean[:, None] + scale[:, None, None] * (noise.astype(np.float64) @ self._root.T))


class NearestNeighbours:
    """Predictor that finds the K training captions most similar to a caption, and returns their image embeddings.

    The similarity of two captions is the dot product of their text embeddings. If there are fewer than K training rows,
    the image embeddings of all of them are returned.
    """

    def __init__(self, bank: Bank, draws: int) -> None:
        self._bank, self._draws = bank, min(draws, len(bank.text))

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """Return K training image embeddings of norm 1 per row: `[B, K, D]`; see `Predictor.__call__`.

        B is the number of rows, and D is the embedding size. The images whose captions are most similar to the row's
        caption come first.
        """
        similarity = batch.text_embed @ self._bank.text.T
        nearest = np.argsort(-similarity, axis=-1, kind="stable")[:, : self._draws]
        return to_unit_norm(self._bank.image[nearest].astype(np.float64))


class RandomImages:
    """Predictor that ignores the caption and returns the embeddings of K random training images for each row.

    The images are drawn with replacement. The predictions follow the distribution of the training images, but are
    unrelated to the caption.
    """

    def __init__(self, bank: Bank, draws: int, seed: int) -> None:
        self._bank, self._draws, self._seed = bank, draws, seed

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """Return K random training image embeddings of norm 1 per row: `[B, K, D]`; see `Predictor.__call__`.

        B is the number of rows, and D is the embedding size.
        """
        chosen = RowNoise(self._seed, RANDOM, row_ids, (self._draws,)).choose(len(self._bank.image))
        return to_unit_norm(self._bank.image[chosen].astype(np.float64))
