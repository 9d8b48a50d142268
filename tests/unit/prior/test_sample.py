"""Samplers against data whose posterior mean is known, and what they ask of network and noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from priorkit.prior.network import PriorNetwork
from priorkit.prior.sample import SAMPLERS, EstimateX0, ddim, ddpm, gaussian_noise, guided, timestep_grid
from priorkit.prior.schedule import NoiseSchedule, noise_schedule

MakeNetwork = Callable[..., PriorNetwork]

MEAN, DEVIATION = 1.5, 0.5
"""The data: x0 ~ N(1.5, 0.5^2)."""


def posterior_mean(schedule: NoiseSchedule) -> EstimateX0:
    """E[x0 | x_t] where x0 is normal: the best estimator there is."""

    def estimate(x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        signal, sigma = schedule.coefficients(timesteps)
        gain = signal * DEVIATION**2 / (signal**2 * DEVIATION**2 + sigma**2)
        return MEAN + gain * (x_t - signal * MEAN)

    return estimate


def noise_of(shape: tuple[int, int], seed: int = 0) -> Iterator[torch.Tensor]:
    return gaussian_noise(shape, torch.Generator().manual_seed(seed), torch.device("cpu"))


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_ddpm_draws_the_data(name: str) -> None:
    schedule = noise_schedule(name, 1000)
    drawn = ddpm(posterior_mean(schedule), schedule, noise_of((20_000, 2)), 1000).double()
    standard_error = DEVIATION / math.sqrt(drawn.numel())
    assert drawn.mean().item() == pytest.approx(MEAN, abs=4 * standard_error + 2e-3)
    assert drawn.var().item() == pytest.approx(DEVIATION**2, rel=0.03)
    centred = (drawn - drawn.mean()) / drawn.std()
    assert (centred**4).mean().item() == pytest.approx(3, abs=0.15)
    assert torch.corrcoef(drawn.T)[0, 1].abs() < 0.03


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_ddim_maps_noise_to_the_data(name: str) -> None:
    """The deterministic map between two normal distributions is affine: x0 = mean + deviation * noise."""
    schedule = noise_schedule(name, 1000)
    noise = torch.linspace(-3, 3, 61)[:, None]
    drawn = ddim(posterior_mean(schedule), schedule, iter([noise]), 1000)
    torch.testing.assert_close(drawn, MEAN + DEVIATION * noise, rtol=0, atol=0.02)


def test_few_steps_are_close_and_more_are_closer() -> None:
    schedule = noise_schedule("cosine", 1000)
    noise = torch.linspace(-3, 3, 61)[:, None]
    exact = MEAN + DEVIATION * noise
    errors = [
        (ddim(posterior_mean(schedule), schedule, iter([noise]), steps) - exact).abs().max().item()
        for steps in (4, 16, 64, 256)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.03


@pytest.mark.parametrize("steps", [3, 20, 100])
def test_one_step_of_each_sampler_by_hand(steps: int) -> None:
    """Both samplers in float64 from their papers' formulas, with an estimator that is no fixed point."""
    schedule = noise_schedule("cosine", 100)
    grid = timestep_grid(100, steps)
    noise = [torch.randn(4, 3, generator=torch.Generator().manual_seed(i)) for i in range(steps + 1)]

    def estimate(x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x_t + timesteps[:, None] / 50)

    for name in SAMPLERS:
        x = noise[0].double()
        for index, timestep in enumerate(grid):
            now = schedule.alpha_bar[timestep].item()
            after = schedule.alpha_bar[grid[index + 1]].item() if index + 1 < steps else 1.0
            x0 = torch.tanh(x + timestep / 50)
            if name == "ddim":
                eps = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
                x = math.sqrt(after) * x0 + math.sqrt(1 - after) * eps
            else:
                alpha, beta = now / after, 1 - now / after
                mean = math.sqrt(after) * beta / (1 - now) * x0 + math.sqrt(alpha) * (1 - after) / (1 - now) * x
                x = mean + math.sqrt((1 - after) / (1 - now) * beta) * noise[index + 1].double()
        found = SAMPLERS[name](estimate, schedule, iter(noise), steps)
        torch.testing.assert_close(found.double(), x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_one_evaluation_a_step_from_the_noisiest_down(name: str, steps: int) -> None:
    schedule = noise_schedule("cosine", 100)
    asked: list[int] = []

    def estimate(x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        assert timesteps.shape == (3,)
        assert timesteps.dtype == torch.int64
        assert len(set(timesteps.tolist())) == 1
        asked.append(int(timesteps[0]))
        return torch.full_like(x_t, 0.25)

    drawn = SAMPLERS[name](estimate, schedule, noise_of((3, 2)), steps)
    assert asked == timestep_grid(100, steps)
    torch.testing.assert_close(drawn, torch.full((3, 2), 0.25))


class CountingNoise:
    """Counts the tensors that are taken; fails when more are asked for than there are."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors = tensors
        self.taken = 0

    def __iter__(self) -> CountingNoise:
        return self

    def __next__(self) -> torch.Tensor:
        self.taken += 1
        return self.tensors[self.taken - 1]


@pytest.mark.parametrize(("name", "expected"), [("ddim", 1), ("ddpm", 6)])
def test_noise_is_consumed_as_documented(name: str, expected: int) -> None:
    schedule = noise_schedule("cosine", 100)
    tensors = [torch.randn(3, 2, generator=torch.Generator().manual_seed(i)) for i in range(expected)]
    noise = CountingNoise(tensors)
    drawn = SAMPLERS[name](posterior_mean(schedule), schedule, noise, 5)
    assert noise.taken == expected
    for index in range(expected):
        changed = [value.clone() for value in tensors]
        changed[index] = torch.full((3, 2), 1e30 if index == expected - 1 and name == "ddpm" else 5.0)
        other = SAMPLERS[name](posterior_mean(schedule), schedule, iter(changed), 5)
        if name == "ddpm" and index == expected - 1:
            assert torch.equal(other, drawn)  # the last noise is times zero
        else:
            assert not torch.equal(other, drawn)


@settings(deadline=None)
@given(timesteps=st.integers(2, 2000), data=st.data())
def test_a_grid_falls_evenly_from_the_noisiest_timestep(timesteps: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, timesteps))
    grid = timestep_grid(timesteps, steps)
    assert len(grid) == steps
    assert grid[0] == timesteps - 1
    assert grid[-1] >= 0
    assert all(isinstance(timestep, int) for timestep in grid)
    gaps = [before - after for before, after in itertools.pairwise(grid)]
    assert all(gap >= 1 for gap in gaps)  # no timestep twice
    assert not gaps or max(gaps) - min(gaps) <= 1
    # the step to clean data is no longer than the others
    assert grid[-1] + 1 <= math.ceil(timesteps / steps)


def test_all_steps_are_all_timesteps() -> None:
    assert timestep_grid(1000, 1000) == list(range(999, -1, -1))
    assert timestep_grid(2, 2) == [1, 0]


@pytest.mark.parametrize("steps", [-1, 0, 101])
def test_impossible_steps_are_named(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps={steps}: .* 1 to 100 steps"):
        timestep_grid(100, steps)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_is_its_formula(make_network: MakeNetwork, prediction: str, scale: float) -> None:
    network, schedule = make_network(dtype=torch.float32), noise_schedule("linear", 100)
    generator = torch.Generator().manual_seed(0)
    text, x_t = torch.randn(4, 8, generator=generator), torch.randn(4, 8, generator=generator)
    timesteps = torch.tensor([99, 50, 50, 2])
    dropped = torch.ones(4, dtype=torch.bool)
    cache, null_cache = network.prefix(text), network.prefix(text, None, dropped)
    found = guided(network, schedule, prediction, cache, null_cache, scale)(x_t, timesteps)
    with_text = network(x_t, timesteps, text_embed=text)
    without = network(x_t, timesteps, text_embed=text, drop_text=dropped)
    expected = schedule.to_x0(prediction, without + scale * (with_text - without), x_t, timesteps)
    torch.testing.assert_close(found, expected)
    if scale == 1:
        unguided = guided(network, schedule, prediction, cache, None, 1.0)(x_t, timesteps)
        torch.testing.assert_close(found, unguided, rtol=1e-4, atol=1e-4)
    if scale == 0:
        torch.testing.assert_close(found, schedule.to_x0(prediction, without, x_t, timesteps))


def test_gaussian_noise_depends_on_its_generator_alone() -> None:
    first, second = noise_of((2, 3), seed=5), noise_of((2, 3), seed=5)
    torch.manual_seed(1)
    drawn = [next(first) for _ in range(3)]
    torch.manual_seed(2)
    assert all(torch.equal(value, next(second)) for value in drawn)
    assert not torch.equal(drawn[0], drawn[1])
