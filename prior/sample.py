"""Samplers: free functions that turn noise into embeddings, given a function that estimates x0.

They know nothing of networks or text. `noise` is an iterator of `[B, D]` standard normal tensors, consumed in order:
first the initial noise, then one for each step that adds noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from .network import PrefixCache, PriorNetwork
from .schedule import NoiseSchedule

EstimateX0 = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes x_t `[B, D]` and timesteps `[B]`, returns the estimated clean embeddings `[B, D]`."""

Sampler = Callable[[EstimateX0, NoiseSchedule, Iterator[torch.Tensor], int], torch.Tensor]


def ddpm(estimate_x0: EstimateX0, schedule: NoiseSchedule, noise: Iterator[torch.Tensor], steps: int) -> torch.Tensor:
    """Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, eq. 7), on `steps` evenly spaced timesteps.

    Every step takes a noise, the last one times zero.
    """
    x_t = next(noise)
    grid = timestep_grid(len(schedule), steps)
    for index, timestep in enumerate(grid):
        x0 = estimate_x0(x_t, _timesteps(x_t, timestep))
        now = schedule.alpha_bar[timestep]
        after = schedule.alpha_bar[grid[index + 1]] if index + 1 < len(grid) else torch.ones_like(now)
        kept = now / after
        mean_x0 = after.sqrt() * (1 - kept) / (1 - now)
        mean_xt = kept.sqrt() * (1 - after) / (1 - now)
        deviation = ((1 - kept) * (1 - after) / (1 - now)).sqrt()
        x_t = float(mean_x0) * x0 + float(mean_xt) * x_t + float(deviation) * next(noise)
    return x_t


def ddim(estimate_x0: EstimateX0, schedule: NoiseSchedule, noise: Iterator[torch.Tensor], steps: int) -> torch.Tensor:
    """Deterministic sampling (Song et al. 2020, arXiv 2010.02502, eq. 12 with eta 0), one evaluation a step."""
    x_t = next(noise)
    grid = timestep_grid(len(schedule), steps)
    for index, timestep in enumerate(grid):
        timesteps = _timesteps(x_t, timestep)
        x0 = estimate_x0(x_t, timesteps)
        if index + 1 == len(grid):
            return x0
        x_t = schedule.add_noise(x0, schedule.to_eps(x0, x_t, timesteps), _timesteps(x_t, grid[index + 1]))
    raise AssertionError("a grid has at least one timestep")


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim}


def timestep_grid(timesteps: int, steps: int) -> list[int]:
    """`steps` different timesteps from the noisiest down, evenly spaced; all of them where `steps` is `timesteps`."""
    if not 1 <= steps <= timesteps:
        raise ValueError(f"steps={steps}: a prior of {timesteps} timesteps is sampled in 1 to {timesteps} steps")
    return [timesteps - 1 - index * timesteps // steps for index in range(steps)]


def guided(
    network: PriorNetwork,
    schedule: NoiseSchedule,
    prediction: str,
    cache: PrefixCache,
    null_cache: PrefixCache | None,
    guidance_scale: float,
) -> EstimateX0:
    """The estimate of x0 under classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).

    The null branch drops the text and keeps the noisy image. Its prefix is the same for all rows.

    Args:
        cache: prefix of each row's text.
        null_cache: prefix of dropped text; None where `guidance_scale` is 1.
    """

    def estimate(x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        output = network.suffix(cache, x_t, timesteps)
        if null_cache is not None:
            null = network.suffix(null_cache, x_t, timesteps)
            output = null + guidance_scale * (output - null)
        return schedule.to_x0(prediction, output, x_t, timesteps)

    return estimate


def gaussian_noise(shape: tuple[int, int], generator: torch.Generator, device: torch.device) -> Iterator[torch.Tensor]:
    """Endless standard normal `[B, D]` tensors, drawn on the CPU so that they do not depend on the device."""
    while True:
        yield torch.randn(shape, generator=generator).to(device)


def _timesteps(x_t: torch.Tensor, timestep: int) -> torch.Tensor:
    return torch.full((x_t.shape[0],), timestep, dtype=torch.int64, device=x_t.device)
