"""All random streams of training that follow from the seed: noise, timesteps, drops, and dropout.

Letters: B places of a global batch, K draws for each of them, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...pipeline.read.shuffle import hash_key
from .settings import DiffusionSettings

_STREAM_PLACES = 32
"""Number of places of a batch that share a stream: small, so that a rank draws few values for its neighbours."""
_NORMAL, _UNIFORM = 0, 1
"""Purposes of streams."""
_SEED_BITS = 2**63 - 1
"""Mask of the bits of a seed that torch's generators take."""


@dataclass(frozen=True)
class StepRandomness:
    """Random values of one step, for B places of its global batch and K draws of each place."""

    noise: torch.Tensor
    """`[B, K, D]` standard normal."""
    timesteps: torch.Tensor
    """`[B, K]` int64, uniform; draw k of a row is from the k-th of K equal parts of the timesteps."""
    drop_text: torch.Tensor
    """`[B]` bool: rows trained without their text in all draws, so that a text is encoded for all draws or for none."""
    drop_image: torch.Tensor
    """`[B, K]` bool: draws trained without their noisy image."""
    self_cond: torch.Tensor
    """`[B, K]` bool: draws for which a self-conditioned network gets its own first estimate."""

    def to(self, device: torch.device) -> StepRandomness:
        """Move to a device, except the masks that decide how much is computed: those are read on the CPU."""
        on_cpu = {"drop_text", "self_cond"}
        return StepRandomness(**{k: v if k in on_cpu else v.to(device) for k, v in vars(self).items()})

    def take(self, indices: torch.Tensor) -> StepRandomness:
        """Select rows by index."""
        return StepRandomness(**{k: v[indices.to(v.device)] for k, v in vars(self).items()})


def step_randomness(
    *, seed: int, step: int, first: int, rows: int, draws: int, embed_dim: int, diffusion: DiffusionSettings
) -> StepRandomness:
    """Draw the random values of places `first` to `first + rows` of a step's global batch.

    The values of a place are a function of seed, step, place and K alone, whichever part of the batch is drawn.
    numpy's Philox gives the same stream on every platform and device.
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
    strata = (np.arange(draws) + uniform[..., 0]) / draws  # draw k from the k-th part of [0, 1)
    timesteps = np.minimum((strata * diffusion.timesteps).astype(np.int64), diffusion.timesteps - 1)
    drop_text = uniform[:, 0, 1] < diffusion.text_drop
    drop_image = uniform[..., 2] < diffusion.image_drop
    self_cond = uniform[..., 3] < 0.5
    return StepRandomness(*map(torch.from_numpy, (noise, timesteps, drop_text, drop_image, self_cond)))


def _stream(seed: int, step: int, purpose: int, number: int) -> np.random.Generator:
    """Return a random stream; streams differ in the high half of the counter, and advance by its low half."""
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, purpose, number]))


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of dropout in one step on one rank, so that no generator's state has to be stored."""
    return int(hash_key("dropout", seed, step, rank)) & _SEED_BITS
