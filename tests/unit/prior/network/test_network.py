"""The network against one pass over all tokens in float64, and the consequences of its token order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from priorkit.prior.model.config import PriorConfig
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.cache import PrefixCache
from priorkit.prior.network.network import PriorNetwork
from priorkit.prior.sampling.guidance import Denoiser, NullBranch, null_prefix
from priorkit.prior.sampling.samplers import Estimate, ddim
from priorkit.prior.sampling.settings import SampleSettings

from ..reference import RELEASES, Text, guided, relative_error, single_pass, uncached_ddim

MakeConfig = Callable[..., PriorConfig]
MakeNetwork = Callable[..., PriorNetwork]
MakePrior = Callable[..., Prior]

B, D, W, T = 5, 8, 6, 4
"""Number of rows, embedding size, width of token states, and max_text_len."""

TOKENS = {"max_text_len": T}
PADDING = {"max_text_len": T, "token_width": None}
SELF_COND = {"self_cond": True}

SWITCHES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one layer": {"depth": 1},
    "num_time_embeds": {"num_time_embeds": 2},
    "num_image_embeds": {"num_image_embeds": 3},
    "num_text_embeds": {"num_text_embeds": 2, **TOKENS},
    "learned time": {"num_timesteps": 100},
    "several learned time tokens": {"num_timesteps": 120, "num_time_embeds": 3, "num_image_embeds": 2},
    "token states": TOKENS,
    "more token states than exact buckets": {"max_text_len": 40},
    "token states as wide as the stream": {**TOKENS, "token_width": 16},
    "padding alone": PADDING,
    "padding and several text tokens": {**PADDING, "num_text_embeds": 3},
    "self_cond": SELF_COND,
    "self_cond and token states": {**SELF_COND, **TOKENS},
    "self_cond and several images": {**SELF_COND, "num_image_embeds": 2},
    "no rotary_emb": {"rotary_emb": False, **TOKENS},
    "heads wider than what is rotated": {"dim_head": 36, **TOKENS},
    "dim_head that is no multiple of 4": {"dim_head": 10},
    "one head": {"heads": 1},
    "norm_in": {"norm_in": True, **TOKENS},
    "no norm_out": {"norm_out": False},
    "no final_proj": {"final_proj": False, "embed_dim": 16},
    "a stream as wide as the embedding": {"embed_dim": 16, **TOKENS},
    "another encoder's text": {"text_dim": 12, **TOKENS},
    "normformer": {"normformer": True},
    "ff_mult": {"ff_mult": 1.4},
    "normformer, norm_in, no rotary_emb": {"normformer": True, "norm_in": True, "rotary_emb": False},
    **{f"release {release}": {"function_version": release, **TOKENS} for release in RELEASES},
    **{f"release {release}, padding alone": {"function_version": release, **PADDING} for release in RELEASES},
    **{
        f"release {release}, self_cond": {"function_version": release, **SELF_COND, "num_image_embeds": 2}
        for release, function in RELEASES.items()
        if function.self_cond != "none"
    },
    **{
        f"release {release}, learned time": {"function_version": release, "num_timesteps": 100, "embed_dim": 16}
        for release in ("0.23.10", "1.8.4", "1.9.0")
    },
}

every_switch = pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES.keys())


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def text_for(config: PriorConfig, rows: int = B, seed: int = 0) -> Text:
    """Random unit text embeddings; token states with padding at the end, in the middle, and of no state at all."""
    embed = F.normalize(draw(rows, config.text_dim or config.embed_dim, seed=seed), dim=-1)
    if config.token_width is None:
        return Text(embed)
    length = config.network.max_text_len
    states = draw(rows, length, config.token_width, seed=seed + 1)
    for row in range(rows):
        states[row, length - row % length :] = 0
    states[0, 1] = 0
    return Text(embed, states)


def call(network: PriorNetwork, noisy: torch.Tensor, timesteps: torch.Tensor, text: Text, **rest: Any) -> torch.Tensor:
    result: torch.Tensor = network(noisy, timesteps, text_embed=text.embed, token_states=text.states, **rest)
    return result


TIMESTEPS = torch.tensor([0, 1, 50, 98, 99])


@every_switch
def test_forward_equals_one_pass_over_all_tokens(
    make_config: MakeConfig, make_network: MakeNetwork, switches: dict[str, Any]
) -> None:
    config, network = make_config(**switches), make_network(**switches)
    noisy, text = draw(B, config.embed_dim, seed=5), text_for(config)
    drops = RELEASES[config.network.function_version].drop != "nothing"
    optional: dict[str, Any] = {
        "drop_text": torch.tensor([False, False, True, True, False]) if drops else None,
        "drop_image": torch.tensor([False, True, False, True, False]) if drops else None,
        "self_cond": draw(B, config.embed_dim, seed=6) if config.network.self_cond else None,
    }
    found = call(network, noisy, TIMESTEPS, text, **optional)
    expected = single_pass(network, config.network, noisy, TIMESTEPS, text, **optional)
    assert found.shape == (B, config.embed_dim)
    assert found.dtype == torch.float64
    assert (expected.std(dim=0) > 0.01).all()  # the comparison below means something
    assert relative_error(found, expected) < 1e-6


UNGUIDED = ("defaults", "num_text_embeds", "token states", "padding alone", "self_cond")
"""Switches that are also tested without guidance, which otherwise is a part of what guidance computes."""


assert set(UNGUIDED) <= set(SWITCHES)


def sampled(name: str) -> list[tuple[float, str]]:
    """Guidance scales and kinds to test a switch with; releases that cannot drop the text have no guidance."""
    release = RELEASES[SWITCHES[name].get("function_version", "1.15.6")]
    unguided, guidance = [(1.0, "text")], [(3.0, "text"), (3.0, "dalle2")]
    return unguided if release.drop == "nothing" else [*(unguided if name in UNGUIDED else []), *guidance]


SAMPLED = {
    f"{name}, {kind} {scale}": (switches, scale, kind)
    for name, switches in SWITCHES.items()
    for scale, kind in sampled(name)
}
IN_FLOAT64 = {
    name: (switches, scale, kind)
    for name, (switches, scale, kind) in SAMPLED.items()
    if (scale, kind) != (3.0, "text") or "self_cond" in switches or name.split(",")[0] in UNGUIDED
}
"""Whole runs in float64. Guidance of kind `text` differs in what each step computes, which is tested step by step."""


def denoiser(prior: Prior, text: Text, scale: float, guidance: Any, grid: list[int]) -> Denoiser:
    """Build the denoiser as `Prior.draw` does."""
    network = prior.network
    return Denoiser(
        network, prior.schedule, prior.config.diffusion, prior.normaliser, network.prefix(*text),
        guidance=guidance, guidance_scale=scale, null=NullBranch(network),
        null_prefix=None if scale == 1 else null_prefix(network, *text), grid=grid,
    )  # fmt: skip


every_guidance = pytest.mark.parametrize(("switches", "scale", "guidance"), SAMPLED.values(), ids=SAMPLED.keys())
GRID = [99, 66, 33]


@pytest.mark.parametrize(("switches", "scale", "guidance"), IN_FLOAT64.values(), ids=IN_FLOAT64.keys())
def test_cached_sampling_equals_uncached_sampling(
    make_prior: MakePrior, switches: dict[str, Any], scale: float, guidance: Any
) -> None:
    """One prefix for all steps and draws against whole passes at every step, in float64."""
    prior = make_prior(**switches)
    prior.network.double()
    text, noise = text_for(prior.config, 2), draw(4, prior.config.embed_dim, seed=7)
    estimate = denoiser(prior, text, scale, guidance, GRID)
    found = F.normalize(ddim(estimate, prior.schedule, iter([noise]), GRID), dim=-1)
    expected = uncached_ddim(
        prior.network, prior.config.network, noise, text.repeat(2), GRID, timesteps=100, scale=scale, guidance=guidance
    )
    assert (expected[::2] - expected[1::2]).abs().max() > 1e-4  # the draws of a text differ
    assert relative_error(found, expected) < 1e-5


@every_guidance
def test_every_step_of_cached_sampling_equals_an_uncached_pass(
    make_prior: MakePrior, switches: dict[str, Any], scale: float, guidance: Any
) -> None:
    """Each step in float32 and with packed weights, compared from its own input.

    Small random networks amplify the rounding of one step in the next, so whole runs cannot be compared.
    """
    prior = make_prior(**switches)
    text, noise = in_float32(text_for(prior.config, 2)), draw(4, prior.config.embed_dim, seed=7).float()
    steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    with torch.inference_mode():
        estimate = denoiser(prior, text, scale, guidance, GRID)

        def recorded(x_t: torch.Tensor, timesteps: torch.Tensor) -> Estimate:
            result = estimate(x_t, timesteps)
            steps.append((x_t, timesteps, result.x0))
            return result

        ddim(recorded, prior.schedule, iter([noise]), GRID)
    assert len(steps) == len(GRID)
    last = None
    for x_t, timesteps, x0 in steps:
        expected = guided(
            prior.network, prior.config.network, x_t.double(), timesteps, text.repeat(2),
            scale=scale, guidance=guidance, self_cond=last,
        )  # fmt: skip
        assert relative_error(x0, expected) < 1e-5
        last = x0.double()


@pytest.mark.parametrize(
    "name",
    [
        "num_text_embeds, text 1.0", "num_text_embeds, text 3.0", "learned time, dalle2 3.0", "token states, text 1.0",
        "token states, text 3.0", "padding alone, text 1.0", "release 0.23.10, text 1.0",
    ],
)  # fmt: skip
def test_samples_equal_those_of_uncached_sampling(make_prior: MakePrior, name: str) -> None:
    """Through `Prior.draw`, in float32, end to end."""
    switches, scale, guidance = SAMPLED[name]
    prior = make_prior(**switches)
    text, noise = in_float32(text_for(prior.config, 2)), draw(4, prior.config.embed_dim, seed=7).float()
    settings = SampleSettings(steps=len(GRID), guidance_scale=scale, guidance=guidance)
    found = prior.draw(text.embed, text.states, 2, settings, iter([noise])).flatten(0, 1)
    expected = uncached_ddim(
        prior.network, prior.config.network, noise, text.repeat(2), GRID, timesteps=100, scale=scale, guidance=guidance
    )
    assert relative_error(found, expected) < 1e-5


def in_float32(text: Text) -> Text:
    return Text(text.embed.float(), None if text.states is None else text.states.float())


@every_switch
@pytest.mark.parametrize("shared_time", [True, False])
def test_draws_of_one_prefix_equal_separate_runs(
    make_config: MakeConfig, make_network: MakeNetwork, switches: dict[str, Any], shared_time: bool
) -> None:
    """Draws of a text at a shared timestep, given once or per draw, and draws at different timesteps."""
    config, network, draws = make_config(**switches), make_network(**switches), 3
    text, noisy = text_for(config, 2), draw(2 * draws, config.embed_dim, seed=5)
    estimate = draw(2 * draws, config.embed_dim, seed=6) if config.network.self_cond else None
    of_rows = torch.tensor([7, 7, 7, 93, 93, 93] if shared_time else [0, 99, 3, 3, 50, 98])
    cache = network.prefix(*text)
    expected = call(network, noisy, of_rows, text.repeat(draws), self_cond=estimate)
    found = network.suffix(cache, noisy, of_rows, self_cond=estimate)
    assert relative_error(found, expected) < 1e-12
    if shared_time:
        found = network.suffix(cache, noisy, of_rows[::draws], self_cond=estimate)
        assert relative_error(found, expected) < 1e-12


def test_draws_do_not_see_each_other(make_network: MakeNetwork) -> None:
    network = make_network(T)
    cache, noisy = network.prefix(draw(1, D), draw(1, T, W)), draw(3, D, seed=5)
    changed = noisy.clone()
    changed[1] += 1
    before, after = (network.suffix(cache, values, torch.tensor([30])) for values in (noisy, changed))
    assert (before != after).any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("switches", [{}, TOKENS, PADDING], ids=["no tokens", "tokens", "padding alone"])
def test_rows_do_not_see_each_other(
    make_config: MakeConfig, make_network: MakeNetwork, switches: dict[str, Any]
) -> None:
    network, text, noisy = make_network(**switches), text_for(make_config(**switches)), draw(B, D, seed=5)
    whole = call(network, noisy, TIMESTEPS, text)
    for row in range(B):
        only = slice(row, row + 1)
        states = None if text.states is None else text.states[only]
        alone = call(network, noisy[only], TIMESTEPS[only], Text(text.embed[only], states))
        torch.testing.assert_close(alone, whole[only], rtol=1e-10, atol=1e-10)


def tensors(cache: PrefixCache) -> list[torch.Tensor]:
    return [part for layer in cache.layers for part in layer]


@pytest.mark.parametrize(("switches", "length"), [({}, 1), (TOKENS, T + 1), ({**PADDING, "num_text_embeds": 2}, T + 2)])
def test_every_layer_caches_the_null_position_and_the_text(
    make_config: MakeConfig, make_network: MakeNetwork, switches: dict[str, Any], length: int
) -> None:
    cache = make_network(**switches).prefix(*text_for(make_config(**switches)))
    assert (cache.texts, cache.tokens, len(cache.layers)) == (B, length, 2)
    assert {part.shape for part in tensors(cache)} == {(B, 1 + length, 8)}  # all heads share it


def test_use_does_not_change_the_cache(make_config: MakeConfig, make_network: MakeNetwork) -> None:
    network, noisy = make_network(T), draw(B, D)
    cache = network.prefix(*text_for(make_config(T)))
    before = [part.clone() for part in tensors(cache)]
    first = network.suffix(cache, noisy, TIMESTEPS)
    network.suffix(cache, noisy * 100, TIMESTEPS.flip(0))
    assert all(torch.equal(now, then) for now, then in zip(tensors(cache), before, strict=True))
    assert torch.equal(network.suffix(cache, noisy, TIMESTEPS), first)


def test_cached_padding_follows_the_weights(make_network: MakeNetwork) -> None:
    network, fills, text = make_network(T, token_width=None, dtype=torch.float32), [], draw(B, D).float()
    fill = network._fill_cache
    network._fill_cache = lambda tokens, before: (fills.append(before), fill(tokens, before))[1]  # type: ignore[method-assign]
    with torch.inference_mode():
        network.prefix(text)
        network.prefix(text)
        assert [before is None for before in fills] == [True, False, False]  # the padding once, then the texts
        network.null_token_states.mul_(-1)
        changed = network.prefix(text)
        network.clear_derived()
        assert network._cached_padding.value is None
        expected = network.prefix(text)
    assert all(torch.equal(a, b) for a, b in zip(tensors(changed), tensors(expected), strict=True))
    assert fills[3] is None


def test_earlier_text_tokens_do_not_see_later_ones(make_network: MakeNetwork) -> None:
    network, text, states = make_network(T), draw(B, D), draw(B, T, W)
    changed = states.clone()
    changed[:, 2] += 1
    old, new = network.prefix(text, states), network.prefix(text, changed)
    for before, after in zip(tensors(old), tensors(new), strict=True):  # the null, then the states
        torch.testing.assert_close(before[:, :3], after[:, :3], rtol=1e-13, atol=1e-13)
        assert (before[:, 3] - after[:, 3]).abs().amax(dim=1).min() > 1e-6
    # and from the second layer on, what comes after sees the change
    assert (old.layers[1].keys[:, 4:] - new.layers[1].keys[:, 4:]).abs().amax(dim=2).min() > 1e-6


@pytest.mark.parametrize("what", ["noisy", "timesteps", "text", "states", "self_cond"])
def test_the_prediction_depends_on_every_input(make_network: MakeNetwork, what: str) -> None:
    network = make_network(T, self_cond=True)
    given = {
        "noisy": draw(B, D, seed=1), "timesteps": TIMESTEPS, "text": draw(B, D, seed=2),
        "states": draw(B, T, W, seed=3), "self_cond": draw(B, D, seed=4),
    }  # fmt: skip

    def run(values: dict[str, torch.Tensor]) -> torch.Tensor:
        text = Text(values["text"], values["states"])
        return call(network, values["noisy"], values["timesteps"], text, self_cond=values["self_cond"])

    moved = (run(given) - run({**given, what: given[what].flip(0)})).abs().amax(dim=1)
    rows = [row for row in range(B) if row != B // 2]  # the middle row is its own mirror image
    assert (moved[rows] > 1e-4).all()
    assert moved[B // 2] < 1e-12


def test_self_conditioning_defaults_to_zeros(make_network: MakeNetwork) -> None:
    network, noisy, text = make_network(self_cond=True), draw(B, D), Text(draw(B, D, seed=1))
    nothing = call(network, noisy, TIMESTEPS, text)
    assert torch.equal(nothing, call(network, noisy, TIMESTEPS, text, self_cond=torch.zeros_like(noisy)))


def test_a_network_without_self_conditioning_ignores_estimates(make_network: MakeNetwork) -> None:
    network, noisy, text = make_network(), draw(B, D), Text(draw(B, D, seed=1))
    given = call(network, noisy, TIMESTEPS, text, self_cond=draw(B, D, seed=2))
    assert torch.equal(given, call(network, noisy, TIMESTEPS, text))


DROP = torch.tensor([True, True, True, True, False])


@pytest.mark.parametrize("switches", [{}, TOKENS, PADDING], ids=["no tokens", "tokens", "padding alone"])
def test_dropped_text_is_the_same_for_all_texts(
    make_config: MakeConfig, make_network: MakeNetwork, switches: dict[str, Any]
) -> None:
    network, text = make_network(**switches), text_for(make_config(**switches))
    dropped, complete = network.prefix(*text, DROP), network.prefix(*text)
    for some, all_ in zip(tensors(dropped), tensors(complete), strict=True):
        assert torch.equal(some[1:4], some[:1].expand(3, -1, -1))
        assert (some[4] - some[0]).abs().max() > 1e-3
        assert torch.equal(some[4], all_[4])


@pytest.mark.parametrize(("release", "tells_texts_apart"), [("1.9.0", True), ("1.10.3", True), ("1.10.4", False)])
def test_the_pooled_text_is_dropped_from_1_10_4_on(
    make_network: MakeNetwork, release: str, tells_texts_apart: bool
) -> None:
    network = make_network(T, function_version=release)
    cache = network.prefix(draw(B, D), draw(B, T, W), torch.ones(B, dtype=torch.bool))
    text = cache.layers[0].values[:, -1]
    assert ((text[1:] - text[0]).abs().max() > 1e-3) == tells_texts_apart
    assert torch.equal(cache.layers[0].values[:, :-1], cache.layers[0].values[:1, :-1].expand(B, -1, -1))


@pytest.mark.parametrize("release", ["0.23.10", "1.8.4"])
def test_releases_before_1_9_cannot_drop_the_text(make_network: MakeNetwork, release: str) -> None:
    with pytest.raises(ValueError, match=f"{release} cannot drop the text"):
        make_network(function_version=release).prefix(draw(B, D), None, DROP)


def test_the_noisy_image_matters_if_only_the_text_is_dropped(make_network: MakeNetwork) -> None:
    network, drop, same = make_network(), torch.ones(B, dtype=torch.bool), torch.zeros(B, dtype=torch.int64)
    text_dropped = call(network, draw(B, D), same, Text(draw(B, D, seed=1)), drop_text=drop)
    assert (text_dropped[1:] - text_dropped[0]).abs().amax(dim=1).min() > 1e-3
    both_dropped = call(network, draw(B, D), same, Text(draw(B, D, seed=1)), drop_text=drop, drop_image=drop)
    torch.testing.assert_close(both_dropped, both_dropped[:1].expand(B, -1), rtol=1e-12, atol=1e-12)


def test_an_old_self_conditioned_network_ignores_a_dropped_image(make_network: MakeNetwork) -> None:
    """Before 1.12.1 the image has two tokens; both are dropped."""
    network, drop = make_network(function_version="1.10.8", self_cond=True), torch.ones(B, dtype=torch.bool)
    same, text = torch.zeros(B, dtype=torch.int64), Text(draw(B, D, seed=1))
    output = call(network, draw(B, D), same, text, drop_text=drop, drop_image=drop)
    torch.testing.assert_close(output, output[:1].expand(B, -1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_rows_of_zeros_equal_a_shorter_input(make_network: MakeNetwork, length: int) -> None:
    network, text, states = make_network(T), draw(B, D), draw(B, T, W)
    states[:, length:] = 0
    long, short = network.prefix(text, states), network.prefix(text, states[:, :length])
    assert all(torch.equal(a, b) for a, b in zip(tensors(long), tensors(short), strict=True))


def test_token_states_are_cut_at_max_text_len(make_network: MakeNetwork) -> None:
    network, text, states = make_network(T), draw(B, D), draw(B, 9, W)
    long, cut = network.prefix(text, states), network.prefix(text, states[:, :T])
    assert long.tokens == T + 1
    assert all(torch.equal(a, b) for a, b in zip(tensors(long), tensors(cut), strict=True))


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES.keys())
def test_gradient_reaches_every_parameter(
    make_config: MakeConfig, make_network: MakeNetwork, switches: dict[str, Any]
) -> None:
    config, network = make_config(**switches), make_network(**switches).train()
    can_drop = RELEASES[config.network.function_version].drop != "nothing"
    noisy, text = draw(B, config.embed_dim, seed=5), text_for(config)
    estimate = draw(B, config.embed_dim, seed=6) if config.network.self_cond else None
    drops = {"drop_text": DROP, "drop_image": DROP.flip(0)} if can_drop else {}
    output = call(network, noisy, TIMESTEPS, text, self_cond=estimate, **drops)
    F.mse_loss(output, torch.ones_like(output)).backward()
    release = RELEASES[config.network.function_version]
    idle = set()
    if config.network.self_cond and release.self_cond != "before query":
        idle.add("query")  # the estimate stands in its place
    if release.drop == "tokens":
        idle.add("null_text")
    if config.network.max_text_len == 0:
        idle.add("null_token_states")  # is empty
    for name, parameter in network.named_parameters():
        reached = parameter.grad is not None and parameter.numel() > 0 and bool(parameter.grad.abs().max() > 1e-9)
        assert reached == (name not in idle), name


def test_gradient_flows_through_a_shared_prefix(make_config: MakeConfig, make_network: MakeNetwork) -> None:
    """K draws of one prefix give the gradient of K separate runs."""
    text, noisy, timesteps = text_for(make_config(T), 2), draw(6, D, seed=5), torch.tensor([1, 99, 4, 4, 50, 7])
    shared, alone = make_network(T).train(), make_network(T).train()
    shared.suffix(shared.prefix(*text), noisy, timesteps).square().sum().backward()
    call(alone, noisy, timesteps, text.repeat(3)).square().sum().backward()
    for (name, one), other in zip(shared.named_parameters(), alone.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None) == (name in ("null_text", "null_image")), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9, msg=name)


SMALL: dict[str, Any] = {"embed_dim": D, "token_width": None, "width": 16, "depth": 2, "heads": 2, "dim_head": 8}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"final_proj": False}, r"final_proj=False needs a width \(16\) equal to the embedding's size \(8\)"),
        ({"self_cond": True, "function_version": "1.4.3"}, "self_cond=True: dalle2-pytorch 1.4.3 had none"),
        ({"function_version": "1.16.0"}, "dalle2-pytorch 1.16.0: releases 0.23.3 to 1.15.6 are known"),
    ],
)
def test_impossible_networks_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PriorNetwork(**{**SMALL, **values})


def test_missing_token_states_are_named(make_network: MakeNetwork) -> None:
    with pytest.raises(ValueError, match="give token_states"):
        make_network(T).prefix(draw(B, D))


@pytest.mark.parametrize("where", ["attn_dropout", "ff_dropout"])
def test_dropout_acts_in_training_only(where: str) -> None:
    network = PriorNetwork(**SMALL, max_text_len=3, **{where: 0.5}).double()
    noisy, text = draw(B, D), Text(draw(B, D, seed=1))
    assert not torch.equal(call(network, noisy, TIMESTEPS, text), call(network, noisy, TIMESTEPS, text))
    network.eval()
    assert torch.equal(call(network, noisy, TIMESTEPS, text), call(network, noisy, TIMESTEPS, text))


def test_dropout_acts_in_the_prefix_too() -> None:
    network, text = PriorNetwork(**{**SMALL, "token_width": W}, max_text_len=3, attn_dropout=0.5).double(), draw(B, D)
    states = draw(B, 3, W)
    once, again = network.prefix(text, states), network.prefix(text, states)
    assert torch.equal(once.layers[0].keys, again.layers[0].keys)  # nothing has been dropped yet
    assert not torch.equal(once.layers[1].keys, again.layers[1].keys)
