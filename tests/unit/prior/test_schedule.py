"""Noise schedules against closed forms, and the conversions between x0, eps and v against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from priorkit.prior.schedule import NoiseSchedule, noise_schedule

NAMES = ("cosine", "linear")


@pytest.mark.parametrize("timesteps", [10, 100, 1000])
def test_cosine_is_its_closed_form(timesteps: int) -> None:
    """alpha_bar(t) = f(t + 1) / f(0); only the last beta, which would be 1, is capped."""

    def f(step: int) -> float:
        return math.cos((step / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [f(step + 1) / f(0) for step in range(timesteps - 1)]
    expected.append(expected[-1] * (1 - 0.999))
    alpha_bar = noise_schedule("cosine", timesteps).alpha_bar
    assert alpha_bar.dtype == torch.float64
    np.testing.assert_allclose(alpha_bar.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("timesteps", [50, 100, 1000])
def test_linear_is_its_closed_form(timesteps: int) -> None:
    scale = 1000 / timesteps
    betas = [min(0.999, scale * (1e-4 + (0.02 - 1e-4) * step / (timesteps - 1))) for step in range(timesteps)]
    expected = np.exp(np.cumsum(np.log1p(-np.array(betas))))
    np.testing.assert_allclose(noise_schedule("linear", timesteps).alpha_bar.numpy(), expected, rtol=1e-10)


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
@pytest.mark.parametrize("timesteps", [2, 7, 100, 1000])
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
def test_a_perfect_prediction_gives_back_x0_and_noise(prediction: str, name: str) -> None:
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


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match=r"'sigmoid'.*cosine and linear"):
        noise_schedule("sigmoid", 100)
