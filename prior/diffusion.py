"""The training objective: the loss of a network on a batch, given its randomness as an argument."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .network import PriorNetwork
from .schedule import NoiseSchedule


@dataclass(frozen=True)
class StepRandomness:
    """All that is random in one step, for the rows of its global batch."""

    noise: torch.Tensor
    """`[B, D]` standard normal."""
    timesteps: torch.Tensor
    """`[B]` int64, uniform."""
    drop_text: torch.Tensor
    """`[B]` bool: rows trained without their text."""


@dataclass(frozen=True)
class Condition:
    """What a prior is conditioned on, for B captions, as its network takes it."""

    text_embed: torch.Tensor
    """`[B, D]` of norm sqrt(D)."""
    token_states: torch.Tensor | None
    """`[B, T, W]`, padded with zeros; None if the network uses none."""


def to_network_scale(embed: torch.Tensor) -> torch.Tensor:
    """Embeddings `[..., D]` of any norm -> norm sqrt(D), so that each coordinate has variance near 1."""
    return F.normalize(embed.float(), dim=-1) * math.sqrt(embed.shape[-1])


def step_randomness(
    *, seed: int, step: int, batch: int, embed_dim: int, timesteps: int, text_drop: float
) -> StepRandomness:
    """The randomness of one step: a pure function of seed, step and position in the global batch.

    Drawn by numpy's Philox, whose stream is the same on every platform and device.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, step]))
    noise = random.standard_normal((batch, embed_dim), np.float32)
    drawn = random.integers(0, timesteps, batch)
    drop = random.random(batch) < text_drop
    return StepRandomness(torch.from_numpy(noise), torch.from_numpy(drawn), torch.from_numpy(drop))


def diffusion_loss(
    network: PriorNetwork,
    schedule: NoiseSchedule,
    prediction: str,
    image_embed: torch.Tensor,
    condition: Condition,
    random: StepRandomness,
) -> torch.Tensor:
    """Squared error of the prediction, mean over coordinates, for each row: `[B]`.

    Args:
        prediction: what the network predicts: `x0`, `eps` or `v`.
        image_embed: `[B, D]` of norm sqrt(D).
    """
    x_t = schedule.add_noise(image_embed, random.noise, random.timesteps)
    output = network(
        x_t,
        random.timesteps,
        text_embed=condition.text_embed,
        token_states=condition.token_states,
        drop_text=random.drop_text,
    )
    target = schedule.target(prediction, image_embed, random.noise, random.timesteps)
    return F.mse_loss(output.float(), target, reduction="none").mean(dim=-1)
