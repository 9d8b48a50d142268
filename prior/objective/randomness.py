"""Seeded random values for training steps: noise, timesteps, text and image drops, and the dropout seed.

Letters: B positions in a global batch, K draws per position, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...pipeline.read.shuffle import hash_key
from .settings import DiffusionSettings

_STREAM_PLACES = 32
"""Number of batch positions per random stream; small, so that a rank discards few values of its neighbours."""
_NORMAL, _UNIFORM = 0, 1
"""Identifiers of the two stream types, normal and uniform."""
_SEED_BITS = 2**63 - 1
"""Mask that reduces a hash to the 63 seed bits that torch generators accept."""


@dataclass(frozen=True)
class StepRandomness:
    """Random values for one training step: B positions in its global batch, with K draws each."""

    noise: torch.Tensor
    """`[B, K, D]` standard normal noise."""
    timesteps: torch.Tensor
    """`[B, K]` int64, stratified: draw k of a row is uniform over the k-th of K equal timestep intervals."""
    drop_text: torch.Tensor
    """`[B]` bool: rows whose text is dropped in all their draws, so that each text is encoded once or not at all."""
    drop_image: torch.Tensor
    """`[B, K]` bool: draws whose noisy image is dropped."""
    self_cond: torch.Tensor
    """`[B, K]` bool: draws for which a self-conditioned network receives its own first estimate."""

    def to(self, device: torch.device) -> StepRandomness:
        """Move to a device, except the masks that select what to compute, which the CPU reads."""
        on_cpu = {"drop_text", "self_cond"}
        return StepRandomness(**{k: v if k in on_cpu else v.to(device) for k, v in vars(self).items()})

    def take(self, indices: torch.Tensor) -> StepRandomness:
        """Return the values for the rows at the given indices."""
        return StepRandomness(**{k: v[indices.to(v.device)] for k, v in vars(self).items()})


def step_randomness(
    *, seed: int, step: int, first: int, rows: int, draws: int, embed_dim: int, diffusion: DiffusionSettings
) -> StepRandomness:
    """Draw random values for positions `first` to `first + rows - 1` in the global batch of a step.

    The values at a position depend only on seed, step, position, K and settings, not on which part of the batch is
    drawn. NumPy's Philox gives the same stream on every platform and device.
    """
    noise = np.empty((rows, draws, embed_dim), np.float32)
    uniform = np.empty((rows, draws, 4))
    end = first + rows
    for number in range(first // _STREAM_PLACES, -(-end // _STREAM_PLACES)):
        start, stop = number * _STREAM_PLACES, min((number + 1) * _STREAM_PLACES, end)
        skipped = max(0, first - start)
        places = slice(start + skipped - first, stop - first)
        normal = _stream(seed, step, _NORMAL, number)
        noise[places] = normal.standard_normal((stop - start, draws, embed_dim), np.float32)[skipped:]
        uniform[places] = _stream(seed, step, _UNIFORM, number).random((stop - start, draws, 4))[skipped:]
    strata = (np.arange(draws) + uniform[..., 0]) / draws  # draw k lies in the k-th of K intervals of [0, 1)
    timesteps = np.minimum((strata * diffusion.timesteps).astype(np.int64), diffusion.timesteps - 1)
    drop_text = uniform[:, 0, 1] < diffusion.text_drop
    drop_image = uniform[..., 2] < diffusion.image_drop
    self_cond = uniform[..., 3] < 0.5
    return StepRandomness(*map(torch.from_numpy, (noise, timesteps, drop_text, drop_image, self_cond)))


def _stream(seed: int, step: int, purpose: int, number: int) -> np.random.Generator:
    """Return a random stream. Its id is in the high half of the counter; drawing advances the low half."""
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, purpose, number]))


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return the dropout seed for a step and rank, so that checkpoints need no generator state."""
    return int(hash_key("dropout", seed, step, rank)) & _SEED_BITS
