"""Samplers on data with a known best estimate, and their use of network and noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from priorkit.prior.network.function_version import FunctionVersion
from priorkit.prior.objective.schedule import NoiseSchedule, noise_schedule
from priorkit.prior.sampling.by_name import find_sampler, sampling_grid, timestep_grid
from priorkit.prior.sampling.samplers import (
    Estimate,
    EstimateX0,
    ddim,
    ddpm,
    dpmsolver_pp,
    generator_noise,
    log_snr_grid,
    seeded_noise,
)

NAMES: tuple[Any, ...] = ("ddpm", "ddim", "dpmsolver++", "dalle2-ddim")
SCHEDULES = ("cosine", "linear", "quadratic", "jsd", "sigmoid")
NEWEST, OLD = FunctionVersion.parse("1.15.6"), FunctionVersion.parse("1.10.2")
MEAN, DEVIATION = 1.5, 0.5
"""The data: x0 ~ N(1.5, 0.5^2)."""
CPU = torch.device("cpu")


def exact(values: torch.Tensor) -> Estimate:
    return Estimate(values, values)


def posterior_mean(schedule: NoiseSchedule) -> EstimateX0:
    """E[x0 | x_t] for normal x0: the best possible estimate."""

    def estimate(x_t: torch.Tensor, timesteps: torch.Tensor) -> Estimate:
        alpha_bar = schedule.alpha_bar[timesteps].unsqueeze(-1).to(x_t.dtype)
        gain = alpha_bar.sqrt() * DEVIATION**2 / (alpha_bar * DEVIATION**2 + 1 - alpha_bar)
        return exact(MEAN + gain * (x_t - alpha_bar.sqrt() * MEAN))

    return estimate


def noise_of(shape: tuple[int, int], seed: int = 0) -> Iterator[torch.Tensor]:
    return generator_noise(shape, torch.Generator().manual_seed(seed), CPU)


def run(
    name: Any, estimate: EstimateX0, schedule: NoiseSchedule, noise: Iterator[torch.Tensor], steps: int
) -> torch.Tensor:
    grid = timestep_grid(name, len(schedule), steps, NEWEST)
    return find_sampler(name, NEWEST, "x0")(estimate, schedule, noise, grid)


# the distribution of the data


@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("name", NAMES[:3])  # the signal shares of DALLE2-pytorch's are one timestep off
def test_many_steps_draw_the_data(name: Any, schedule_name: str) -> None:
    schedule = noise_schedule(schedule_name, 500)
    drawn = run(name, posterior_mean(schedule), schedule, noise_of((8_000, 2)), 500).double()
    standard_error = DEVIATION / math.sqrt(drawn.numel())
    # schedules that leave some signal begin a little off, and the last step leaves out what is still open
    begun_off, left_open = MEAN * schedule.alpha_bar[-1].sqrt().item(), 1 - schedule.alpha_bar[0].item()
    assert drawn.mean().item() == pytest.approx(MEAN, abs=4 * standard_error + 4e-3 + begun_off)
    assert drawn.var().item() == pytest.approx(DEVIATION**2, rel=0.05 + 2 * left_open)
    centred = (drawn - drawn.mean()) / drawn.std()
    assert (centred**4).mean().item() == pytest.approx(3, abs=0.25)
    assert torch.corrcoef(drawn.T)[0, 1].abs() < 0.05


NOISE = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]


def ode_solution(schedule: NoiseSchedule, timestep: int) -> torch.Tensor:
    """Endpoint of the deterministic flow from `NOISE`: between normal distributions the map is affine.

    Args:
        timestep: at which the estimate of x0 is returned.
    """
    start, end = schedule.alpha_bar[-1].item(), schedule.alpha_bar[timestep].item()

    def deviation(alpha_bar: float) -> float:
        return math.sqrt(alpha_bar * DEVIATION**2 + 1 - alpha_bar)

    standard = (NOISE - math.sqrt(start) * MEAN) / deviation(start)
    x_t = math.sqrt(end) * MEAN + deviation(end) * standard
    return posterior_mean(schedule)(x_t, torch.full((61,), timestep)).x0


def error(name: Any, schedule: NoiseSchedule, steps: int) -> float:
    grid = timestep_grid(name, len(schedule), steps, NEWEST)
    found = run(name, posterior_mean(schedule), schedule, iter([NOISE]), steps)
    return (found - ode_solution(schedule, grid[-1])).abs().max().item()


@pytest.mark.parametrize("schedule_name", ["cosine", "linear", "sigmoid"])
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmsolver++", 2)])
def test_deterministic_samplers_converge_to_the_flow(name: Any, order: int, schedule_name: str) -> None:
    """Doubling the steps halves the error of a method of first order, and quarters that of second order.

    Steps are even in log-SNR, for which orders are stated; the grid is a schedule of its own.
    """
    log_snr = torch.linspace(4, -4, 1281, dtype=torch.float64)
    schedule = NoiseSchedule(torch.sigmoid(log_snr))
    errors = [error(name, schedule, steps) for steps in (40, 80, 160, 320)]
    for before, after in itertools.pairwise(errors):
        assert before / after == pytest.approx(2**order, rel=0.3)
    schedule = noise_schedule(schedule_name, 1000)
    few, many = error(name, schedule, 8), error(name, schedule, 250)
    assert many < few / 5


@pytest.mark.parametrize("schedule_name", ["cosine", "linear", "sigmoid", "jsd"])
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_dpmsolver_beats_ddim_at_equal_steps(schedule_name: str, steps: int) -> None:
    schedule = noise_schedule(schedule_name, 1000)
    assert error("dpmsolver++", schedule, steps) < 0.7 * error("ddim", schedule, steps)


@pytest.mark.parametrize("steps", [1, 3, 20, 100])
@pytest.mark.parametrize("schedule_name", ["cosine", "jsd"])
def test_samplers_by_hand(steps: int, schedule_name: str) -> None:
    """Compute in float64 from the papers' formulas, with an estimator that is no fixed point."""
    schedule = noise_schedule(schedule_name, 100)
    noise = [torch.randn(4, 3, generator=torch.Generator().manual_seed(i)).double() for i in range(steps + 1)]
    grid = [99 - index * 100 // steps for index in range(steps)]
    alpha_bar = [*schedule.alpha_bar[grid].tolist(), 1.0]

    def estimate(x_t: torch.Tensor, timesteps: torch.Tensor) -> Estimate:
        return exact(torch.tanh(x_t / 2 + timesteps[:, None] / 50))

    expected = dict.fromkeys(("ddpm", "ddim", "dpmsolver++"), noise[0])
    old = torch.zeros(4, 3)
    for index, timestep in enumerate(grid):
        now, after = alpha_bar[index : index + 2]
        x0 = {name: torch.tanh(x / 2 + timestep / 50) for name, x in expected.items()}
        x = expected["ddpm"]  # Ho et al., eq. 7
        beta = 1 - now / after
        mean = math.sqrt(after) * beta / (1 - now) * x0["ddpm"] + math.sqrt(1 - beta) * (1 - after) / (1 - now) * x
        expected["ddpm"] = mean + math.sqrt((1 - after) / (1 - now) * beta) * noise[index + 1]
        x = expected["ddim"]  # Song et al., eq. 12
        eps = (x - math.sqrt(now) * x0["ddim"]) / math.sqrt(1 - now)
        expected["ddim"] = math.sqrt(after) * x0["ddim"] + math.sqrt(1 - after) * eps
        x, data = expected["dpmsolver++"], x0["dpmsolver++"]  # Lu et al., algorithm 2
        if index + 1 < steps:
            width = _half_log_snr(after) - _half_log_snr(now)
            if index > 0:
                ratio = (_half_log_snr(now) - _half_log_snr(alpha_bar[index - 1])) / width
                data = (1 + 1 / (2 * ratio)) * data - 1 / (2 * ratio) * old
            x = math.sqrt((1 - after) / (1 - now)) * x - math.sqrt(after) * (math.exp(-width) - 1) * data
            expected["dpmsolver++"], old = x, x0["dpmsolver++"]
        else:
            expected["dpmsolver++"] = data
    for name, value in expected.items():
        torch.testing.assert_close(run(name, estimate, schedule, iter(noise), steps), value, rtol=1e-5, atol=1e-5)


def _half_log_snr(alpha_bar: float) -> float:
    return -math.inf if alpha_bar == 0 else 0.5 * math.log(alpha_bar / (1 - alpha_bar))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("steps", [2, 5, 39])
def test_samples_are_finite_from_the_pure_noise_of_jsd(name: Any, prediction: str, steps: int) -> None:
    """Samples are finite at alpha_bar 0, where the signal is 0 and the log-SNR is infinite."""
    schedule = noise_schedule("jsd", 40)
    assert schedule.alpha_bar[-1] == 0

    def estimate(x_t: torch.Tensor, timesteps: torch.Tensor) -> Estimate:
        return exact(schedule.to_x0(prediction, torch.cos(x_t), x_t, timesteps))

    assert torch.isfinite(run(name, estimate, schedule, noise_of((5, 3)), steps)).all()


def test_the_last_step_returns_the_estimate() -> None:
    schedule = noise_schedule("cosine", 100)

    def estimate(x_t: torch.Tensor, timesteps: torch.Tensor) -> Estimate:
        return exact(torch.full_like(x_t, float(timesteps[0])))

    for sampler in (ddpm, ddim, dpmsolver_pp):
        assert (sampler(estimate, schedule, noise_of((2, 3)), [99, 40, 7]) == 7).all()


# the network's evaluations and the noise


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [2, 7, 99])
def test_each_timestep_is_evaluated_once_noisiest_first(name: Any, steps: int) -> None:
    schedule = noise_schedule("cosine", 100)
    asked: list[int] = []

    def estimate(x_t: torch.Tensor, timesteps: torch.Tensor) -> Estimate:
        assert (timesteps.shape, timesteps.dtype) == ((3,), torch.int64)
        assert len(set(timesteps.tolist())) == 1
        asked.append(int(timesteps[0]))
        return exact(torch.full_like(x_t, 0.25))

    drawn = run(name, estimate, schedule, noise_of((3, 2)), steps)
    assert asked == timestep_grid(name, 100, steps, NEWEST)
    assert len(asked) == (steps - 1 if name == "dalle2-ddim" else steps)
    torch.testing.assert_close(drawn, torch.full((3, 2), 0.25))


@pytest.mark.parametrize(
    ("name", "function", "steps", "expected"),
    [
        ("ddim", NEWEST, 5, 1),
        ("dpmsolver++", NEWEST, 5, 1),
        ("ddpm", NEWEST, 5, 6),
        ("ddpm", NEWEST, 1, 2),
        ("dalle2-ddim", NEWEST, 5, 4),  # 4 evaluations, the last without noise
        ("dalle2-ddim", OLD, 5, 5),  # 5 evaluations
        ("dalle2-ddim", NEWEST, 10, 8),  # 9 evaluations, the last without noise, nor the one that steps to 0
    ],
)
def test_noise_is_consumed_as_documented(name: Any, function: FunctionVersion, steps: int, expected: int) -> None:
    """One initial tensor and one per noisy step; all affect the result, except the last of ddpm, times 0."""
    schedule = noise_schedule("cosine", 15)
    grid = timestep_grid(name, 15, steps, function)
    sampler = find_sampler(name, function, "x0")

    def draw(tensors: list[torch.Tensor]) -> torch.Tensor:
        return sampler(posterior_mean(schedule), schedule, iter(tensors), grid)

    tensors = [torch.randn(3, 2, generator=torch.Generator().manual_seed(i)).double() for i in range(expected + 1)]
    noise = iter(tensors)
    drawn = sampler(posterior_mean(schedule), schedule, noise, grid)
    assert len(list(noise)) == 1
    for index in range(expected):
        changed = [*tensors]
        changed[index] = torch.full((3, 2), 5.0, dtype=torch.float64)
        counts = name != "ddpm" or index < expected - 1
        assert torch.equal(draw(changed), drawn) != counts


# grids


@settings(deadline=None)
@given(timesteps=st.integers(2, 2000), name=st.sampled_from(NAMES[:3]), data=st.data())
def test_a_grid_decreases_evenly_from_the_noisiest_timestep(timesteps: int, name: Any, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, timesteps))
    grid = timestep_grid(name, timesteps, steps, NEWEST)
    assert len(grid) == steps
    assert grid[0] == timesteps - 1
    assert grid[-1] >= 0
    assert all(isinstance(timestep, int) for timestep in grid)
    gaps = [before - after for before, after in itertools.pairwise(grid)]
    assert all(gap >= 1 for gap in gaps)  # no timestep twice
    assert not gaps or max(gaps) - min(gaps) <= 1
    # the step to clean data is no longer than the others
    assert grid[-1] + 1 <= math.ceil(timesteps / steps)


@settings(deadline=None)
@given(timesteps=st.integers(3, 2000), data=st.data())
def test_dalle2_grid_follows_its_formula(timesteps: int, data: st.DataObject) -> None:
    """Even spacing from -1 (before 1.10.3 from 0) to T, without the ends, truncated to integers."""
    steps = data.draw(st.integers(2, timesteps - 1))
    grid = timestep_grid("dalle2-ddim", timesteps, steps, NEWEST)
    assert len(grid) == steps - 1
    assert all(before > after >= 0 for before, after in itertools.pairwise([*grid, -1][:-1]))
    for place, timestep in enumerate(reversed(grid), start=1):
        assert timestep == pytest.approx(math.trunc(-1 + place * (timesteps + 1) / steps), abs=1)  # float32
    old = timestep_grid("dalle2-ddim", timesteps, steps, OLD)
    assert len(old) == steps
    for place, timestep in enumerate(reversed(old), start=1):
        assert timestep == pytest.approx(math.trunc(place * timesteps / (steps + 1)), abs=1)


def test_known_grids() -> None:
    assert timestep_grid("ddim", 1000, 1000, NEWEST) == list(range(999, -1, -1))
    assert timestep_grid("ddpm", 2, 2, NEWEST) == [1, 0]
    assert timestep_grid("ddim", 1000, 4, NEWEST) == [999, 749, 499, 249]
    cosine = noise_schedule("cosine", 1000)
    assert sampling_grid("dpmsolver++", cosine, 4, NEWEST) == [999, 954, 568, 62]


@settings(deadline=None)
@given(name=st.sampled_from(["cosine", "linear", "jsd"]), timesteps=st.integers(21, 1500), data=st.data())
def test_a_log_snr_grid_ends_with_that_of_four_times_the_steps(name: Any, timesteps: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, timesteps))
    grid = log_snr_grid(noise_schedule(name, timesteps), steps)
    assert len(grid) == steps
    assert grid[0] == timesteps - 1
    assert all(before > after >= 0 for before, after in itertools.pairwise(grid))
    if steps > 1:
        assert grid[-1] <= timestep_grid("ddim", timesteps, min(4 * steps, timesteps), NEWEST)[-1]


@pytest.mark.parametrize("steps", [8, 16, 32])
def test_dpmsolver_on_its_grid_is_as_exact_as_ddim_in_four_times_the_steps(steps: int) -> None:
    schedule = noise_schedule("cosine", 1000)

    def error_on(name: Any, grid: list[int]) -> float:
        found = find_sampler(name, NEWEST, "x0")(posterior_mean(schedule), schedule, iter([NOISE]), grid)
        return (found - ode_solution(schedule, grid[-1])).abs().max().item()

    fast = error_on("dpmsolver++", sampling_grid("dpmsolver++", schedule, steps, NEWEST))
    assert fast < 1.1 * error_on("ddim", sampling_grid("ddim", schedule, 4 * steps, NEWEST))
    assert timestep_grid("dalle2-ddim", 99, 4, NEWEST) == [74, 49, 24]
    assert timestep_grid("dalle2-ddim", 100, 4, OLD) == [80, 60, 40, 20]


@pytest.mark.parametrize(
    ("name", "function", "steps", "allowed"),
    [
        *[(name, NEWEST, steps, "1 to 100") for name in NAMES[:3] for steps in (-1, 0, 101)],
        *[("dalle2-ddim", NEWEST, steps, "2 to 99") for steps in (0, 1, 100)],
        *[("dalle2-ddim", OLD, steps, "1 to 99") for steps in (0, 100)],
    ],
)
def test_impossible_steps_are_named(name: Any, function: FunctionVersion, steps: int, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"steps={steps}: {name.replace('+', '.')} samples this prior in {allowed} "):
        timestep_grid(name, 100, steps, function)


# noise


def test_generator_noise_depends_on_the_generator_alone() -> None:
    first, second = noise_of((2, 3), seed=5), noise_of((2, 3), seed=5)
    torch.manual_seed(1)
    drawn = [next(first) for _ in range(3)]
    torch.manual_seed(2)
    assert all(torch.equal(value, next(second)) for value in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], torch.randn(2, 3, generator=torch.Generator().manual_seed(5)))


def seeded(seed: int, first: int, texts: int, draws: int, count: int = 3) -> list[torch.Tensor]:
    return list(itertools.islice(seeded_noise(seed, first, texts, draws, 6, CPU), count))


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("texts", [1, 4])
def test_noise_of_a_text_does_not_depend_on_its_batch(first: int, texts: int) -> None:
    """The same holds for the noise of later steps, which ddpm uses."""
    all_, part = seeded(9, 0, 10, 2), seeded(9, first, texts, 2)
    for whole, some in zip(all_, part, strict=True):
        assert (some.shape, some.dtype) == ((texts * 2, 6), torch.float32)
        assert torch.equal(whole[first * 2 : (first + texts) * 2], some)


def test_noise_of_a_text_equals_numpys_philox() -> None:
    random = np.random.Generator(np.random.Philox(key=[9, 7]))
    for found in seeded(9, 7, 1, 2):
        assert np.array_equal(found.numpy(), random.standard_normal((2, 6), np.float32))


def test_noise_differs_by_text_draw_step_and_seed() -> None:
    rows = torch.cat([*seeded(0, 0, 3, 2), *seeded(1, 0, 3, 2), *seeded(2**63 - 1, 0, 3, 2)])
    assert len({row.numpy().tobytes() for row in rows}) == 54


def test_seeded_noise_is_standard_normal() -> None:
    noise = torch.cat(seeded(0, 0, 5000, 2)).double()
    assert noise.mean().item() == pytest.approx(0, abs=4 / math.sqrt(noise.numel()))
    assert noise.var().item() == pytest.approx(1, abs=4 * math.sqrt(2 / noise.numel()))
    assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().max() < 0.03


@pytest.mark.parametrize(
    ("prediction", "release", "basis", "sign"),
    [
        ("x0", "1.15.6", 0.5, 1),
        ("x0", "1.10.4", 2.0, 1),
        ("x0", "0.25.1", 2.0, -1),
        ("eps", "1.15.6", 0.5, 1),
        ("eps", "1.12.2", 2.0, 1),
        ("eps", "0.25.1", 2.0, 1),  # the network's own noise, which has no wrong sign
    ],
)
def test_dalle2_ddim_derives_its_noise_as_its_release_did(
    prediction: str, release: str, basis: float, sign: int
) -> None:
    """The noise comes from the clamped x0 (0.5), or from the unclamped one (2.0) in earlier releases."""
    schedule = noise_schedule("cosine", 100)
    found: list[torch.Tensor] = []

    def recorded(x_t: torch.Tensor, timesteps: torch.Tensor) -> Estimate:
        found.append(x_t)
        return Estimate(torch.full_like(x_t, 0.5), torch.full_like(x_t, 2.0))

    noise = iter([torch.ones(1, 2), *[torch.zeros(1, 2)] * 3])
    find_sampler("dalle2-ddim", FunctionVersion.parse(release), prediction)(recorded, schedule, noise, [60, 30])

    # shares of one timestep earlier, eta 1 (Song et al., eq. 16), and this step's noise is zero
    share, after = schedule.alpha_bar[59].item(), schedule.alpha_bar[29].item()
    variance = (1 - after) / (1 - share) * (1 - share / after)
    signal, sigma = schedule.alpha_bar[60].sqrt().item(), (1 - schedule.alpha_bar[60]).sqrt().item()
    expected = math.sqrt(after) * 0.5 + sign * math.sqrt(1 - after - variance) * (1 - signal * basis) / sigma
    torch.testing.assert_close(found[1], torch.full((1, 2), expected), rtol=1e-5, atol=1e-5)


def test_before_1_10_3_dalle2_ddim_ends_at_a_timestep_without_noise() -> None:
    """The signal share is 1 there, so the last estimate is returned."""
    schedule = noise_schedule("cosine", 100)
    drawn = find_sampler("dalle2-ddim", OLD, "x0")(posterior_mean(schedule), schedule, iter([NOISE]), [50])
    torch.testing.assert_close(drawn, posterior_mean(schedule)(NOISE, torch.full((61,), 50)).x0)


# several generators


def test_each_row_is_drawn_from_its_own_generator() -> None:
    """Each tensor of noise is drawn row by row, as in diffusers."""
    several = generator_noise((3, 4), [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)], CPU)
    alone = [generator_noise((1, 4), torch.Generator().manual_seed(seed), CPU) for seed in (5, 6, 7)]
    for _ in range(3):
        assert torch.equal(next(several), torch.cat([next(noise) for noise in alone]))


def test_a_generator_that_is_given_twice_goes_on() -> None:
    generator = torch.Generator().manual_seed(5)
    rows = next(generator_noise((2, 4), [generator, generator], CPU))
    assert not torch.equal(rows[0], rows[1])
