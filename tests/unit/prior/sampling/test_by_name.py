"""Samplers by name, and the timesteps at which each estimates x0."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest

from priorkit.prior.network.function_version import FunctionVersion
from priorkit.prior.objective.schedule import noise_schedule
from priorkit.prior.sampling.by_name import dalle2_grid, find_sampler, sampling_grid, timestep_grid
from priorkit.prior.sampling.samplers import log_snr_grid
from priorkit.prior.sampling.settings import SamplerName

NEWEST, OLD = FunctionVersion.parse("1.15.6"), FunctionVersion.parse("1.10.2")
SCHEDULE = noise_schedule("cosine", 1000)


@pytest.mark.parametrize("name", get_args(SamplerName))
def test_every_sampler_has_a_function_and_a_grid(name: Any) -> None:
    assert callable(find_sampler(name, NEWEST, "x0"))
    steps = 1 if name == "one-step" else 10
    grid = sampling_grid(name, SCHEDULE, steps, NEWEST)
    assert grid == sorted(grid, reverse=True)
    assert len(set(grid)) == len(grid) == (9 if name == "dalle2-ddim" else steps)
    assert 0 <= grid[-1] <= grid[0] < 1000


def test_samplers_are_different_functions() -> None:
    names = [name for name in get_args(SamplerName) if name != "dalle2-ddim"]
    assert len({find_sampler(name, None, "x0") for name in names}) == len(names)  # type: ignore[arg-type]


def test_grids() -> None:
    assert timestep_grid("ddim", 1000, 4, None) == timestep_grid("ddpm", 1000, 4, None) == [999, 749, 499, 249]
    assert timestep_grid("unclip", 1000, 4, None) == [999, 666, 333, 0]
    assert timestep_grid("unclip-ddpm", 1000, 4, None) == [750, 500, 250, 0]
    assert timestep_grid("one-step", 1000, 1, None) == [999]
    assert sampling_grid("dpmsolver++", SCHEDULE, 4, None) == log_snr_grid(SCHEDULE, 4)
    assert sampling_grid("dalle2-ddim", SCHEDULE, 4, OLD) == dalle2_grid(1000, 4, OLD)


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("unclip", 1, "steps=1: unclip samples this prior in 2 to 1000 steps"),
        ("unclip", 1001, "steps=1001: unclip samples this prior in 2 to 1000 steps"),
        ("unclip-ddpm", 0, "steps=0: unclip-ddpm samples this prior in 1 to 1000 steps"),
        ("ddim", 1001, "steps=1001: ddim samples this prior in 1 to 1000 steps"),
        ("one-step", 64, "steps=64: one-step samples this prior in 1 step: set steps=1"),
        ("dalle2-ddim", 4, "sampler=dalle2-ddim belongs to networks of DALLE2-pytorch; use ddim, or unclip"),
    ],
)
def test_steps_out_of_range_are_refused(name: Any, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampling_grid(name, SCHEDULE, steps, None)


@pytest.mark.parametrize("name", ["unclip", "unclip-ddpm"])
@pytest.mark.parametrize("steps", [2, 3, 7, 24, 25, 64, 333, 999, 1000])
def test_every_timestep_is_visited_once(name: Any, steps: int) -> None:
    grid = timestep_grid(name, 1000, steps, None)
    assert grid[-1] == 0
    assert all(before > after for before, after in itertools.pairwise(grid))
