"""The randomness of a step, and the loss against numpy in float64."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from priorkit.prior.config import DiffusionSettings
from priorkit.prior.diffusion import Condition, StepRandomness, diffusion_loss, step_randomness
from priorkit.prior.model import PriorConfig
from priorkit.prior.network import PriorNetwork
from priorkit.prior.normalise import EmbeddingNormaliser
from priorkit.prior.schedule import noise_schedule

from .reference import Text, single_pass

MakeConfig = Callable[..., PriorConfig]
MakeNetwork = Callable[..., PriorNetwork]


def randomness(
    seed: int = 3, step: int = 7, batch: int = 64, text_drop: float = 0.25, image_drop: float = 0.25, dim: int = 8
) -> StepRandomness:
    diffusion = DiffusionSettings(timesteps=100, text_drop=text_drop, image_drop=image_drop)
    return step_randomness(seed=seed, step=step, batch=batch, embed_dim=dim, diffusion=diffusion)


def same(a: StepRandomness, b: StepRandomness) -> list[bool]:
    return [torch.equal(value, vars(b)[name]) for name, value in vars(a).items()]


def test_randomness_is_a_pure_function_of_seed_and_step() -> None:
    first = randomness()
    torch.manual_seed(99)
    np.random.seed(99)
    torch.randn(10)
    assert same(first, randomness()) == [True] * 5
    assert same(first, randomness(step=8)) == [False] * 5
    assert same(first, randomness(seed=4)) == [False] * 5
    # seed and step are told apart, not added up
    assert same(randomness(seed=7, step=3), randomness(seed=3, step=7)) == [False] * 5


def test_shares_of_drops_change_nothing_else() -> None:
    assert same(randomness(text_drop=0.9), randomness()) == [True, True, False, True, True]
    assert same(randomness(image_drop=0.9), randomness()) == [True, True, True, False, True]


def test_drops_and_coin_are_independent() -> None:
    drawn = [randomness(step=step, batch=2000, text_drop=0.5, image_drop=0.5) for step in range(10)]
    masks = [
        torch.cat([getattr(random, name) for random in drawn]).double()
        for name in ("drop_text", "drop_image", "self_cond")
    ]
    assert torch.corrcoef(torch.stack(masks)).fill_diagonal_(0).abs().max() < 4 / math.sqrt(20_000)


def test_the_coin_of_self_conditioning_is_fair() -> None:
    coins = torch.cat([randomness(step=step, batch=1000).self_cond for step in range(40)]).double()
    assert coins.mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(len(coins)))


def test_it_moves_as_one() -> None:
    moved = randomness().to(torch.device("meta"))
    assert {value.device.type for value in vars(moved).values()} == {"meta"}


def test_randomness_is_what_numpys_philox_gives() -> None:
    random = np.random.Generator(np.random.Philox(key=[3, 7]))
    assert np.array_equal(randomness().noise.numpy(), random.standard_normal((64, 8), np.float32))


def test_shapes_and_types() -> None:
    found = randomness(batch=5)
    assert (found.noise.shape, found.noise.dtype) == ((5, 8), torch.float32)
    assert (found.timesteps.shape, found.timesteps.dtype) == ((5,), torch.int64)
    for mask in (found.drop_text, found.drop_image, found.self_cond):
        assert (mask.shape, mask.dtype) == ((5,), torch.bool)


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


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("what", ["text", "image"])
def test_the_share_of_what_is_dropped(what: str, share: float) -> None:
    drawn = [randomness(step=step, batch=1000, **{f"{what}_drop": share}) for step in range(40)]
    dropped = torch.cat([getattr(random, f"drop_{what}") for random in drawn])
    deviation = math.sqrt(share * (1 - share) / len(dropped))
    assert dropped.double().mean().item() == pytest.approx(share, abs=4 * deviation + 1e-12)


# the loss

ROWS = 6
DROPS: dict[str, Any] = {"text_drop": 0.4, "image_drop": 0.4}


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def normaliser_of(diffusion: DiffusionSettings) -> EmbeddingNormaliser:
    normaliser = EmbeddingNormaliser(diffusion.normaliser, 8, diffusion.embed_scale)
    normaliser.fit(unit(400, 8, seed=9) + 0.3)
    return normaliser


def encoded(normaliser: EmbeddingNormaliser, image: np.ndarray) -> np.ndarray:
    """In numpy, from the statistics."""
    image = image / np.linalg.norm(image, axis=-1, keepdims=True)
    if normaliser.kind == "sqrt_dim":
        return np.asarray(image * normaliser.radius)
    moved, scale = image - normaliser.mean.double().numpy(), normaliser.to_network.double().numpy()
    return np.asarray(moved @ scale if normaliser.kind == "whiten" else moved * scale)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "x0": ({}, {}),
    "eps": ({"prediction": "eps"}, {}),
    "v": ({"prediction": "v", "noise_schedule": "linear"}, {}),
    "v at pure noise": ({"prediction": "v", "noise_schedule": "jsd"}, {}),
    "l1": ({"loss": "l1"}, {}),
    "huber": ({"loss": "huber"}, {}),
    "embed_scale": ({"embed_scale": 1.0}, {}),
    "training_clamp": ({"training_clamp": True}, {}),
    "training_clamp, embed_scale and v": ({"training_clamp": True, "embed_scale": 5.0, "prediction": "v"}, {}),
    "standardise": ({"normaliser": "standardise"}, {}),
    "whiten": ({"normaliser": "whiten"}, {}),
    "text drop": ({"image_drop": 0.0}, {}),
    "image drop": ({"text_drop": 0.0}, {}),
    "no drop": ({"text_drop": 0.0, "image_drop": 0.0}, {}),
    "self_cond": ({}, {"self_cond": True}),
    "self_cond of an old release": ({"prediction": "eps"}, {"self_cond": True, "function_version": "1.9.0"}),
    "an older release": ({"text_drop": 0.0, "image_drop": 0.0}, {"function_version": "0.23.10"}),
}


@pytest.mark.parametrize(("diffusion", "network"), CASES.values(), ids=CASES.keys())
def test_the_loss_is_its_formula_in_numpy(
    make_config: MakeConfig, make_network: MakeNetwork, diffusion: dict[str, Any], network: dict[str, Any]
) -> None:
    settings = DiffusionSettings(timesteps=100, **{**DROPS, **diffusion})
    small, normaliser = make_network(4, dtype=torch.float32, **network), normaliser_of(settings)
    schedule = noise_schedule(settings.noise_schedule, 100)
    random = randomness(seed=5, batch=ROWS, text_drop=settings.text_drop, image_drop=settings.image_drop)
    random.timesteps[0] = 99
    random.self_cond[:2] = torch.tensor([True, False])
    image, text = unit(ROWS, 8, seed=2) * 7, Text(unit(ROWS, 8, seed=3), unit(ROWS, 4, 6, seed=4))
    found = diffusion_loss(small, schedule, settings, normaliser, image, Condition(*text), random)

    x0, noise = encoded(normaliser, image.double().numpy()), random.noise.double().numpy()
    alpha_bar = schedule.alpha_bar.numpy()[random.timesteps.numpy()][:, None]
    signal, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    x_t, estimate = torch.from_numpy(signal * x0 + sigma * noise), None
    architecture = make_config(4, **network).network
    if network.get("self_cond"):  # of rows whose coin says so, without drops
        estimate = single_pass(small, architecture, x_t, random.timesteps, text)
        estimate = torch.where(random.self_cond[:, None], estimate, torch.zeros_like(estimate))
    output = single_pass(
        small, architecture, x_t, random.timesteps, text, self_cond=estimate,
        drop_text=random.drop_text, drop_image=random.drop_image,
    ).numpy()  # fmt: skip
    if settings.training_clamp:
        output = output / np.linalg.norm(output, axis=-1, keepdims=True) * normaliser.radius
    target = {"x0": x0, "eps": noise, "v": signal * noise - sigma * x0}[settings.prediction]
    error = np.abs(output - target)
    cost = {"l2": error**2, "l1": error, "huber": np.where(error < 1, error**2 / 2, error - 0.5)}[settings.loss]
    assert found.shape == (ROWS,)
    np.testing.assert_allclose(found.detach().numpy(), cost.mean(axis=1), rtol=2e-4)


@pytest.mark.parametrize("what", ["text", "image"])
def test_dropped_rows_do_not_see_what_is_dropped(make_network: MakeNetwork, what: str) -> None:
    network, schedule = make_network(dtype=torch.float32), noise_schedule("cosine", 100)
    settings = DiffusionSettings(timesteps=100, text_drop=0.5, image_drop=0.5)
    random = randomness(batch=16, text_drop=0.5, image_drop=0.5)
    dropped = getattr(random, f"drop_{what}")
    assert 0 < dropped.sum() < 16

    def losses(text_seed: int, noise_seed: int) -> torch.Tensor:
        noisier = dataclasses.replace(random, noise=unit(16, 8, seed=noise_seed) * 3)
        condition = Condition(unit(16, 8, seed=text_seed), None)
        return diffusion_loss(
            network, schedule, settings, normaliser_of(settings), unit(16, 8, seed=1), condition, noisier
        )

    moved = losses(5, 7) - (losses(6, 7) if what == "text" else losses(5, 8))
    assert (moved.abs() > 1e-6).tolist() == (~dropped).tolist()


def test_rows_whose_coin_says_no_are_not_self_conditioned(make_network: MakeNetwork) -> None:
    """They cost what they cost in a batch where nobody is; and the first estimate carries no gradient."""
    network, schedule = make_network(dtype=torch.float32, self_cond=True), noise_schedule("cosine", 100)
    settings, coins = DiffusionSettings(timesteps=100), torch.tensor([True, False] * 4)
    calls: list[bool] = []
    network.register_forward_hook(lambda module, args, output: calls.append(output.requires_grad))

    def losses(coins: torch.Tensor) -> torch.Tensor:
        random = dataclasses.replace(randomness(batch=8, text_drop=0.0), self_cond=coins)
        condition = Condition(unit(8, 8, seed=3), None)
        return diffusion_loss(
            network, schedule, settings, normaliser_of(settings), unit(8, 8, seed=1), condition, random
        )

    mixed = losses(coins)
    assert calls == [False, True]
    nobody = losses(torch.zeros(8, dtype=torch.bool))
    assert calls == [False, True, True]  # one pass where no coin says yes
    assert ((mixed - nobody).abs() > 1e-6).tolist() == coins.tolist()


def test_a_network_without_self_conditioning_is_asked_once(make_network: MakeNetwork) -> None:
    network, calls = make_network(dtype=torch.float32), []
    network.register_forward_hook(lambda *args: calls.append(1))
    settings = DiffusionSettings(timesteps=100)
    diffusion_loss(
        network, noise_schedule("cosine", 100), settings, normaliser_of(settings), unit(64, 8, seed=1),
        Condition(unit(64, 8, seed=2), None), randomness(),
    )  # fmt: skip
    assert calls == [1]


def test_the_norm_of_an_image_embedding_does_not_matter(make_network: MakeNetwork) -> None:
    network, settings = make_network(dtype=torch.float32), DiffusionSettings(timesteps=100)
    condition, image = Condition(unit(64, 8, seed=2), None), unit(64, 8, seed=1)
    once, again = (
        diffusion_loss(
            network, noise_schedule("cosine", 100), settings, normaliser_of(settings), given, condition, randomness()
        )
        for given in (image, (image * 37).half())
    )
    torch.testing.assert_close(once, again, rtol=2e-2, atol=1e-3)
