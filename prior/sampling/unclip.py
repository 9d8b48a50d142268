"""Samplers that reproduce the ones in diffusers' unCLIP pipelines, and the one-step sampler of ECLIPSE.

diffusers computes the coefficients in float32. In the last steps, they differ from those in float64 by up to 5e-4, so
the same float32 operations are part of these samplers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from ..objective.schedule import NoiseSchedule
from .samplers import EstimateX0, full_timesteps

_MAX_BETA = 0.999
"""Maximum beta, as in Nichol and Dhariwal (2021)."""
_LEAST_VARIANCE = 1e-20
"""Minimum variance of the noise that a step adds."""


def unclip(
    estimate_x0: EstimateX0, schedule: NoiseSchedule, noise: Iterator[torch.Tensor], grid: list[int]
) -> torch.Tensor:
    """Sample embeddings as diffusers' `UnCLIPScheduler` does in the pipelines of Karlo and Kandinsky.

    Args:
        estimate_x0: function that estimates x0 (the clean embeddings) at a timestep.
        schedule: noise schedule, which must be `cosine`.
        noise: standard normal tensors `[N, D]` (N embeddings of size D): the initial noise, then one tensor for each
            step at a timestep above 0.
        grid: timesteps at which x0 is estimated, one per step, noisiest first.

    Returns:
        The sampled embeddings, `[N, D]`.
    """
    return _sample(estimate_x0, len(schedule), noise, grid, [*grid[1:], grid[-1] - 1])


def unclip_ddpm(
    estimate_x0: EstimateX0, schedule: NoiseSchedule, noise: Iterator[torch.Tensor], grid: list[int]
) -> torch.Tensor:
    """Sample embeddings as diffusers' `DDPMScheduler` does in the pipelines of Stable unCLIP; see `unclip`."""
    stride = len(schedule) // len(grid)
    return _sample(estimate_x0, len(schedule), noise, grid, [timestep - stride for timestep in grid], by_ratio=True)


def one_step(
    estimate_x0: EstimateX0, schedule: NoiseSchedule, noise: Iterator[torch.Tensor], grid: list[int]
) -> torch.Tensor:
    """Return the estimate of x0 from pure noise, as ECLIPSE's priors do (Patel et al. 2023, arXiv 2312.04655)."""
    x_t = next(noise)
    return estimate_x0(x_t, full_timesteps(x_t, grid[0])).x0


def unclip_grid(timesteps: int, steps: int) -> list[int]:
    """Return the timesteps of `unclip`, noisiest first: from the noisiest one to 0."""
    ratio = (timesteps - 1) / (steps - 1)
    return [int(timestep) for timestep in (np.arange(steps) * ratio).round()[::-1]]


def unclip_ddpm_grid(timesteps: int, steps: int) -> list[int]:
    """Return the timesteps of `unclip-ddpm`, noisiest first: multiples of the whole number `timesteps / steps`."""
    return [index * (timesteps // steps) for index in reversed(range(steps))]


def float32_schedule(timesteps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return beta and alpha_bar of the cosine schedule, `[timesteps]` each, by the float32 operations of diffusers."""

    def signal(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    shares = [index / timesteps for index in range(timesteps + 1)]
    betas = [min(1 - signal(shares[i + 1]) / signal(shares[i]), _MAX_BETA) for i in range(timesteps)]
    beta = torch.tensor(betas, dtype=torch.float32)
    return beta, torch.cumprod(1.0 - beta, dim=0)


def _sample(
    estimate_x0: EstimateX0,
    timesteps: int,
    noise: Iterator[torch.Tensor],
    grid: list[int],
    next_timesteps: list[int],
    by_ratio: bool = False,
) -> torch.Tensor:
    """Run the steps of `unclip` and `unclip-ddpm`.

    Args:
        estimate_x0, noise, grid: as for `unclip`.
        timesteps: number of timesteps in the noise schedule.
        next_timesteps: timestep after each step; below 0 if the step removes all noise.
        by_ratio: True to compute beta from the ratio of two alpha_bar, even between neighbouring timesteps.
    """
    x_t = next(noise)
    betas, alpha_bars = float32_schedule(timesteps)
    one = torch.tensor(1.0)
    for timestep, after in zip(grid, next_timesteps, strict=True):
        x0 = estimate_x0(x_t, full_timesteps(x_t, timestep)).x0
        now, later = alpha_bars[timestep], alpha_bars[after] if after >= 0 else one
        beta = betas[timestep] if after == timestep - 1 and not by_ratio else 1 - now / later
        mean_x0 = later.sqrt() * beta / (1 - now)
        mean_xt = (1 - beta).sqrt() * (1 - later) / (1 - now)
        x_t = float(mean_x0) * x0 + float(mean_xt) * x_t
        if timestep > 0:
            variance = ((1 - later) / (1 - now) * beta).clamp(min=_LEAST_VARIANCE)
            x_t = x_t + float(torch.exp(0.5 * variance.log())) * next(noise)
    return x_t
