"""The training objective: the loss of a network on a batch, given its randomness as an argument.

Letters: B rows, K draws of noise and timestep for each, N = B * K draws in all, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..network.cache import DrawnTexts
from ..network.network import PriorNetwork
from .normaliser import EmbeddingNormaliser
from .schedule import NoiseSchedule
from .settings import DiffusionSettings

MIN_SNR_GAMMA = 5.0
"""Signal-to-noise ratio above which `min_snr` gives timesteps no more weight; Hang et al.'s choice."""

_LOSSES = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}
_STREAM_PLACES = 32
"""Places of a batch that share a stream of random numbers: few enough that a rank draws little for its neighbours."""
_NORMAL, _UNIFORM = 0, 1
"""Purposes of streams."""


@dataclass(frozen=True)
class StepRandomness:
    """All that is random in one step, for B places of its global batch and K draws of each."""

    noise: torch.Tensor
    """`[B, K, D]` standard normal."""
    timesteps: torch.Tensor
    """`[B, K]` int64, uniform, and in each row one of each K-th of the timesteps."""
    drop_text: torch.Tensor
    """`[B]` bool: rows trained without their text, in all draws, so that a text is computed for K draws or for none."""
    drop_image: torch.Tensor
    """`[B, K]` bool: draws trained without their noisy image."""
    self_cond: torch.Tensor
    """`[B, K]` bool: draws for which a self-conditioned network is given its own first estimate."""

    def to(self, device: torch.device) -> StepRandomness:
        """The same on a device; but for what decides how much is computed, which is needed on the CPU."""
        stay = {"drop_text", "self_cond"}
        return StepRandomness(**{k: v if k in stay else v.to(device) for k, v in vars(self).items()})

    def take(self, order: torch.Tensor) -> StepRandomness:
        """Rows of it by their numbers."""
        return StepRandomness(**{k: v[order.to(v.device)] for k, v in vars(self).items()})


@dataclass(frozen=True)
class Condition:
    """What a prior is conditioned on, for B captions, as its network takes it."""

    text_embed: torch.Tensor
    """`[B, D]`, L2-normalised."""
    token_states: torch.Tensor | None
    """`[B, T, W]`, padded with zeros; None if the network uses none."""

    def take(self, order: torch.Tensor) -> Condition:
        """Captions of it by their numbers."""
        order = order.to(self.text_embed.device)
        return Condition(self.text_embed[order], None if self.token_states is None else self.token_states[order])


def step_randomness(
    *, seed: int, step: int, first: int, rows: int, draws: int, embed_dim: int, diffusion: DiffusionSettings
) -> StepRandomness:
    """The randomness of places `first` to `first + rows` of a step's global batch.

    What a place is given is a function of seed, step, place and K alone, whatever part of the batch is asked for.
    Drawn by numpy's Philox, whose stream is the same on every platform and device.
    """
    noise = np.empty((rows, draws, embed_dim), np.float32)
    uniform = np.empty((rows, draws, 4))
    end = first + rows
    for number in range(first // _STREAM_PLACES, -(-end // _STREAM_PLACES)):
        start, stop = number * _STREAM_PLACES, min((number + 1) * _STREAM_PLACES, end)
        unwanted = max(0, first - start)
        wanted = slice(start + unwanted - first, stop - first)
        normal = _stream(seed, step, _NORMAL, number)
        noise[wanted] = normal.standard_normal((stop - start, draws, embed_dim), np.float32)[unwanted:]
        uniform[wanted] = _stream(seed, step, _UNIFORM, number).random((stop - start, draws, 4))[unwanted:]
    strata = (np.arange(draws) + uniform[..., 0]) / draws  # draw k from the k-th part of [0, 1)
    timesteps = np.minimum((strata * diffusion.timesteps).astype(np.int64), diffusion.timesteps - 1)
    drop_text = uniform[:, 0, 1] < diffusion.text_drop
    drop_image = uniform[..., 2] < diffusion.image_drop
    self_cond = uniform[..., 3] < 0.5
    return StepRandomness(*map(torch.from_numpy, (noise, timesteps, drop_text, drop_image, self_cond)))


def _stream(seed: int, step: int, purpose: int, number: int) -> np.random.Generator:
    """A stream of random numbers; the low half of the counter is what it advances by."""
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, purpose, number]))


def diffusion_loss(
    network: PriorNetwork,
    schedule: NoiseSchedule,
    diffusion: DiffusionSettings,
    normaliser: EmbeddingNormaliser,
    image_embed: torch.Tensor,
    condition: Condition,
    random: StepRandomness,
) -> torch.Tensor:
    """Weighted error of the prediction, mean over coordinates and over the K draws, for each row: `[B]`.

    The draws of a text share its prefix, and all whose text is dropped share one of no text.

    Args:
        image_embed: `[B, D]` of any norm.
    """
    rows, draws, _ = random.noise.shape
    kept, order = rows, None
    if network.function.has_null_text and random.drop_text.any():  # rows without a text go to the end
        kept, order = int((~random.drop_text).sum()), torch.argsort(random.drop_text, stable=True)
        random, condition = random.take(order), condition.take(order)
        image_embed = image_embed[order.to(image_embed.device)]
    noise, timesteps = random.noise.flatten(0, 1), random.timesteps.flatten()
    x0 = normaliser.encode(image_embed).repeat_interleave(draws, dim=0)  # (N, D)
    x_t = schedule.add_noise(x0, noise, timesteps)
    texts = min(kept + 1, rows)  # the first of the rows without a text stands for all of them
    first, drop_text = condition.take(torch.arange(texts)), random.drop_text[:texts].to(x_t.device)
    output = network.draws(
        first.text_embed, first.token_states, drop_text if drop_text.any() else None, DrawnTexts(rows, draws, kept),
        x_t, timesteps,
        drop_image=random.drop_image.flatten() if diffusion.image_drop else None,
        self_cond=_estimates(network, condition, random.self_cond, x_t, timesteps) if network.self_cond else None,
    )  # fmt: skip
    if diffusion.training_clamp:
        output = F.normalize(output, dim=-1) * normaliser.radius
    target = schedule.target(diffusion.prediction, x0, noise, timesteps)
    losses = _LOSSES[diffusion.loss](output, target, reduction="none").mean(dim=-1)  # (N,)
    if diffusion.loss_weighting == "min_snr":
        losses = losses * min_snr_weight(schedule, diffusion.prediction, timesteps).to(losses.dtype)
    losses = losses.view(rows, draws).mean(dim=1)
    return losses if order is None else losses[torch.argsort(order).to(losses.device)]


@torch.no_grad()
def _estimates(
    network: PriorNetwork, condition: Condition, chosen: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor | None:
    """What the network first says to the chosen `[B, K]` of N draws, nothing dropped: `[N, D]`, zeros for others."""
    texts, numbers = chosen.any(dim=1), chosen.flatten().nonzero()[:, 0]
    if len(numbers) == 0:
        return None
    condition = condition.take(texts.nonzero()[:, 0])
    cache = network.prefix(condition.text_embed, condition.token_states)
    text_of = (texts.cumsum(0) - 1)[numbers // chosen.shape[1]].to(x_t.device)
    numbers = numbers.to(x_t.device)
    said = network.suffix(cache.take(text_of), x_t[numbers], timesteps[numbers])
    return torch.zeros_like(x_t).index_copy(0, numbers, said)


def min_snr_weight(schedule: NoiseSchedule, prediction: str, timesteps: torch.Tensor) -> torch.Tensor:
    """Weights `[N]` float64 of losses at timesteps `[N]` (Hang et al. 2023, arXiv 2303.09556).

    The squared error of x0 is weighted by min(SNR, gamma); those of eps and v so that they weigh as much.
    """
    alpha_bar = schedule.alpha_bar.to(timesteps.device)[timesteps]
    ratio = alpha_bar / (1 - alpha_bar)
    if prediction == "x0":
        return ratio.clamp(max=MIN_SNR_GAMMA)
    if prediction == "eps":
        return (MIN_SNR_GAMMA / ratio).clamp(max=1)
    return ratio.clamp(max=MIN_SNR_GAMMA) / (ratio + 1)
