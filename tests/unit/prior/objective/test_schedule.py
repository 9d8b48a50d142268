"""Noise schedules against closed forms, and conversions between x0, eps and v against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from priorkit.prior.objective.schedule import NoiseSchedule, noise_schedule

NAMES = ("cosine", "linear", "quadratic", "sigmoid")
"""Schedules that do not end at pure noise."""


@pytest.mark.parametrize("timesteps", [10, 100, 1000])
def test_cosine_follows_its_closed_form(timesteps: int) -> None:
    """alpha_bar(t) = f(t + 1) / f(0); only the last beta, which would be 1, is capped."""

    def f(step: int) -> float:
        return math.cos((step / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [f(step + 1) / f(0) for step in range(timesteps - 1)]
    expected.append(expected[-1] * (1 - 0.999))
    alpha_bar = noise_schedule("cosine", timesteps).alpha_bar
    assert alpha_bar.dtype == torch.float64
    np.testing.assert_allclose(alpha_bar.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("timesteps", [50, 100, 1000])
@pytest.mark.parametrize("name", ["linear", "quadratic", "sigmoid"])
def test_schedules_of_rising_betas_follow_their_closed_forms(name: str, timesteps: int) -> None:
    first, last = 1000 / timesteps * 1e-4, 1000 / timesteps * 0.02
    betas = []
    for step in range(timesteps):
        share = step / (timesteps - 1)
        if name == "linear":
            betas.append(first + share * (last - first))
        elif name == "quadratic":
            betas.append((first**0.5 + share * (last**0.5 - first**0.5)) ** 2)
        else:
            betas.append(first + (last - first) / (1 + math.exp(6 - 12 * share)))
    expected = np.exp(np.cumsum(np.log1p(-np.array(betas))))
    np.testing.assert_allclose(noise_schedule(name, timesteps).alpha_bar.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("timesteps", [2, 10, 1000])
def test_jsd_follows_its_closed_form(timesteps: int) -> None:
    """beta(t) = 1 / (T - t), whose product telescopes; it ends at pure noise."""
    betas = 1 / (timesteps - np.arange(timesteps))
    alpha_bar = noise_schedule("jsd", timesteps).alpha_bar
    np.testing.assert_allclose(alpha_bar.numpy(), np.cumprod(1 - betas), rtol=1e-10, atol=1e-14)
    assert alpha_bar[-1] == 0
    assert (alpha_bar.diff() < 0).all()


def test_linear_of_1000_has_the_known_endpoints() -> None:
    """Ho et al. 2020: beta from 1e-4 to 0.02 leaves a signal of about 4.04e-5 of the variance."""
    alpha_bar = noise_schedule("linear", 1000).alpha_bar
    assert alpha_bar[0].item() == pytest.approx(1 - 1e-4, abs=1e-12)
    assert alpha_bar[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)


@pytest.mark.parametrize("timesteps", [200, 500, 2000])
def test_linear_ends_at_about_the_same_noise_for_any_number_of_timesteps(timesteps: int) -> None:
    log_end = math.log(noise_schedule("linear", timesteps).alpha_bar[-1].item())
    assert log_end == pytest.approx(math.log(4.0358e-5), rel=0.04)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("timesteps", [21, 100, 1000])
def test_signal_falls_strictly_and_stays_inside_zero_and_one(name: str, timesteps: int) -> None:
    schedule = noise_schedule(name, timesteps)
    assert len(schedule) == timesteps
    assert schedule.alpha_bar.shape == (timesteps,)
    assert (schedule.alpha_bar > 0).all()
    assert (schedule.alpha_bar < 1).all()
    assert (schedule.alpha_bar.diff() < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_coefficients_keep_the_variance(name: str) -> None:
    schedule = noise_schedule(name, 1000)
    timesteps = torch.arange(1000)
    signal, sigma = schedule.coefficients(timesteps)
    assert signal.shape == sigma.shape == (1000, 1)
    assert signal.dtype == sigma.dtype == torch.float32
    torch.testing.assert_close(signal[:, 0].double() ** 2, schedule.alpha_bar, rtol=1e-6, atol=0)
    # float64 until the square root: 1 - alpha_bar in float32 would lose the first timesteps
    torch.testing.assert_close(sigma[:, 0].double() ** 2, 1 - schedule.alpha_bar, rtol=1e-6, atol=0)


def known() -> NoiseSchedule:
    """A schedule whose coefficients are 0.6 / 0.8 and 0.8 / 0.6."""
    return NoiseSchedule(torch.tensor([0.64, 0.36], dtype=torch.float64))


def test_add_noise_and_targets_by_hand() -> None:
    x0, noise = torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([[10.0, -1.0], [10.0, -1.0]])
    timesteps = torch.tensor([0, 1])
    x_t = known().add_noise(x0, noise, timesteps)
    torch.testing.assert_close(x_t, torch.tensor([[6.8, 1.0], [8.6, 0.4]]))
    assert known().target("x0", x0, noise, timesteps) is x0
    assert known().target("eps", x0, noise, timesteps) is noise
    velocity = known().target("v", x0, noise, timesteps)
    torch.testing.assert_close(velocity, torch.tensor([[0.8 * 10 - 0.6 * 1, -0.8 - 1.2], [6 - 0.8, -0.6 - 1.6]]))


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_prediction_returns_x0_and_noise(prediction: str, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    schedule = noise_schedule(name, 1000)
    timesteps = torch.arange(0, 900, 9)
    x0, noise = torch.randn(100, 5, generator=generator), torch.randn(100, 5, generator=generator)
    x_t = schedule.add_noise(x0, noise, timesteps)
    output = schedule.target(prediction, x0, noise, timesteps)
    found = schedule.to_x0(prediction, output, x_t, timesteps)
    torch.testing.assert_close(found, x0, rtol=1e-3, atol=1e-4)
    late = timesteps >= 90  # where there is enough noise to see it in float32
    torch.testing.assert_close(schedule.to_eps(x0, x_t, timesteps)[late], noise[late], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_pure_noise_leaves_x0_finite(prediction: str) -> None:
    schedule, last = noise_schedule("jsd", 10), torch.tensor([9])
    x0, noise = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]])
    x_t = schedule.add_noise(x0, noise, last)
    assert torch.equal(x_t, noise)
    found = schedule.to_x0(prediction, schedule.target(prediction, x0, noise, last), x_t, last)
    torch.testing.assert_close(found, x0)
    torch.testing.assert_close(schedule.to_eps(x0, x_t, last), noise)


@pytest.mark.parametrize("timesteps", [2, 5])
def test_short_cosine_and_jsd_schedules_are_allowed(timesteps: int) -> None:
    for name in ("cosine", "jsd"):
        alpha_bar = noise_schedule(name, timesteps).alpha_bar
        assert (alpha_bar.diff() < 0).all()
        assert alpha_bar[-1] >= 0


@pytest.mark.parametrize("name", ["linear", "quadratic", "sigmoid"])
def test_too_few_timesteps_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"noise_schedule={name} needs more timesteps than 10"):
        noise_schedule(name, 10)


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match=r"'cosin': known are cosine, linear, quadratic, jsd and sigmoid"):
        noise_schedule("cosin", 100)
