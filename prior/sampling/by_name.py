"""Samplers and their timesteps, by the sampler's name."""

from __future__ import annotations

import functools

import torch

from ..network.function_version import FunctionVersion
from ..objective.schedule import NoiseSchedule
from .samplers import Sampler, dalle2_ddim, ddim, ddpm, dpmsolver_pp, log_snr_grid
from .settings import SamplerName
from .unclip import one_step, unclip, unclip_ddpm, unclip_ddpm_grid, unclip_grid

_SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpmsolver++": dpmsolver_pp,
    "unclip": unclip,
    "unclip-ddpm": unclip_ddpm,
    "one-step": one_step,
}


def find_sampler(name: SamplerName, function: FunctionVersion | None, prediction: str) -> Sampler:
    """Return the sampling function with the given name.

    Args:
        name: name of the sampler.
        function: DALLE2-pytorch release that `dalle2-ddim` reproduces. Other samplers ignore it.
        prediction: prediction target of the network: `x0`, `eps` or `v`. Only `dalle2-ddim` uses it.
    """
    if name == "dalle2-ddim":
        assert function is not None
        return functools.partial(dalle2_ddim, function=function, prediction=prediction)
    return _SAMPLERS[name]


def sampling_grid(
    name: SamplerName, schedule: NoiseSchedule, steps: int, function: FunctionVersion | None
) -> list[int]:
    """Return the timesteps at which a sampler estimates x0: `log_snr_grid` for `dpmsolver++`, else `timestep_grid`.

    Raises:
        ValueError: `steps` is out of range, or the sampler does not fit the network.
    """
    even = timestep_grid(name, len(schedule), steps, function)
    return log_snr_grid(schedule, steps) if name == "dpmsolver++" else even


def timestep_grid(name: SamplerName, timesteps: int, steps: int, function: FunctionVersion | None) -> list[int]:
    """Return `steps` timesteps at which a sampler estimates x0, noisiest first.

    They are evenly spaced, and the noisiest timestep of the schedule is the first. Samplers of other tools use the
    timesteps that these tools use.

    Args:
        name: name of the sampler.
        timesteps: number of timesteps in the noise schedule.
        steps: number of steps that the user asks for.
        function: DALLE2-pytorch release that the network reproduces; None if it reproduces none.

    Raises:
        ValueError: `steps` is out of range, or the sampler does not fit the network.
    """
    fewest, most = _step_limits(name, timesteps, function)
    if not fewest <= steps <= most:
        allowed = f"{fewest} to {most} steps" if most > fewest else f"{most} step: set steps={most}"
        raise ValueError(f"steps={steps}: {name} samples this prior in {allowed}")
    if name == "dalle2-ddim":
        assert function is not None
        return dalle2_grid(timesteps, steps, function)
    if name == "unclip":
        return unclip_grid(timesteps, steps)
    if name == "unclip-ddpm":
        return unclip_ddpm_grid(timesteps, steps)
    return [timesteps - 1 - index * timesteps // steps for index in range(steps)]


def _step_limits(name: SamplerName, timesteps: int, function: FunctionVersion | None) -> tuple[int, int]:
    """Return the smallest and the largest number of steps of a sampler."""
    if name == "dalle2-ddim":  # when steps equals timesteps, DALLE2-pytorch uses DDPM instead of DDIM
        if function is None:
            raise ValueError("sampler=dalle2-ddim belongs to networks of DALLE2-pytorch; use ddim, or unclip")
        return 2 if function.ddim_ends_at_x0 else 1, timesteps - 1
    if name == "one-step":
        return 1, 1
    return 2 if name == "unclip" else 1, timesteps


def dalle2_grid(timesteps: int, steps: int, function: FunctionVersion) -> list[int]:
    """Return the timesteps that the DDIM of a DALLE2-pytorch release uses, noisiest first.

    Release 1.10.3 and later releases use one timestep fewer: `steps` - 1.
    """
    if function.ddim_ends_at_x0:
        grid = torch.linspace(-1.0, timesteps, steps + 1)[1:-1]
    else:
        grid = torch.linspace(0.0, timesteps, steps + 2)[1:-1]
    return list(reversed(grid.int().tolist()))
