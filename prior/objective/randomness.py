"""Seeded random values for training steps: noise, timesteps, dropped texts and images, and dropout seeds.

Dimensions: B positions in a global batch, K draws (pairs of noise and timestep) per position, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...pipeline.read.shuffle import hash_key
from .settings import DiffusionSettings

_STREAM_PLACES = 32
"""Number of consecutive positions in the global batch whose values come from the same random stream.

A rank generates each stream from its start, and discards the values for positions of other ranks. Because the number
is small, few values are discarded.
"""
_NORMAL, _UNIFORM = 0, 1
"""Identifiers of the two types of random stream: normal and uniform values."""
_SEED_BITS = 2**63 - 1
"""Mask that reduces a 64-bit hash to the 63 bits that torch accepts as a seed."""


@dataclass(frozen=True)
class StepRandomness:
    """Random values for B rows of the global batch in one training step.

    Each row has K draws, which are pairs of noise and timestep.
    """

    noise: torch.Tensor
    """Standard normal noise, `[B, K, D]` (B rows, K draws per row, embedding size D)."""
    timesteps: torch.Tensor
    """Stratified timesteps, `[B, K]` int64 (B rows, K draws per row). The timesteps of the noise schedule are divided
    into K equal intervals, and the timestep of draw k is uniform over the k-th interval."""
    drop_text: torch.Tensor
    """Mask of rows whose text is dropped for classifier-free guidance: bool tensor `[B]`, one element per row.

    The mask applies to all draws of a row, so that each text needs to be encoded only once.
    """
    drop_image: torch.Tensor
    """Mask of draws whose noisy image is dropped: bool tensor `[B, K]` (B rows, K draws per row)."""
    self_cond: torch.Tensor
    """Mask of draws for which a self-conditioned network receives an x0 estimate instead of zeros: bool tensor `[B, K]`
    (B rows, K draws per row)."""

    def to(self, device: torch.device) -> StepRandomness:
        """Return these values with all tensors on the given device, except `drop_text` and `self_cond`.

        These two masks stay on the CPU, so that the loss can read them without waiting for the device.
        """
        on_cpu = {"drop_text", "self_cond"}
        return StepRandomness(**{k: v if k in on_cpu else v.to(device) for k, v in vars(self).items()})

    def take(self, indices: torch.Tensor) -> StepRandomness:
        """Return the values for the rows at the given indices."""
        return StepRandomness(**{k: v[indices.to(v.device)] for k, v in vars(self).items()})


def step_randomness(
    *, seed: int, step: int, first: int, rows: int, draws: int, embed_dim: int, diffusion: DiffusionSettings
) -> StepRandomness:
    """Draw random values for positions `first` to `first + rows - 1` in the global batch of a step.

    The values at a position depend only on the seed, step, position, number of draws, embedding size and diffusion
    settings. They do not depend on `first` or `rows`. NumPy's Philox generator gives the same values on every platform
    and device.

    Args:
        step: step number, from 0.
        first: first position to generate values for, counted from 0.
        rows: number of positions, B.
        draws: number of draws (pairs of noise and timestep) per position, K.
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
    """Return the random generator for one group of `_STREAM_PLACES` batch positions in a training step.

    Streams never overlap: the high half of Philox's counter identifies the stream, and drawing values advances only
    the low half.

    Args:
        purpose: `_NORMAL` or `_UNIFORM`.
        number: index of the group in the global batch.
    """
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, purpose, number]))


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed for dropout on one rank in one training step.

    The seed depends only on the arguments. It can therefore be computed again after a restart, and checkpoints need
    not store the state of a random generator.
    """
    return int(hash_key("dropout", seed, step, rank)) & _SEED_BITS
