"""The samplers of diffusers' unCLIP pipelines: against their formula in float64, and on data with a known estimate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from priorkit.prior.objective.schedule import noise_schedule
from priorkit.prior.sampling.by_name import timestep_grid
from priorkit.prior.sampling.samplers import Estimate, EstimateX0
from priorkit.prior.sampling.unclip import (
    float32_schedule,
    one_step,
    unclip,
    unclip_ddpm,
    unclip_ddpm_grid,
    unclip_grid,
)

SCHEDULE = noise_schedule("cosine", 1000)
SAMPLERS = {"unclip": unclip, "unclip-ddpm": unclip_ddpm}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def estimate(x_t: torch.Tensor, timesteps: torch.Tensor) -> Estimate:
    """A smooth function of both arguments."""
    value = torch.tanh(x_t + timesteps[:, None] / 1000)
    return Estimate(value, value)


def test_grids_of_diffusers() -> None:
    assert unclip_grid(1000, 25)[:2] == [999, 957]
    assert unclip_grid(1000, 25)[-2:] == [42, 0]
    assert unclip_grid(1000, 2) == [999, 0]
    assert unclip_ddpm_grid(1000, 25)[:2] == [960, 920]
    assert unclip_ddpm_grid(1000, 7) == [852, 710, 568, 426, 284, 142, 0]


def test_the_schedule_is_the_cosine_one_in_float32() -> None:
    beta, alpha_bar = float32_schedule(1000)
    assert beta.dtype == alpha_bar.dtype == torch.float32
    assert beta.max() <= 0.999
    assert (alpha_bar.double() - SCHEDULE.alpha_bar).abs().max() < 2e-5
    assert torch.equal(alpha_bar, torch.cumprod(1.0 - beta, dim=0))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [2, 7, 25])
def test_steps_are_the_formula(name: Any, steps: int) -> None:
    """The posterior of x_prev given x0 and x_t (Ho et al. 2020, eq. 7), in float64: rounding is up to 1e-3."""
    grid, noise = timestep_grid(name, 1000, steps, None), normal(steps, 2, 4)
    found = SAMPLERS[name](estimate, SCHEDULE, iter(noise), grid)
    alpha_bar = SCHEDULE.alpha_bar
    draws: Iterator[torch.Tensor] = iter(noise.double())
    x_t, stride = next(draws), 1000 // steps
    for index, timestep in enumerate(grid):
        after = timestep - stride if name == "unclip-ddpm" else [*grid, -1][index + 1]
        now, later = alpha_bar[timestep], alpha_bar[after] if after >= 0 else torch.ones((), dtype=torch.float64)
        alpha = now / later
        x0 = estimate(x_t, torch.full((2,), timestep)).x0
        mean = (later.sqrt() * (1 - alpha) * x0 + alpha.sqrt() * (1 - later) * x_t) / (1 - now)
        variance = (1 - later) / (1 - now) * (1 - alpha)
        x_t = mean + variance.sqrt() * next(draws) if timestep > 0 else mean
    assert (found - x_t).abs().max() < 1e-3
    assert next(draws, None) is None  # the initial noise, and one for each step but the last


def test_the_last_coefficient_is_rounded_as_in_diffusers() -> None:
    """In float64, it is 1; in diffusers, it is 0.99947."""

    def one(x_t: torch.Tensor, timesteps: torch.Tensor) -> Estimate:
        return Estimate(torch.ones_like(x_t), torch.ones_like(x_t))

    last = unclip(one, SCHEDULE, itertools.repeat(torch.zeros(1, 2)), [999, 0])
    assert last.tolist()[0][0] == pytest.approx(0.99947, abs=1e-5)


MEAN, DEVIATION = 1.5, 0.5


def posterior_mean(x_t: torch.Tensor, timesteps: torch.Tensor) -> Estimate:
    alpha_bar = SCHEDULE.alpha_bar[timesteps].unsqueeze(-1).to(x_t.dtype)
    gain = alpha_bar.sqrt() * DEVIATION**2 / (alpha_bar * DEVIATION**2 + 1 - alpha_bar)
    value = MEAN + gain * (x_t - alpha_bar.sqrt() * MEAN)
    return Estimate(value, value)


@pytest.mark.parametrize("name", SAMPLERS)
def test_many_steps_draw_the_data(name: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = (torch.randn(4000, 2, generator=generator) for _ in itertools.count())
    drawn = SAMPLERS[name](posterior_mean, SCHEDULE, noise, timestep_grid(name, 1000, 500, None)).double()
    assert drawn.mean().item() == pytest.approx(MEAN, abs=4 * DEVIATION / math.sqrt(drawn.numel()) + 4e-3)
    assert drawn.std().item() == pytest.approx(DEVIATION, rel=0.05)


def test_one_step_is_the_estimate_from_noise() -> None:
    seen: list[int] = []

    def recorded(x_t: torch.Tensor, timesteps: torch.Tensor) -> Estimate:
        seen.extend(timesteps.tolist())
        return Estimate(2 * x_t, 9 * x_t)

    estimator: EstimateX0 = recorded
    noise = normal(2, 3)
    assert torch.equal(one_step(estimator, SCHEDULE, iter([noise]), [999]), 2 * noise)
    assert seen == [999, 999]
