"""The diffusion loss against its formula in numpy, in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from priorkit.prior.model.config import PriorConfig
from priorkit.prior.network.interface import Condition
from priorkit.prior.network.network import PriorNetwork
from priorkit.prior.objective.diffusion import diffusion_loss, min_snr_weight
from priorkit.prior.objective.normaliser import EmbeddingNormaliser
from priorkit.prior.objective.randomness import StepRandomness, step_randomness
from priorkit.prior.objective.schedule import noise_schedule
from priorkit.prior.objective.settings import DiffusionSettings

from ..reference import Text, single_pass

MakeConfig = Callable[..., PriorConfig]
MakeNetwork = Callable[..., PriorNetwork]
CountCalls = Callable[[PriorNetwork], list[tuple[int, bool]]]


def randomness(
    seed: int = 3, step: int = 7, batch: int = 64, text_drop: float = 0.25, image_drop: float = 0.25, dim: int = 8,
    draws: int = 1, first: int = 0, timesteps: int = 100,
) -> StepRandomness:  # fmt: skip
    diffusion = DiffusionSettings(timesteps=timesteps, text_drop=text_drop, image_drop=image_drop)
    return step_randomness(
        seed=seed, step=step, first=first, rows=batch, draws=draws, embed_dim=dim, diffusion=diffusion
    )


ROWS = 6
DROPS: dict[str, Any] = {"text_drop": 0.4, "image_drop": 0.4}


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def normaliser_of(diffusion: DiffusionSettings) -> EmbeddingNormaliser:
    normaliser = EmbeddingNormaliser(diffusion.normaliser, 8, diffusion.embed_scale)
    normaliser.fit(unit(400, 8, seed=9) + 0.3)
    return normaliser


def encoded(normaliser: EmbeddingNormaliser, image: np.ndarray) -> np.ndarray:
    """Encode in numpy, from the statistics."""
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
def test_the_loss_follows_its_formula_in_numpy(
    make_config: MakeConfig, make_network: MakeNetwork, diffusion: dict[str, Any], network: dict[str, Any]
) -> None:
    settings = DiffusionSettings(timesteps=100, **{**DROPS, **diffusion})
    small, normaliser = make_network(4, dtype=torch.float32, **network), normaliser_of(settings)
    schedule = noise_schedule(settings.noise_schedule, 100)
    random = randomness(seed=5, batch=ROWS, text_drop=settings.text_drop, image_drop=settings.image_drop)
    random.timesteps[0] = 99
    random.self_cond[:2] = torch.tensor([[True], [False]])
    image, text = unit(ROWS, 8, seed=2) * 7, Text(unit(ROWS, 8, seed=3), unit(ROWS, 4, 6, seed=4))
    found = diffusion_loss(small, schedule, settings, normaliser, image, Condition(*text), random)

    x0, noise = encoded(normaliser, image.double().numpy()), random.noise[:, 0].double().numpy()
    timesteps = random.timesteps[:, 0]
    alpha_bar = schedule.alpha_bar.numpy()[timesteps.numpy()][:, None]
    signal, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    x_t, estimate = torch.from_numpy(signal * x0 + sigma * noise), None
    architecture = make_config(4, **network).network
    if network.get("self_cond"):  # of rows whose coin says so, without drops
        estimate = single_pass(small, architecture, x_t, timesteps, text)
        estimate = torch.where(random.self_cond, estimate, torch.zeros_like(estimate))
    output = single_pass(
        small, architecture, x_t, timesteps, text, self_cond=estimate,
        drop_text=random.drop_text, drop_image=random.drop_image[:, 0],
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
    dropped = getattr(random, f"drop_{what}").flatten()
    assert 0 < dropped.sum() < 16

    def losses(text_seed: int, noise_seed: int) -> torch.Tensor:
        noisier = dataclasses.replace(random, noise=unit(16, 1, 8, seed=noise_seed) * 3)
        condition = Condition(unit(16, 8, seed=text_seed), None)
        return diffusion_loss(
            network, schedule, settings, normaliser_of(settings), unit(16, 8, seed=1), condition, noisier
        )

    moved = losses(5, 7) - (losses(6, 7) if what == "text" else losses(5, 8))
    assert (moved.abs() > 1e-6).tolist() == (~dropped).tolist()


@pytest.fixture
def count_calls(monkeypatch: pytest.MonkeyPatch) -> CountCalls:
    """Record the tokens of each call of a network's first layer, and whether gradients are on."""

    def count(network: PriorNetwork) -> list[tuple[int, bool]]:
        calls: list[tuple[int, bool]] = []
        layer = network.attention[0].to_qkv
        layer.register_forward_hook(
            lambda module, args, output: calls.append((output.shape[:-1].numel(), torch.is_grad_enabled()))
        )
        return calls

    return count


def test_rows_not_chosen_are_not_self_conditioned(make_network: MakeNetwork, count_calls: CountCalls) -> None:
    """They cost the same as in a batch without self-conditioning, and the first estimate has no gradient."""
    network, schedule = make_network(dtype=torch.float32, self_cond=True), noise_schedule("cosine", 100)
    settings, coins = DiffusionSettings(timesteps=100), torch.tensor([True, False] * 4)
    calls = count_calls(network)

    def losses(coins: torch.Tensor) -> torch.Tensor:
        random = dataclasses.replace(randomness(batch=8, text_drop=0.0), self_cond=coins[:, None])
        condition = Condition(unit(8, 8, seed=3), None)
        return diffusion_loss(
            network, schedule, settings, normaliser_of(settings), unit(8, 8, seed=1), condition, random
        )

    mixed = losses(coins)
    assert calls == [(4, False), (4 * 4, False), (8 + 8 * 4, True)]  # texts and draws of the coin, then all at once
    nobody = losses(torch.zeros(8, dtype=torch.bool))
    assert calls[3:] == [(8 + 8 * 4, True)]  # one pass where no coin says yes
    assert ((mixed - nobody).abs() > 1e-6).tolist() == coins.tolist()


def test_a_network_without_self_conditioning_is_called_once(make_network: MakeNetwork, count_calls: CountCalls) -> None:
    network = make_network(dtype=torch.float32)
    calls = count_calls(network)
    settings = DiffusionSettings(timesteps=100)
    diffusion_loss(
        network, noise_schedule("cosine", 100), settings, normaliser_of(settings), unit(64, 8, seed=1),
        Condition(unit(64, 8, seed=2), None), randomness(text_drop=0.0),
    )  # fmt: skip
    assert calls == [(64 + 64 * 3, True)]


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


# several draws

MANY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pooled text": ({}, {}),
    "token states": ({}, {"max_text_len": 4}),
    "learned padding alone": ({}, {"max_text_len": 4, "token_width": None}),
    "eps": ({"prediction": "eps"}, {"max_text_len": 4}),
    "v and min_snr": ({"prediction": "v", "loss_weighting": "min_snr"}, {"max_text_len": 4}),
    "several tokens": ({}, {"num_time_embeds": 2, "num_image_embeds": 3, "num_text_embeds": 2, "max_text_len": 4}),
    "self_cond": ({}, {"self_cond": True, "max_text_len": 4}),
    "image drop": ({"image_drop": 0.5}, {"max_text_len": 4}),
    "text drop": ({"text_drop": 0.5}, {"max_text_len": 4}),
    "text drop without token states": ({"text_drop": 0.5}, {}),
    "text drop of nearly all": ({"text_drop": 0.9}, {"max_text_len": 4}),
    "text drop of all": ({"text_drop": 1.0}, {"max_text_len": 4}),
    "both drops and self_cond": ({"text_drop": 0.7, "image_drop": 0.5}, {"self_cond": True, "max_text_len": 4}),
    "text drop that leaves the pooled text": ({"text_drop": 0.7}, {"function_version": "1.9.0", "max_text_len": 4}),
    "no null": ({}, {"function_version": "0.23.10", "max_text_len": 4}),
    "l1 and training_clamp": ({"loss": "l1", "training_clamp": True}, {"max_text_len": 4}),
}


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize(("diffusion", "network"), MANY.values(), ids=MANY.keys())
def test_the_loss_of_several_draws_is_the_mean_of_separate_losses(
    make_network: MakeNetwork, diffusion: dict[str, Any], network: dict[str, Any], draws: int
) -> None:
    """Also the gradient; the separate losses are computed for one row and one draw at a time."""
    settings = DiffusionSettings(timesteps=100, **{"text_drop": 0.0, **diffusion})
    small, normaliser = make_network(**network), normaliser_of(settings).double()
    schedule = noise_schedule(settings.noise_schedule, 100)
    random = randomness(seed=5, batch=ROWS, draws=draws, text_drop=settings.text_drop, image_drop=settings.image_drop)
    random = dataclasses.replace(random, noise=random.noise.double())
    image = unit(ROWS, 8, seed=2).double()
    states = unit(ROWS, 4, 6, seed=4).double() if small.takes_token_states else None
    if states is not None:
        states[::2, 3:] = 0.0  # padding
    condition = Condition(unit(ROWS, 8, seed=3).double(), states)

    def losses(rows: slice, random: StepRandomness) -> torch.Tensor:
        some = Condition(condition.text_embed[rows], None if states is None else states[rows])
        return diffusion_loss(small, schedule, settings, normaliser, image[rows], some, random)

    def gradient(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        weights = dict(small.named_parameters())
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(weights, found, strict=True))

    def alone(row: int, draw: int) -> torch.Tensor:
        its = {name: values[row : row + 1, draw : draw + 1] for name, values in vars(random).items() if values.ndim > 1}
        its["drop_text"] = random.drop_text[row : row + 1]
        return losses(slice(row, row + 1), StepRandomness(**its))

    together = losses(slice(None), random)
    apart = torch.cat([torch.stack([alone(row, draw) for draw in range(draws)]).mean(dim=0) for row in range(ROWS)])
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-12)
    weights = torch.linspace(0.5, 1.5, ROWS, dtype=torch.float64)  # so that a mixed-up order shows
    found, expected = gradient((together * weights).sum()), gradient((apart * weights).sum())
    for name in expected:
        assert (found[name] - expected[name]).norm() <= 1e-6 * expected[name].norm() + 1e-12, name


def test_dropped_texts_are_not_computed(make_network: MakeNetwork, count_calls: CountCalls) -> None:
    """One row stands for all rows whose text is dropped."""
    network, settings = make_network(dtype=torch.float32), DiffusionSettings(timesteps=100)
    calls = count_calls(network)
    for count in (1, 4):
        random = randomness(batch=64, draws=count, text_drop=0.5)
        seen = int((~random.drop_text).sum())
        assert seen < 64
        diffusion_loss(
            network, noise_schedule("cosine", 100), settings, normaliser_of(settings), unit(64, 8, seed=1),
            Condition(unit(64, 8, seed=2), None), random,
        )  # fmt: skip
        assert calls.pop() == (seen + 1 + 64 * count * 3, True)


@pytest.mark.parametrize("noise_schedule_name", ["cosine", "jsd"])
@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_min_snr_follows_its_formula(prediction: str, noise_schedule_name: str) -> None:
    schedule = noise_schedule(noise_schedule_name, 100)
    timesteps = torch.arange(100)
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha_bar = schedule.alpha_bar.numpy()
        ratio = alpha_bar / (1 - alpha_bar)
        capped = np.minimum(ratio, 5.0)
        expected = {"x0": capped, "eps": np.where(ratio > 0, capped / ratio, 1.0), "v": capped / (ratio + 1)}
    np.testing.assert_allclose(min_snr_weight(schedule, prediction, timesteps), expected[prediction], rtol=1e-12)


def test_min_snr_weights_the_loss_of_each_draw(make_network: MakeNetwork) -> None:
    network, plain = make_network(), DiffusionSettings(timesteps=100)
    weighted = plain.model_copy(update={"loss_weighting": "min_snr"})
    schedule, random = noise_schedule("cosine", 100), randomness(batch=ROWS)

    def losses(settings: DiffusionSettings) -> torch.Tensor:
        condition = Condition(unit(ROWS, 8, seed=3).double(), None)
        return diffusion_loss(
            network, schedule, settings, normaliser_of(settings), unit(ROWS, 8, seed=2).double(), condition, random
        )

    weights = min_snr_weight(schedule, "x0", random.timesteps[:, 0])
    torch.testing.assert_close(losses(weighted), losses(plain) * weights)
