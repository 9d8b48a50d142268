"""The training objective: the loss of a network on a batch, given its randomness as an argument."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .config import DiffusionSettings
from .network import PriorNetwork
from .normalise import EmbeddingNormaliser
from .schedule import NoiseSchedule

_LOSSES = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}


@dataclass(frozen=True)
class StepRandomness:
    """All that is random in one step, for the rows of its global batch."""

    noise: torch.Tensor
    """`[B, D]` standard normal."""
    timesteps: torch.Tensor
    """`[B]` int64, uniform."""
    drop_text: torch.Tensor
    """`[B]` bool: rows trained without their text."""
    drop_image: torch.Tensor
    """`[B]` bool: rows trained without their noisy image."""
    self_cond: torch.Tensor
    """`[B]` bool: rows of a self-conditioned network that are given its own first estimate."""

    def to(self, device: torch.device) -> StepRandomness:
        """The same on a device."""
        return StepRandomness(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Condition:
    """What a prior is conditioned on, for B captions, as its network takes it."""

    text_embed: torch.Tensor
    """`[B, D]`, L2-normalised."""
    token_states: torch.Tensor | None
    """`[B, T, W]`, padded with zeros; None if the network uses none."""


def step_randomness(
    *, seed: int, step: int, batch: int, embed_dim: int, diffusion: DiffusionSettings
) -> StepRandomness:
    """The randomness of one step: a pure function of seed, step and position in the global batch.

    Drawn by numpy's Philox, whose stream is the same on every platform and device.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, step]))
    noise = random.standard_normal((batch, embed_dim), np.float32)
    timesteps = random.integers(0, diffusion.timesteps, batch)
    drop_text = random.random(batch) < diffusion.text_drop
    drop_image = random.random(batch) < diffusion.image_drop
    self_cond = random.random(batch) < 0.5
    return StepRandomness(*map(torch.from_numpy, (noise, timesteps, drop_text, drop_image, self_cond)))


def diffusion_loss(
    network: PriorNetwork,
    schedule: NoiseSchedule,
    diffusion: DiffusionSettings,
    normaliser: EmbeddingNormaliser,
    image_embed: torch.Tensor,
    condition: Condition,
    random: StepRandomness,
) -> torch.Tensor:
    """Error of the prediction, mean over coordinates, for each row: `[B]`.

    Args:
        image_embed: `[B, D]` of any norm.
    """
    x0 = normaliser.encode(image_embed)
    x_t = schedule.add_noise(x0, random.noise, random.timesteps)
    estimate = None
    if network.self_cond and bool(random.self_cond.any()):
        with torch.no_grad():
            estimate = network(
                x_t, random.timesteps, text_embed=condition.text_embed, token_states=condition.token_states
            )
        estimate = estimate * random.self_cond[:, None]
    output = network(
        x_t,
        random.timesteps,
        text_embed=condition.text_embed,
        token_states=condition.token_states,
        drop_text=random.drop_text if diffusion.text_drop else None,
        drop_image=random.drop_image if diffusion.image_drop else None,
        self_cond=estimate,
    )
    if diffusion.training_clamp:
        output = F.normalize(output, dim=-1) * normaliser.radius
    target = schedule.target(diffusion.prediction, x0, random.noise, random.timesteps)
    return _LOSSES[diffusion.loss](output.float(), target, reduction="none").mean(dim=-1)
