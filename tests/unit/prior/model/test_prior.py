"""`Prior.sample` on networks with random weights."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.prior.model.config import PriorConfig, build_network, build_normaliser
from priorkit.prior.model.prior import SAMPLE_BATCH, Prior, nearest_to_text
from priorkit.prior.network.interface import Condition
from priorkit.prior.network.layers import LayerNorm
from priorkit.prior.network.linear import Linear
from priorkit.prior.objective.diffusion import diffusion_loss
from priorkit.prior.objective.randomness import step_randomness
from priorkit.prior.sampling.settings import SampleSettings

MakeConfig = Callable[..., PriorConfig]
MakePrior = Callable[..., Prior]

SAMPLERS: tuple[Any, ...] = ("ddpm", "ddim", "dpmsolver++", "dalle2-ddim")
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def text(rows: int = 3, seed: int = 0, size: int = 8) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def states(rows: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 4, 6, generator=torch.Generator().manual_seed(seed))


# what is drawn


@every_sampler
@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_samples_are_unit_embeddings_and_repeatable(make_prior: MakePrior, sampler: Any, prediction: str) -> None:
    prior = make_prior(prediction=prediction)
    drawn = prior.sample(text_embed=text(), steps=5, sampler=sampler, seed=1)
    assert (drawn.shape, drawn.dtype, drawn.device.type) == ((3, 8), torch.float32, "cpu")
    torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(3))
    torch.manual_seed(12345)
    assert torch.equal(drawn, prior.sample(text_embed=text(), steps=5, sampler=sampler, seed=1))
    assert not torch.equal(drawn, prior.sample(text_embed=text(), steps=5, sampler=sampler, seed=2))


def test_the_norm_of_the_text_does_not_matter(make_prior: MakePrior) -> None:
    prior = make_prior()
    once, scaled = (prior.sample(text_embed=text() * scale, steps=3) for scale in (1, 50))
    torch.testing.assert_close(once, scaled, rtol=1e-4, atol=1e-5)


def test_text_and_token_states_condition_the_sample(make_prior: MakePrior) -> None:
    prior = make_prior(4)
    once = prior.sample(text_embed=text(), token_states=states(), steps=3)
    for given in ({"text_embed": text(seed=1)}, {"token_states": states(seed=1)}):
        other = prior.sample(**{"text_embed": text(), "token_states": states(), **given}, steps=3)
        assert (once - other).abs().amax(dim=1).min() > 1e-3


def test_a_prior_without_token_states_ignores_them(make_prior: MakePrior) -> None:
    prior = make_prior()
    given = prior.sample(text_embed=text(), token_states=states(), steps=3)
    assert torch.equal(given, prior.sample(text_embed=text(), steps=3))
    assert (prior.token_states_used, make_prior(4).token_states_used) == (0, 4)
    assert make_prior(4, token_width=None).token_states_used == 0


def test_text_of_another_encoder_may_have_another_size(make_prior: MakePrior) -> None:
    prior = make_prior(text_dim=12)
    drawn = prior.sample(text_embed=text(size=12), steps=3, num_candidates=2)
    assert drawn.shape == (3, 8)
    draws = prior.draw(text(size=12), None, 2, SampleSettings(steps=3), prior.noise(0, 0, 3, 2))
    assert torch.equal(drawn, draws[:, 0])  # nothing to compare them by


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("guidance", ["text", "dalle2"])
def test_guidance_of_1_has_no_effect_and_text_guidance_of_0_ignores_the_text(
    make_prior: MakePrior, sampler: Any, guidance: Any
) -> None:
    prior = make_prior(4)
    given = {"text_embed": text(), "token_states": states(), "steps": 4, "sampler": sampler, "guidance": guidance}
    plain = prior.sample(**given)
    almost = prior.sample(**given, guidance_scale=1.0 + 1e-7)  # takes the path with the null branch
    torch.testing.assert_close(plain, almost, rtol=1e-3, atol=1e-3)
    assert (plain - prior.sample(**given, guidance_scale=3.0)).abs().max() > 1e-3
    other = {**given, "text_embed": text(seed=5), "token_states": states(seed=5)}
    blind = prior.sample(**given, guidance_scale=0.0)
    torch.testing.assert_close(blind, prior.sample(**other, guidance_scale=0.0), rtol=1e-3, atol=1e-3)
    assert (plain - prior.sample(**other)).abs().max() > 1e-3


@pytest.mark.parametrize("prediction", ["x0", "v"])
@every_sampler
def test_a_schedule_that_begins_with_pure_noise_gives_finite_samples(
    make_prior: MakePrior, sampler: Any, prediction: str
) -> None:
    prior = make_prior(prediction=prediction, schedule="jsd")
    for scale in (1.0, 3.0):
        drawn = prior.sample(text_embed=text(), steps=6, sampler=sampler, guidance_scale=scale)
        torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(3))


# randomness


def test_noise_and_a_generator_replace_the_seed(make_prior: MakePrior) -> None:
    prior = make_prior()
    by_generator = [
        prior.sample(text_embed=text(), steps=4, seed=seed, generator=torch.Generator().manual_seed(7))
        for seed in (0, 99)
    ]
    assert torch.equal(*by_generator)
    noise = torch.randn(3, 8, generator=torch.Generator().manual_seed(7))
    for given in ([noise], iter([noise]), (value for value in [noise.double()])):
        assert torch.equal(by_generator[0], prior.sample(text_embed=text(), steps=4, noise=given))
    philox = np.random.Generator(np.random.Philox(key=[5, 0])).standard_normal((1, 8), np.float32)
    by_seed = prior.sample(text_embed=text()[:1], steps=4, seed=5)
    assert torch.equal(by_seed, prior.sample(text_embed=text()[:1], steps=4, noise=[torch.from_numpy(philox)]))


def test_a_generator_continues_from_its_state(make_prior: MakePrior) -> None:
    prior, generator = make_prior(), torch.Generator().manual_seed(7)
    first, second = (prior.sample(text_embed=text(), steps=4, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)


@every_sampler
def test_captions_may_be_sampled_in_parts(make_prior: MakePrior, sampler: Any) -> None:
    prior = make_prior()
    given: dict[str, Any] = {"steps": 4, "sampler": sampler, "seed": 3, "num_candidates": 2}
    whole = prior.sample(text_embed=text(5), **given)
    for start, stop in ((0, 2), (2, 5), (4, 5)):
        part = prior.sample(text_embed=text(5)[start:stop], first=start, **given)
        torch.testing.assert_close(part, whole[start:stop], rtol=1e-3, atol=1e-4)
    assert (prior.sample(text_embed=text(5)[2:], **given) - whole[2:]).abs().max() > 1e-3


def test_many_captions_are_sampled_in_batches(make_prior: MakePrior, monkeypatch: pytest.MonkeyPatch) -> None:
    prior, sizes = make_prior(4), []
    prefix = prior.network.prefix

    def recorded(text_embed: torch.Tensor, *rest: Any, **named: Any) -> Any:
        sizes.append(len(text_embed))
        return prefix(text_embed, *rest, **named)

    monkeypatch.setattr(prior.network, "prefix", recorded)
    count = 2 * SAMPLE_BATCH + 5
    whole = prior.sample(text_embed=text(count), token_states=states(count), steps=2, seed=4)
    assert sizes == [SAMPLE_BATCH, SAMPLE_BATCH, 5]
    assert whole.shape == (count, 8)
    last = slice(count - 7, count)  # from two batches
    alone = prior.sample(
        text_embed=text(count)[last], token_states=states(count)[last], steps=2, seed=4, first=last.start
    )
    torch.testing.assert_close(alone, whole[last], rtol=1e-3, atol=1e-4)


def test_prompts_are_encoded_in_batches(make_prior: MakePrior) -> None:
    prior, sizes = make_prior(), []

    class Encoder:
        def encode_texts(self, prompts: list[str], token_states: bool = False) -> Any:
            sizes.append(len(prompts))
            return type("Text", (), {"text_embed": text(len(prompts), seed=len(prompts[0]))})

    prior.__dict__["text_encoder"] = Encoder()
    prompts = [f"a{number}" for number in range(SAMPLE_BATCH + 1)]
    assert prior.sample(prompts, steps=1).shape == (SAMPLE_BATCH + 1, 8)
    assert sizes == [SAMPLE_BATCH, 1]


def test_a_repeated_prompt_is_encoded_once_and_drawn_each_time(make_prior: MakePrior) -> None:
    prior, encoded = make_prior(), []

    class Encoder:
        def encode_texts(self, prompts: list[str], token_states: bool = False) -> Any:
            encoded.append(prompts)
            return type("Text", (), {"text_embed": torch.cat([text(1, seed=len(prompt)) for prompt in prompts])})

    prior.__dict__["text_encoder"] = Encoder()
    drawn = prior.sample(["a", "bb", "a"], steps=3, guidance_scale=2.0)
    assert encoded == [["a", "bb"]]
    expected = prior.sample(
        text_embed=torch.cat([text(1, seed=size) for size in (1, 2, 1)]), steps=3, guidance_scale=2.0
    )
    torch.testing.assert_close(drawn, expected)
    assert not torch.equal(drawn[0], drawn[2])


def test_given_noise_covers_all_captions(make_prior: MakePrior) -> None:
    prior, count = make_prior(), SAMPLE_BATCH + 3
    noise = text(count, seed=9)
    whole = prior.sample(text_embed=text(count), steps=2, noise=[noise])
    part = prior.sample(text_embed=text(count)[-3:], steps=2, noise=[noise[-3:]])
    torch.testing.assert_close(whole[-3:], part, rtol=1e-3, atol=1e-4)


def test_no_captions_give_no_samples(make_prior: MakePrior) -> None:
    assert make_prior().sample([], steps=2).shape == (0, 8)
    assert make_prior().sample(text_embed=text(0), steps=2).shape == (0, 8)


# candidates


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_candidate_nearest_to_its_text_is_returned(make_prior: MakePrior, count: int) -> None:
    prior, noise = make_prior(), text(3 * count, seed=3)
    draws = prior.draw(text(), None, count, SampleSettings(steps=4), iter([noise]))
    assert draws.shape == (3, count, 8)
    best = prior.sample(text_embed=text(), num_candidates=count, steps=4, noise=[noise])
    for row in range(3):
        cosine = (draws[row] @ text()[row]) / text()[row].norm() / draws[row].norm(dim=-1)
        assert cosine.unique().numel() == count
        assert torch.equal(best[row], draws[row, cosine.argmax()])


def test_numpy_arrays_are_accepted(make_prior: MakePrior) -> None:
    prior = make_prior()
    array = text().numpy().astype(np.float16)
    array.flags.writeable = False
    found = prior.sample(text_embed=array, steps=4)
    assert torch.equal(found, prior.sample(text_embed=torch.tensor(array), steps=4))


def test_nearest_compares_directions() -> None:
    draws = torch.tensor([[[5.0, 5.0], [0.1, 0.0], [-9.0, 0.0]]])
    assert nearest_to_text(draws, torch.tensor([[2.0, 0.0]])).tolist() == [[pytest.approx(0.1), 0.0]]
    assert nearest_to_text(draws, torch.tensor([[1.0, 0.0, 0.0]])).tolist() == [[5.0, 5.0]]


@every_sampler
def test_candidates_of_one_prefix_equal_separate_runs(make_prior: MakePrior, sampler: Any) -> None:
    prior, settings = make_prior(4), SampleSettings(steps=3, sampler=sampler, guidance_scale=2.0)
    noise = [text(6, seed=seed) for seed in range(4)]
    draws = prior.draw(text(), states(), 2, settings, iter(noise))
    for row in range(3):
        for candidate in range(2):
            only = slice(2 * row + candidate, 2 * row + candidate + 1)
            noise_of_draw = iter([value[only] for value in noise])
            alone = prior.draw(text()[row : row + 1], states()[row : row + 1], 1, settings, noise_of_draw)
            torch.testing.assert_close(draws[row, candidate], alone[0, 0], rtol=1e-3, atol=1e-4)


# what the settings of a prior do


@pytest.mark.parametrize("normaliser", ["sqrt_dim", "standardise", "whiten"])
def test_samples_are_decoded(make_prior: MakePrior, normaliser: str) -> None:
    """The network returns a constant x0; the sample is the embedding that encodes to it."""
    prior = make_prior(diffusion={"normaliser": normaliser, "output_norm": "none"}, norm_out=False, final_proj=True)
    prior.normaliser.fit(text(500, seed=4) + 1)
    image = F.normalize(text(1, seed=8), dim=-1)
    x0 = prior.normaliser.encode(image)
    prior.network.suffix = lambda cache, noisy, *_, **__: x0.expand(len(noisy), -1)  # type: ignore[method-assign]
    drawn = prior.sample(text_embed=text(), steps=3)
    torch.testing.assert_close(drawn, image.expand(3, -1), rtol=1e-4, atol=1e-4)


def test_output_norm(make_prior: MakePrior) -> None:
    plain, unit = (
        make_prior(diffusion={"output_norm": norm}).sample(text_embed=text(), steps=3) for norm in ("none", "unit")
    )
    assert (plain.norm(dim=-1) - 1).abs().max() > 1e-2
    torch.testing.assert_close(plain / plain.norm(dim=-1, keepdim=True), unit)


@pytest.mark.parametrize(("clamp", "embed_scale"), [("unit_box", None), ("sphere", None), ("sphere", 2.0)])
def test_x0_clamp(make_prior: MakePrior, clamp: str, embed_scale: float | None) -> None:
    prior = make_prior(diffusion={"x0_clamp": clamp, "output_norm": "none", "embed_scale": embed_scale})
    drawn = prior.sample(text_embed=text(), steps=3)
    if clamp == "sphere":
        torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(3))
    else:
        assert (drawn * math.sqrt(8)).abs().max() == pytest.approx(1)
    free = make_prior(diffusion={"output_norm": "none", "embed_scale": embed_scale})
    assert (drawn - free.sample(text_embed=text(), steps=3)).abs().max() > 1e-2


@pytest.mark.parametrize("embed_scale", [None, 3.0])
def test_init_clamp_scales_the_first_noise_alone(
    make_prior: MakePrior, monkeypatch: pytest.MonkeyPatch, embed_scale: float | None
) -> None:
    prior, seen = make_prior(diffusion={"init_clamp": True, "embed_scale": embed_scale}), []
    suffix = prior.network.suffix

    def recorded(cache: Any, noisy: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        seen.append(noisy)
        return suffix(cache, noisy, *rest, **named)

    monkeypatch.setattr(prior.network, "suffix", recorded)
    noise = [text(3, seed=seed) for seed in range(3)]
    clamped = prior.draw(text(), None, 1, SampleSettings(steps=2, sampler="ddpm"), iter(noise))
    scaled = noise[0] / noise[0].norm(dim=-1, keepdim=True) * (embed_scale or math.sqrt(8))
    torch.testing.assert_close(seen[0], scaled)
    plain = make_prior(diffusion={"embed_scale": embed_scale})
    given = plain.draw(text(), None, 1, SampleSettings(steps=2, sampler="ddpm"), iter([scaled, *noise[1:]]))
    torch.testing.assert_close(clamped, given, rtol=1e-4, atol=1e-5)


# types and devices


def trained(prior: Prior, steps: int = 60) -> Prior:
    """Train a prior a little to map texts to images.

    Random networks amplify rounding from step to step; trained networks contract towards the data.
    """
    schedule, diffusion = prior.schedule, prior.config.diffusion
    turn = torch.linalg.qr(text(16, seed=77, size=16))[0]
    optimiser = torch.optim.AdamW(prior.network.parameters(), lr=3e-3)
    for step in range(steps):
        given = F.normalize(text(64, seed=step, size=16), dim=-1)
        image = given @ turn + 0.1 * text(64, seed=10_000 + step, size=16)
        random = step_randomness(seed=0, step=step, first=0, rows=64, draws=1, embed_dim=16, diffusion=diffusion)
        losses = diffusion_loss(
            prior.network, schedule, diffusion, prior.normaliser, image, Condition(given, None), random
        )
        optimiser.zero_grad()
        losses.mean().backward()
        optimiser.step()
    return prior


def test_bfloat16_is_close_to_float32(make_prior: MakePrior) -> None:
    prior = trained(make_prior(width=32, embed_dim=16, norm_in=True))
    weights = {name: value.clone() for name, value in prior.network.state_dict().items()}
    given = [{"text_embed": text(32, seed=-1, size=16), "steps": 16, "guidance_scale": scale} for scale in (1.0, 3.0)]
    exact = [prior.sample(**settings) for settings in given]
    assert prior.to(dtype="bfloat16") is prior
    for settings, expected in zip(given, exact, strict=True):
        rounded = prior.sample(**settings)
        assert rounded.dtype == torch.float32
        assert not torch.equal(expected, rounded)
        assert F.cosine_similarity(expected, rounded).min() >= 0.999
    for module in prior.network.modules():
        if isinstance(module, LayerNorm):
            assert module.weight.dtype == torch.float32
        elif isinstance(module, Linear):
            assert module.weight.dtype == torch.bfloat16
    prior.to(dtype="float32")
    for name, value in prior.network.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=2**-8, atol=0)  # float32, rounded once
    prior.network.load_state_dict(weights)
    for settings, expected in zip(given, exact, strict=True):
        assert torch.equal(prior.sample(**settings), expected)


@pytest.mark.parametrize("dtype", ["float16", "fp32", "float64", ""])
def test_unknown_dtypes_are_named(make_prior: MakePrior, dtype: str) -> None:
    with pytest.raises(SettingsError, match=f"dtype='{dtype}': known are float32, bfloat16"):
        make_prior().to(dtype=dtype)


@pytest.mark.parametrize("device", ["tpux", "cuda:99"])
def test_missing_devices_are_named(make_prior: MakePrior, device: str) -> None:
    with pytest.raises(SettingsError, match=f"device='{device}': "):
        make_prior().to(device)


def test_a_prior_can_be_copied_pickled_and_trained_after_sampling(make_prior: MakePrior) -> None:
    prior = make_prior(4)
    given: dict[str, Any] = {"text_embed": text(), "token_states": states(), "steps": 3, "guidance_scale": 2.0}
    before = prior.sample(**given)
    assert torch.equal(copy.deepcopy(prior).sample(**given), before)
    stored = io.BytesIO()
    torch.save(prior.network, stored)
    stored.seek(0)
    network = torch.load(stored, weights_only=False)
    assert torch.equal(Prior(prior.config, network, prior.normaliser).sample(**given), before)

    twin = make_prior(4)
    for one in (prior, twin):
        optimiser = torch.optim.SGD(one.network.parameters(), lr=0.1)
        for _ in range(2):
            output = one.network(
                text(3, seed=5), torch.tensor([1, 50, 99]), text_embed=text(), token_states=states(),
                drop_text=torch.tensor([True, False, False]),
            )  # fmt: skip
            optimiser.zero_grad()
            output.square().mean().backward()
            optimiser.step()
            if one is prior:  # in the midst of it too
                prior.sample(**given)
    after = prior.sample(**given)
    assert (after - before).abs().max() > 1e-3
    assert torch.equal(after, twin.sample(**given))


def test_samples_have_no_gradient_and_the_network_is_in_eval_mode(make_prior: MakePrior) -> None:
    prior = make_prior(attn_dropout=0.5)
    assert not prior.network.training
    drawn = prior.sample(text_embed=text().requires_grad_(), steps=2)
    assert not drawn.requires_grad
    drawn += 1  # an ordinary tensor, which may be changed and trained on
    assert (drawn * torch.ones(8, requires_grad=True)).sum().requires_grad


# prompts


class FakeText:
    """Output of a text tower for two captions of 2 and 4 tokens."""

    text_embed = text(2)
    token_states = states(2).reshape(-1, 6)[:6]
    lengths = (2, 4)


class FakeEncoder:
    def encode_texts(self, prompts: list[str], token_states: bool = False) -> FakeText:
        assert prompts == ["a corgi", "a cat with a hat"]
        return FakeText()


def test_prompts_are_encoded_by_the_priors_own_clip(make_prior: MakePrior) -> None:
    prior = make_prior(4)
    prior.__dict__["text_encoder"] = FakeEncoder()
    padded = torch.zeros(2, 4, 6)
    padded[0, :2], padded[1] = FakeText.token_states[:2], FakeText.token_states[2:]
    expected = prior.sample(text_embed=FakeText.text_embed, token_states=padded, steps=3)
    assert torch.equal(prior.sample(["a corgi", "a cat with a hat"], steps=3), expected)


def test_a_prior_without_a_named_clip_says_so(make_config: MakeConfig) -> None:
    config = make_config().model_copy(update={"clip_settings": {}})
    with pytest.raises(InputError, match=r"does not say which CLIP .*text_embed=.*--clip"):
        Prior(config, build_network(config), build_normaliser(config)).sample(["a"], steps=2)


# what is refused


def endless() -> Iterator[torch.Tensor]:
    while True:
        yield torch.zeros(3, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, r"sample: steps: .*greater than or equal to 1 \(got 0\)"),
        ({"steps": 101}, "steps=101: ddim samples this prior in 1 to 100 steps"),
        ({"steps": 100, "sampler": "dalle2-ddim"}, "steps=100: dalle2-ddim samples this prior in 2 to 99 steps"),
        ({"sampler": "euler"}, r"sample: sampler: .*'ddpm', 'ddim', .* or 'one-step' \(got 'euler'\)"),
        ({"guidance": "none"}, r"sample: guidance: .*'text' or 'dalle2' \(got 'none'\)"),
        ({"guidance_scale": -1.0}, r"sample: guidance_scale: .*\(got -1.0\)"),
        ({"guidance_scale": math.inf}, "sample: guidance_scale: .*finite"),
        ({"num_candidates": 0}, "num_candidates=0: must be at least 1"),
        ({"seed": -1}, "seed=-1: must be from 0 to"),
        ({"seed": 2**63}, "seed=9223372036854775808: must be from 0 to 9223372036854775807"),
        ({"first": -2}, "first=-2: must not be negative"),
        ({"text_embed": torch.zeros(3, 7)}, r"text_embed has shape \[3, 7\], this prior takes \[B, 8\]"),
        ({"text_embed": torch.zeros(8)}, r"text_embed has shape \[8\], this prior takes \[B, 8\]"),
        ({"prompts": ["a"]}, "give either prompts or text_embed"),
        ({"text_embed": None}, "give either prompts or text_embed"),
        ({"text_embed": None, "prompts": "a corgi"}, "prompts='a corgi': give a list of captions"),
        ({"text_embed": None, "prompts": ["a"], "token_states": states()}, "token_states belong to text_embed"),
        ({"token_states": states(4)}, "token_states are of 4 texts, text_embed of 3"),
        ({"generator": torch.Generator()}, "give either generator or noise"),
    ],
)
def test_bad_arguments_are_named(make_prior: MakePrior, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_prior().sample(**{"text_embed": text(), "steps": 3, "noise": endless(), **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "give token_states in addition to text_embed"),
        (states(2), "token_states are of 2 texts, text_embed of 3"),
        (torch.zeros(3, 4, 7), r"token_states have shape \[3, 4, 7\], this prior takes \[3, T, 6\]"),
        (torch.zeros(3, 6), r"token_states have shape \[3, 6\], this prior takes \[3, T, 6\]"),
    ],
)
def test_token_states_that_do_not_fit_are_named(
    make_prior: MakePrior, given: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        make_prior(4).sample(text_embed=text(), token_states=given, steps=3)


def test_token_states_of_more_texts_than_a_batch_are_refused(make_prior: MakePrior) -> None:
    with pytest.raises(SettingsError, match=f"of {SAMPLE_BATCH + 9} texts, text_embed of {SAMPLE_BATCH}"):
        make_prior(4).sample(text_embed=text(SAMPLE_BATCH), token_states=states(SAMPLE_BATCH + 9), steps=3)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ([], "noise ended before the sampler did"),
        ([torch.zeros(3, 8)] * 3, "noise ended before the sampler did; it takes one tensor, and one for each noisy"),
        ([torch.zeros(3, 8), torch.zeros(2, 8)], r"noise number 1 has shape \[2, 8\], needed is \[3, 8\]"),
        ([torch.zeros(24)], r"noise number 0 has shape \[24\], needed is \[3, 8\]"),
    ],
)
def test_noise_that_does_not_fit_is_named(make_prior: MakePrior, noise: list[torch.Tensor], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_prior().sample(text_embed=text(), steps=3, sampler="ddpm", noise=noise)


@every_sampler
def test_eps_cannot_start_from_pure_noise(make_prior: MakePrior, sampler: Any) -> None:
    prior = make_prior(prediction="eps", schedule="jsd")
    if sampler == "dalle2-ddim":  # begins later
        assert torch.isfinite(prior.sample(text_embed=text(), steps=5, sampler=sampler)).all()
        return
    with pytest.raises(SettingsError, match=r"begins at a timestep of pure noise, .*take dalle2-ddim"):
        prior.sample(text_embed=text(), steps=5, sampler=sampler)


def test_check_returns_the_timesteps(make_prior: MakePrior) -> None:
    assert make_prior().check(SampleSettings(steps=4)) == [99, 74, 49, 24]


@pytest.mark.parametrize("change", ["data", "fused"])
def test_samples_follow_changes_of_the_weights_that_torch_does_not_count(make_prior: MakePrior, change: str) -> None:
    prior, embed = make_prior(), text()
    draw: dict[str, Any] = {"text_embed": embed, "steps": 3, "guidance_scale": 2.0}
    before = prior.sample(**draw)
    if change == "data":
        for value in prior.network.parameters():
            value.data.mul_(0.9)
    else:
        optimiser = torch.optim.AdamW(prior.network.parameters(), lr=0.1, fused=True)
        cache = prior.network.prefix(F.normalize(embed, dim=-1))
        prior.network.suffix(cache, embed, torch.tensor([1, 2, 3])).square().sum().backward()
        optimiser.step()
    fresh = Prior(prior.config, copy.deepcopy(prior.network), prior.normaliser)
    assert not torch.equal(prior.sample(**draw), before)
    assert torch.equal(prior.sample(**draw), fresh.sample(**draw))
