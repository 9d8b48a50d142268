"""Predictors of image embeddings: their protocol, sampling from a prior, and predictions read from a file.

Each predictor returns K draws (predicted embeddings of norm 1) for each of B rows. The noise for a row depends only on
the seed and the content of the row, so row order and the number of workers do not affect the draws. The module
`baselines` defines the baselines.
"""

from __future__ import annotations

from collections.abc import Iterator
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


class Predictor(Protocol):
    """Callable that predicts image embeddings for captions."""

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """Return K predicted embeddings of norm 1 for each row: `[B, K, D]` float64.

        Args:
            batch: embeddings of B rows.
            row_ids: hashes of the rows' content, `[B]`. Together with the seed, they determine the noise.
        """


PRIOR, RESIDUAL, RANDOM, LOSS = range(4)
"""Purposes of random numbers: sampling a prior, `LinearGaussian` noise, choosing random images, computing losses.

`RowNoise` uses independent random streams for different purposes.
"""


class RowNoise:
    """Source of random numbers, with an independent stream for each row.

    Args:
        seed: seed shared by all streams.
        purpose: `PRIOR`, `RESIDUAL`, `RANDOM` or `LOSS`. Different purposes give independent streams for the same seed
            and row.
        row_ids: hashes of the rows' content, `[B]` uint64.
        shape: shape of the array that each call of `draw` or `choose` generates for each row.
    """

    def __init__(self, seed: int, purpose: int, row_ids: np.ndarray, shape: tuple[int, ...]) -> None:
        key = hash_key("noise", seed, purpose)
        keys = [np.array([key, row_id], np.uint64) for row_id in row_ids]
        self._streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        self._shape = shape

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the results of successive calls to `draw`, without end."""
        while True:
            yield self.draw()

    def draw(self) -> np.ndarray:
        """Return the next standard normal random numbers from each row's stream: `[B, *shape]` float32."""
        return np.stack([stream.standard_normal(self._shape, np.float32) for stream in self._streams])

    def choose(self, count: int) -> np.ndarray:
        """Return the next uniform random integers in `[0, count)` from each row's stream: `[B, *shape]`."""
        return np.stack([stream.integers(0, count, self._shape) for stream in self._streams])


class PriorPredictor:
    """Predictor that draws K embeddings per row from a prior, always with the same sampling settings."""

    def __init__(self, prior: Prior, sample: SampleSettings, draws: int, seed: int) -> None:
        self._prior, self._sample, self._draws, self._seed = prior, sample, draws, seed

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """Return K sampled embeddings of norm 1 per row, `[B, K, D]`; see `Predictor.__call__`."""
        dim = self._prior.config.embed_dim
        noise = (
            torch.from_numpy(values.reshape(-1, dim))
            for values in RowNoise(self._seed, PRIOR, row_ids, (self._draws, dim))
        )
        states = None if batch.token_states is None else torch.from_numpy(batch.token_states)
        drawn = self._prior.draw(torch.from_numpy(batch.text_embed), states, self._draws, self._sample, noise)
        return to_unit_norm(drawn.numpy().astype(np.float64))


class GivenPredictions:
    """Predictor that returns predictions made by another program: one or more embeddings per row of the dataset."""

    def __init__(self, predictions: np.ndarray) -> None:
        self._predictions = predictions if predictions.ndim == 3 else predictions[:, None]  # (N, K, D)

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """Return the predictions for the dataset rows with the indices `batch.rows`, scaled to norm 1: `[B, K, D]`.

        B is the number of rows, K the number of predictions per row, and D the embedding size.
        """
        return to_unit_norm(self._predictions[batch.rows].astype(np.float64))


def read_predictions(path: str, dataset: EmbeddingDataset) -> np.ndarray:
    """Memory-map a local `.npy` file with predictions for all N rows of a dataset: `[N, D]` or `[N, K, D]`.

    D is the embedding size. An array `[N, D]` has one prediction per row, and an array `[N, K, D]` has K.

    Raises:
        InputError: the file is missing or remote, does not contain an array, has a dtype that is not allowed for
            embeddings, or has a shape that does not match the dataset.
    """
    if not Store(path).is_local:
        raise InputError(f"{path} is not on this machine, where predictions are read row by row; copy it here first")
    try:
        predictions: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as an array of predictions ({error})") from error
    wanted = f"[{dataset.count}, {dataset.embed_dim}] or [{dataset.count}, K, {dataset.embed_dim}]"
    if (
        predictions.ndim not in (2, 3)
        or predictions.size == 0
        or (predictions.shape[0], predictions.shape[-1]) != (dataset.count, dataset.embed_dim)
    ):
        raise InputError(
            f"{path} has shape {list(predictions.shape)}, needed is {wanted}: a prediction for each row, in order"
        )
    if not is_embed_dtype(predictions.dtype):
        raise InputError(f"{path} holds {predictions.dtype}; predictions are read as {embed_dtypes_named()}")
    return predictions


def as_units(embeds: np.ndarray) -> np.ndarray:
    """Convert B stored embeddings of size D, `[B, D]`, to float64, and scale them to norm 1.

    Scaling is needed because rounding has changed the norms of the stored embeddings slightly.
    """
    values = embeds.astype(np.float64)
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def to_unit_norm(values: np.ndarray) -> np.ndarray:
    """Scale predicted embeddings of size D, `[..., D]`, to norm 1.

    A vector that is zero or contains a non-finite value is replaced by NaN, so that scoring reports it as broken.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = values / np.abs(values).max(axis=-1, keepdims=True)  # prevents overflow and underflow of the squares
        return np.asarray(scaled / np.linalg.norm(scaled, axis=-1, keepdims=True))
