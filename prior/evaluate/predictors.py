"""Predictors of image embeddings: the protocol, the prior, and predictions read from a file; see also `baselines`.

Every predictor returns K draws of norm 1 for each of B rows. Its noise is a function of the seed and the row's content,
so neither the order of rows nor the number of workers changes a draw.
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
    """Draws image embeddings for captions."""

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """Draw for B rows with ids `[B]`: `[B, K, D]` float64 of norm 1."""


PRIOR, RESIDUAL, RANDOM, LOSS = range(4)
"""Purposes of noise: each has its own stream."""


class RowNoise:
    """Standard normal noise, with an independent stream for each row.

    Args:
        seed: seed of all streams.
        purpose: separates streams of the same seed and row.
        row_ids: `[B]` uint64.
        shape: shape of the noise of one row.
    """

    def __init__(self, seed: int, purpose: int, row_ids: np.ndarray, shape: tuple[int, ...]) -> None:
        key = hash_key("noise", seed, purpose)
        keys = [np.array([key, row_id], np.uint64) for row_id in row_ids]
        self._streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        self._shape = shape

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the results of `draw` without end."""
        while True:
            yield self.draw()

    def draw(self) -> np.ndarray:
        """Return the next noise of all rows: `[B, *shape]` float32."""
        return np.stack([stream.standard_normal(self._shape, np.float32) for stream in self._streams])

    def choose(self, count: int) -> np.ndarray:
        """Return random integers below `count`: `[B, *shape]`."""
        return np.stack([stream.integers(0, count, self._shape) for stream in self._streams])


class PriorPredictor:
    """A prior with fixed sampling settings."""

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
        return to_unit_norm(drawn.numpy().astype(np.float64))


class GivenPredictions:
    """Predictions made by another program, 1 or K for every row of the dataset."""

    def __init__(self, predictions: np.ndarray) -> None:
        self._predictions = predictions if predictions.ndim == 3 else predictions[:, None]  # (N, K, D)

    def __call__(self, batch: EmbeddingBatch, row_ids: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        return to_unit_norm(self._predictions[batch.rows].astype(np.float64))


def read_predictions(path: str, dataset: EmbeddingDataset) -> np.ndarray:
    """Map predictions for every row of a dataset from a local `.npy`: `[N, D]` or `[N, K, D]`.

    Raises:
        InputError: the file is missing, remote, not a numeric array, or its shape does not match the dataset.
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
    """Return stored embeddings `[B, D]` as float64 of norm 1; float16 rounding had changed their norms."""
    values = embeds.astype(np.float64)
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def to_unit_norm(values: np.ndarray) -> np.ndarray:
    """Normalise predictions `[..., D]` of any scale; rows that have no direction become NaN, which scoring reports."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = values / np.abs(values).max(axis=-1, keepdims=True)  # so that squares neither overflow nor vanish
        return np.asarray(scaled / np.linalg.norm(scaled, axis=-1, keepdims=True))
