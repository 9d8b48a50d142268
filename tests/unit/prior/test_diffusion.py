"""The randomness of a step, and the loss against numpy in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from priorkit.prior.diffusion import Condition, StepRandomness, diffusion_loss, step_randomness, to_network_scale
from priorkit.prior.network import PriorNetwork
from priorkit.prior.schedule import noise_schedule

MakeNetwork = Callable[..., PriorNetwork]


def randomness(seed: int = 3, step: int = 7, batch: int = 64, text_drop: float = 0.25, dim: int = 8) -> StepRandomness:
    return step_randomness(seed=seed, step=step, batch=batch, embed_dim=dim, timesteps=100, text_drop=text_drop)


def same(a: StepRandomness, b: StepRandomness) -> list[bool]:
    return [
        torch.equal(a.noise, b.noise),
        torch.equal(a.timesteps, b.timesteps),
        torch.equal(a.drop_text, b.drop_text),
    ]


def test_randomness_is_a_pure_function_of_seed_and_step() -> None:
    first = randomness()
    torch.manual_seed(99)
    np.random.seed(99)
    torch.randn(10)
    assert same(first, randomness()) == [True] * 3
    assert same(first, randomness(step=8)) == [False] * 3
    assert same(first, randomness(seed=4)) == [False] * 3
    # seed and step are told apart, not added up
    assert same(randomness(seed=7, step=3), randomness(seed=3, step=7)) == [False] * 3


def test_randomness_is_what_numpys_philox_gives() -> None:
    random = np.random.Generator(np.random.Philox(key=[3, 7]))
    assert np.array_equal(randomness().noise.numpy(), random.standard_normal((64, 8), np.float32))


def test_shapes_and_types() -> None:
    found = randomness(batch=5)
    assert (found.noise.shape, found.noise.dtype) == ((5, 8), torch.float32)
    assert (found.timesteps.shape, found.timesteps.dtype) == ((5,), torch.int64)
    assert (found.drop_text.shape, found.drop_text.dtype) == ((5,), torch.bool)


def test_timesteps_are_uniform() -> None:
    drawn = torch.cat([randomness(step=step, batch=2000).timesteps for step in range(50)])
    counts = torch.bincount(drawn, minlength=100).double()
    assert len(counts) == 100
    chi_square = ((counts - 1000) ** 2 / 1000).sum().item()
    assert 60 < chi_square < 150  # 99 degrees of freedom: mean 99, deviation 14


def test_noise_is_standard_normal() -> None:
    noise = torch.cat([randomness(step=step, batch=2000).noise for step in range(20)]).double()
    assert noise.mean().item() == pytest.approx(0, abs=4 / math.sqrt(noise.numel()))
    assert noise.var().item() == pytest.approx(1, abs=4 * math.sqrt(2 / noise.numel()))
    assert (noise**4).mean().item() == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("text_drop", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_dropped_texts(text_drop: float) -> None:
    dropped = torch.cat([randomness(step=step, batch=1000, text_drop=text_drop).drop_text for step in range(40)])
    deviation = math.sqrt(text_drop * (1 - text_drop) / len(dropped))
    assert dropped.double().mean().item() == pytest.approx(text_drop, abs=4 * deviation + 1e-12)


def test_to_network_scale_has_norm_sqrt_d_whatever_the_norm_was() -> None:
    generator = torch.Generator().manual_seed(0)
    embed = torch.randn(7, 3, 16, generator=generator, dtype=torch.float64)
    scaled = to_network_scale(embed)
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled.double().norm(dim=-1), torch.full((7, 3), 4.0, dtype=torch.float64))
    torch.testing.assert_close(to_network_scale(embed * 37), scaled)
    expected = embed.numpy() / np.linalg.norm(embed.numpy(), axis=-1, keepdims=True) * 4
    np.testing.assert_allclose(scaled.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert to_network_scale(embed.half()).dtype == torch.float32


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_the_loss_is_numpys(make_network: MakeNetwork, prediction: str, name: str) -> None:
    network, schedule = make_network(4, dtype=torch.float32), noise_schedule(name, 100)
    random = randomness(batch=6)
    generator = torch.Generator().manual_seed(2)
    image = to_network_scale(torch.randn(6, 8, generator=generator))
    text = to_network_scale(torch.randn(6, 8, generator=generator))
    states = torch.randn(6, 4, 6, generator=generator)
    found = diffusion_loss(network, schedule, prediction, image, Condition(text, states), random)

    x0, noise = image.double().numpy(), random.noise.double().numpy()
    alpha_bar = schedule.alpha_bar.numpy()[random.timesteps.numpy()][:, None]
    signal, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    x_t = signal * x0 + sigma * noise
    with torch.no_grad():
        output = network.double()(
            torch.from_numpy(x_t),
            random.timesteps,
            text_embed=text.double(),
            token_states=states.double(),
            drop_text=random.drop_text,
        ).numpy()
    target = {"x0": x0, "eps": noise, "v": signal * noise - sigma * x0}[prediction]
    expected = ((output - target) ** 2).mean(axis=1)
    assert found.shape == (6,)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4)


def test_dropped_rows_do_not_see_their_text(make_network: MakeNetwork) -> None:
    network, schedule = make_network(dtype=torch.float32), noise_schedule("cosine", 100)
    random = randomness(batch=16, text_drop=0.5)
    generator = torch.Generator().manual_seed(2)
    image, text, other = (to_network_scale(torch.randn(16, 8, generator=generator)) for _ in range(3))
    moved = diffusion_loss(network, schedule, "x0", image, Condition(text, None), random) - diffusion_loss(
        network, schedule, "x0", image, Condition(other, None), random
    )
    assert 0 < random.drop_text.sum() < 16
    assert (moved.abs() > 1e-6).tolist() == (~random.drop_text).tolist()
