"""Guidance against its formula, its cached constants, and its amount of work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from priorkit.pipeline.errors import SettingsError
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.network import PriorNetwork
from priorkit.prior.sampling.guidance import Denoiser, NullBranch, null_prefix
from priorkit.prior.sampling.settings import SampleSettings

from ..reference import Text, relative_error, single_pass

MakePrior = Callable[..., Prior]

B, K, D, T, W = 3, 2, 8, 4, 6
GRID = [99, 60, 20]
TOKENS = {"max_text_len": T}
PADDING = {"max_text_len": T, "token_width": None}

SWITCHES: dict[str, dict[str, Any]] = {
    "no tokens": {},
    "token states": TOKENS,
    "padding alone": PADDING,
    "self_cond": {"self_cond": True},
    "1.9.0": {"function_version": "1.9.0", **TOKENS},
    "1.10.3, padding alone": {"function_version": "1.10.3", **PADDING},
    "1.10.8, self_cond": {"function_version": "1.10.8", "self_cond": True, **TOKENS},
}
every_switch = pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES.keys())


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text_for(prior: Prior, rows: int = B, seed: int = 0) -> Text:
    states = draw(rows, T, W, seed=seed + 1) if prior.network.takes_token_states else None
    return Text(F.normalize(draw(rows, D, seed=seed), dim=-1), states)


def denoiser(prior: Prior, text: Text, null: NullBranch, **settings: Any) -> Denoiser:
    if not null.is_constant:
        settings["null_prefix"] = null_prefix(prior.network, *text)
    return Denoiser(
        prior.network, prior.schedule, prior.config.diffusion, prior.normaliser, prior.network.prefix(*text),
        null=null, grid=GRID, **settings,
    )  # fmt: skip


def at(timestep: int, rows: int = B * K) -> torch.Tensor:
    return torch.full((rows,), timestep)


class Calls:
    """Records the calls of a network, and the rows of each."""

    def __init__(self, network: PriorNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prefixes: list[int] = []
        self.suffixes: list[int] = []
        self.paddings = 0
        prefix, suffix, fill = network.prefix, network.suffix, network._fill_cache

        def counted_prefix(text_embed: torch.Tensor, *rest: Any, **named: Any) -> Any:
            self.prefixes.append(len(text_embed))
            return prefix(text_embed, *rest, **named)

        def counted_suffix(cache: Any, noisy: torch.Tensor, *rest: Any, **named: Any) -> Any:
            self.suffixes.append(len(noisy))
            return suffix(cache, noisy, *rest, **named)

        def counted_fill(tokens: torch.Tensor, before: Any) -> Any:
            self.paddings += before is None
            return fill(tokens, before)

        monkeypatch.setattr(network, "prefix", counted_prefix)
        monkeypatch.setattr(network, "suffix", counted_suffix)
        monkeypatch.setattr(network, "_fill_cache", counted_fill)

    def taken(self) -> tuple[list[int], list[int]]:
        """Return the rows of prefixes and suffixes since the last call."""
        found = self.prefixes, self.suffixes
        self.prefixes, self.suffixes = [], []
        return found


# the formula


@every_switch
@pytest.mark.parametrize("guidance", ["text", "dalle2"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guidance_is_null_plus_scale_times_the_difference(
    make_prior: MakePrior, switches: dict[str, Any], guidance: str, scale: float
) -> None:
    prior = make_prior(**switches)
    network, text, x_t = prior.network, text_for(prior), draw(B * K, D, seed=5)
    drop, rows = torch.ones(B * K, dtype=torch.bool), text.repeat(K)
    estimate, last = denoiser(prior, text, NullBranch(network), guidance=guidance, guidance_scale=scale), None
    for timestep in GRID[:2]:  # the second is conditioned on the first
        found = estimate(x_t, at(timestep)).x0.detach()
        settings = prior.config.network
        known = single_pass(network, settings, x_t, at(timestep), rows, self_cond=last)
        null = single_pass(
            network, settings, x_t, at(timestep), rows,
            drop_text=drop, drop_image=drop if guidance == "dalle2" else None, self_cond=last,
        )  # fmt: skip
        nothing_dropped = guidance == "text" and switches.get("function_version") == "1.10.3"  # has no token states
        assert ((known - null).abs().max() > 1e-2) == (not nothing_dropped)
        assert relative_error(found, null + scale * (known - null)) < 2e-5
        last = found if prior.config.network.self_cond else None


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
@pytest.mark.parametrize("guidance", ["text", "dalle2"])
def test_outputs_are_guided_before_they_become_x0(make_prior: MakePrior, prediction: str, guidance: str) -> None:
    prior = make_prior(prediction=prediction)
    text, x_t, drop = text_for(prior), draw(B, D, seed=5), torch.ones(B, dtype=torch.bool)
    found = denoiser(prior, text, NullBranch(prior.network), guidance=guidance, guidance_scale=2.0)(x_t, at(60, B))
    known, null = (
        prior.network(x_t, at(60, B), text_embed=text.embed, drop_text=mask, drop_image=mask if image else None)
        for mask, image in ((None, False), (drop, guidance == "dalle2"))
    )
    output = null + 2.0 * (known - null)
    alpha_bar = float(prior.schedule.alpha_bar[60])
    expected = {
        "x0": output,
        "eps": (x_t - (1 - alpha_bar) ** 0.5 * output) / alpha_bar**0.5,
        "v": alpha_bar**0.5 * x_t - (1 - alpha_bar) ** 0.5 * output,
    }[prediction]
    torch.testing.assert_close(found.x0, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("clamp", ["none", "unit_box", "sphere"])
@pytest.mark.parametrize("normaliser", ["sqrt_dim", "whiten"])
def test_estimates_are_clamped_after_guidance(make_prior: MakePrior, clamp: str, normaliser: str) -> None:
    prior = make_prior(diffusion={"x0_clamp": clamp, "normaliser": normaliser})
    prior.normaliser.fit(draw(200, D, seed=8) + 0.5)
    text, x_t = text_for(prior), draw(B, D, seed=5)
    x0, unclamped = denoiser(prior, text, NullBranch(prior.network), guidance_scale=4.0)(x_t, at(60, B))
    assert unclamped.abs().max() > 1.5
    if clamp == "none":
        assert torch.equal(x0, unclamped)
    elif clamp == "unit_box":
        assert torch.equal(x0, torch.min(torch.max(unclamped, torch.tensor(-1.0)), torch.tensor(1.0)))
    else:
        decoded, direction = prior.normaliser.decode(x0), prior.normaliser.decode(unclamped)
        torch.testing.assert_close(decoded, F.normalize(direction, dim=-1), rtol=1e-4, atol=1e-4)


def test_self_conditioning_is_on_the_last_clamped_estimate(
    make_prior: MakePrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, given = make_prior(self_cond=True, diffusion={"x0_clamp": "unit_box"}), []
    suffix = prior.network.suffix

    def recorded(*args: Any, self_cond: torch.Tensor | None = None, **named: Any) -> torch.Tensor:
        given.append(self_cond)
        return suffix(*args, self_cond=self_cond, **named)

    monkeypatch.setattr(prior.network, "suffix", recorded)
    for scale in (1.0, 3.0):
        given.clear()
        estimate = denoiser(prior, text_for(prior), NullBranch(prior.network), guidance_scale=scale)
        first = estimate(draw(B, D), at(99, B))
        estimate(draw(B, D, seed=1), at(60, B))
        assert given[0] is None
        assert given[1] is not None
        assert (first.unclamped.abs() > 1).any()
        assert torch.equal(given[1], first.x0 if scale == 1 else first.x0.repeat(2, 1))


# the constants, and the work


@pytest.mark.parametrize("guidance", ["text", "dalle2"])
def test_scale_1_is_one_pass(make_prior: MakePrior, monkeypatch: pytest.MonkeyPatch, guidance: str) -> None:
    prior = make_prior(**TOKENS)
    text, calls = text_for(prior), Calls(prior.network, monkeypatch)
    estimate = denoiser(prior, text, NullBranch(prior.network), guidance=guidance, guidance_scale=1.0)
    for timestep in GRID:
        estimate(draw(B * K, D), at(timestep))
    assert calls.taken() == ([B], [B * K] * 3)


@pytest.mark.parametrize("switches", [{}, TOKENS, PADDING], ids=["no tokens", "token states", "padding alone"])
def test_text_guidance_doubles_the_rows_and_computes_one_constant(
    make_prior: MakePrior, monkeypatch: pytest.MonkeyPatch, switches: dict[str, Any]
) -> None:
    prior = make_prior(**switches)
    null, calls = NullBranch(prior.network), Calls(prior.network, monkeypatch)
    for prefixes in ([B, 1], [B]):  # the constant is there the second time
        estimate = denoiser(prior, text_for(prior), null, guidance_scale=3.0)
        for timestep in GRID:
            estimate(draw(B * K, D), at(timestep))
        assert calls.taken() == (prefixes, [2 * B * K] * 3)


def test_dalle2_guidance_reads_a_table(make_prior: MakePrior, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has one row per timestep and is computed once; then steps cost the same as without guidance."""
    prior = make_prior(**TOKENS)
    null, calls = NullBranch(prior.network), Calls(prior.network, monkeypatch)

    def run(texts: int, seed: int) -> None:
        estimate = denoiser(prior, text_for(prior, texts, seed), null, guidance="dalle2", guidance_scale=3.0)
        for timestep in GRID:
            estimate(draw(texts * K, D), at(timestep, texts * K))

    run(B, 0)
    assert calls.taken() == ([B, 1], [len(GRID)] + [B * K] * 3)
    run(5, 1)
    assert calls.taken() == ([5], [5 * K] * 3)
    null.outputs([99, 50, 20])
    assert calls.taken() == ([], [1])  # timestep 50 alone


@pytest.mark.parametrize("switches", [{}, TOKENS, PADDING], ids=["no tokens", "token states", "padding alone"])
def test_the_table_equals_a_plain_second_pass(make_prior: MakePrior, switches: dict[str, Any]) -> None:
    """The result does not depend on text and image, which are dropped."""
    prior = make_prior(**switches)
    timesteps = [99, 0, 37, 99]
    found, drop = NullBranch(prior.network).outputs(timesteps), torch.ones(4, dtype=torch.bool)
    for seed in (0, 10):
        expected = single_pass(
            prior.network, prior.config.network, draw(4, D, seed=seed), torch.tensor(timesteps),
            text_for(prior, 4, seed), drop_text=drop, drop_image=drop,
        )  # fmt: skip
        assert relative_error(found, expected) < 1e-5


def test_the_table_of_all_timesteps_needs_little_memory(make_prior: MakePrior) -> None:
    """DDPM needs 1000 timesteps: as draws of one text, with 3 tokens of 2 heads each, the bias would take 70 MB."""
    prior = make_prior(timesteps=1000)
    largest = 0
    places = prior.network.positions.forward

    def measured(*args: int) -> Any:
        nonlocal largest
        positions = places(*args)
        largest = max(largest, positions.bias.numel())
        return positions

    prior.network.positions.forward = measured  # type: ignore[method-assign]
    assert NullBranch(prior.network).outputs(list(range(1000))).shape == (1000, D)
    assert largest < 1000


@pytest.mark.parametrize(
    ("switches", "constant", "table"),
    [
        ({}, True, True),
        ({"self_cond": True}, True, False),
        ({"function_version": "1.10.4", "self_cond": True}, True, False),
        ({"function_version": "1.10.3"}, False, False),
        ({"function_version": "1.9.0", **TOKENS}, False, False),
    ],
)
def test_constant_null_branches(
    make_prior: MakePrior, monkeypatch: pytest.MonkeyPatch, switches: dict[str, Any], constant: bool, table: bool
) -> None:
    """With self-conditioning it depends on the last estimate; up to 1.10.3 it keeps the pooled text."""
    prior = make_prior(**switches)
    null = NullBranch(prior.network)
    assert (null.is_constant, null.has_table) == (constant, table)
    text, calls = text_for(prior), Calls(prior.network, monkeypatch)
    estimate = denoiser(prior, text, null, guidance="dalle2", guidance_scale=3.0)
    estimate(draw(B * K, D), at(99))
    prefixes, suffixes = calls.taken()
    assert sorted(prefixes) == ([1, B] if constant else [B, B])
    assert suffixes == ([len(GRID), B * K] if table else [2 * B * K])


def test_padding_is_computed_once(make_prior: MakePrior, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = make_prior(**PADDING)
    calls = Calls(prior.network, monkeypatch)
    for _ in range(3):
        prior.sample(text_embed=draw(B, D), steps=2)
    assert calls.paddings == 1


def change_all(network: PriorNetwork) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)


def change_one(network: PriorNetwork) -> None:
    with torch.no_grad():
        network.null_text.mul_(-1)
        network.null_token_states.mul_(-1)


def load(network: PriorNetwork) -> None:
    network.load_state_dict({name: value * 1.1 for name, value in network.state_dict().items()})


def swap_data(network: PriorNetwork) -> None:
    """Replace the data of one layer in the middle."""
    weight = network.attention[0].to_qkv.weight
    weight.data = weight.data * 1.5


def replace_parameter(network: PriorNetwork) -> None:
    network.null_text = torch.nn.Parameter(-network.null_text.detach())
    network.null_token_states = torch.nn.Parameter(-network.null_token_states.detach())


@pytest.mark.parametrize(
    "change", [change_all, change_one, load, swap_data, replace_parameter], ids=lambda change: change.__name__
)
@pytest.mark.parametrize("guidance", ["text", "dalle2"])
def test_constants_follow_the_weights(make_prior: MakePrior, change: Any, guidance: Any) -> None:
    """After a change, samples equal those of a new prior with the changed weights."""
    prior, settings = make_prior(**PADDING), {"steps": 3, "guidance": guidance, "guidance_scale": 3.0}
    before = prior.sample(text_embed=draw(B, D), **settings)
    change(prior.network)
    changed = prior.sample(text_embed=draw(B, D), **settings)
    fresh = make_prior(**PADDING)
    change(fresh.network)
    torch.testing.assert_close(changed, fresh.sample(text_embed=draw(B, D), **settings), rtol=1e-5, atol=1e-6)
    assert (changed - before).abs().max() > 1e-3


# what is refused


@pytest.mark.parametrize("guidance", ["text", "dalle2"])
def test_releases_before_1_9_are_not_guided(make_prior: MakePrior, guidance: Any) -> None:
    prior = make_prior(function_version="1.8.4")
    assert prior.sample(text_embed=draw(B, D), steps=2).shape == (B, D)
    with pytest.raises(SettingsError, match=r"guidance_scale=3\.0: in dalle2-pytorch 1\.8\.4 nothing was trained"):
        prior.sample(text_embed=draw(B, D), steps=2, guidance_scale=3.0, guidance=guidance)


@pytest.mark.parametrize(
    ("diffusion", "guidance", "message"),
    [
        ({"text_drop": 0.0}, "text", r"guidance_scale=2\.0: this prior was trained without dropping text; use 1"),
        ({"text_drop": 0.0}, "dalle2", r"guidance_scale=2\.0: this prior was trained without dropping text"),
        ({"image_drop": 0.0}, "dalle2", "guidance=dalle2: .*without dropping the image; use guidance=text"),
    ],
)
def test_branches_that_were_not_trained_are_refused(
    make_prior: MakePrior, diffusion: dict[str, Any], guidance: Any, message: str
) -> None:
    prior = make_prior(diffusion=diffusion)
    with pytest.raises(SettingsError, match=message):
        prior.check(SampleSettings(steps=2, guidance_scale=2.0, guidance=guidance))
    prior.check(SampleSettings(steps=2, guidance=guidance))  # without a scale there is nothing to refuse


@pytest.mark.parametrize("switches", [{}, PADDING], ids=["no tokens", "padding alone"])
def test_text_guidance_without_effect_is_refused(make_prior: MakePrior, switches: dict[str, Any]) -> None:
    """Up to 1.10.3 only token states are dropped, and these priors have none."""
    prior = make_prior(function_version="1.9.0", **switches)
    with pytest.raises(SettingsError, match=r"guidance=text: dalle2-pytorch 1\.9\.0 dropped no pooled text; .*dalle2"):
        prior.check(SampleSettings(steps=2, guidance_scale=2.0))
    prior.check(SampleSettings(steps=2, guidance_scale=2.0, guidance="dalle2"))
    prior.check(SampleSettings(steps=2))
    make_prior(function_version="1.9.0", **TOKENS).check(SampleSettings(steps=2, guidance_scale=2.0))


# clamping to a range, and texts of the null branch that are given


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_estimates_are_clamped_to_a_range_after_guidance(make_prior: MakePrior, scale: float) -> None:
    plain, x_t = make_prior(), draw(B * K, D, seed=5)
    text = text_for(plain)
    free = denoiser(plain, text, NullBranch(plain.network), guidance_scale=scale)(x_t, at(60))
    limit = float(free.x0.detach().abs().median())
    clamped = make_prior(diffusion={"x0_clamp": "range", "clip_sample_range": limit})
    found = denoiser(clamped, text, NullBranch(clamped.network), guidance_scale=scale)(x_t, at(60))
    torch.testing.assert_close(found.unclamped, free.x0)
    torch.testing.assert_close(found.x0, free.x0.clamp(-limit, limit))
    assert 0 < (found.x0.abs() == limit).float().mean() < 1


@pytest.mark.parametrize("switches", [{}, TOKENS, {"self_cond": True}], ids=repr)
def test_a_given_null_prefix_replaces_the_dropped_text(make_prior: MakePrior, switches: dict[str, Any]) -> None:
    prior, x_t = make_prior(**switches), draw(B * K, D, seed=5)
    network, text, negative = prior.network, text_for(prior), text_for(prior, seed=40)
    null = NullBranch(network)
    given = network.prefix(*negative)
    estimates = [
        Denoiser(
            network, prior.schedule, prior.config.diffusion, prior.normaliser, network.prefix(*text),
            guidance_scale=3.0, null=null, null_prefix=given, grid=GRID,
        )(x_t, at(60)),
        denoiser(prior, text, null, guidance_scale=1.0)(x_t, at(60)),
        denoiser(prior, negative, null, guidance_scale=1.0)(x_t, at(60)),
        denoiser(prior, text, null, guidance_scale=3.0)(x_t, at(60)),
    ]  # fmt: skip
    found, known, against, dropped = (estimate.x0.detach() for estimate in estimates)
    torch.testing.assert_close(found, against + 3 * (known - against), rtol=1e-4, atol=1e-4)
    assert (found - dropped).abs().max() > 1e-3
