"""What `Prior.sample` promises, on a network of random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F

from priorkit.pipeline.errors import SettingsError
from priorkit.prior.model import Prior, PriorConfig
from priorkit.prior.network import PriorNetwork

MakePrior = Callable[..., Prior]


@pytest.fixture
def make_prior(make_config: Callable[..., PriorConfig], make_network: Callable[..., PriorNetwork]) -> MakePrior:
    def make(max_text_len: int = 0, prediction: str = "x0") -> Prior:
        config = make_config(max_text_len, prediction)
        return Prior(config, make_network(max_text_len, dtype=torch.float32))

    return make


def text(rows: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


def states(rows: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 4, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_samples_are_normalised_and_repeatable(make_prior: MakePrior, sampler: str, prediction: str) -> None:
    prior = make_prior(prediction=prediction)
    drawn = prior.sample(text_embed=text(), steps=5, sampler=sampler, seed=1)
    assert drawn.shape == (3, 8)
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(3))
    torch.manual_seed(12345)
    assert torch.equal(drawn, prior.sample(text_embed=text(), steps=5, sampler=sampler, seed=1))
    assert not torch.equal(drawn, prior.sample(text_embed=text(), steps=5, sampler=sampler, seed=2))


def test_the_norm_of_the_text_does_not_matter(make_prior: MakePrior) -> None:
    prior = make_prior()
    once, scaled = (prior.sample(text_embed=text() * scale, steps=3) for scale in (1, 50))
    torch.testing.assert_close(once, scaled)


def test_the_text_does(make_prior: MakePrior) -> None:
    prior = make_prior()
    noise = [torch.zeros(3, 8)]
    once, other = (prior.sample(text_embed=text(seed=seed), steps=3, noise=iter(noise)) for seed in (0, 1))
    assert (once - other).abs().amax(dim=1).min() > 1e-3


def test_generator_and_noise_take_the_place_of_the_seed(make_prior: MakePrior) -> None:
    prior = make_prior()
    by_seed = prior.sample(text_embed=text(), steps=4, seed=7)
    by_generator = prior.sample(text_embed=text(), steps=4, seed=99, generator=torch.Generator().manual_seed(7))
    noise = torch.randn(3, 8, generator=torch.Generator().manual_seed(7))
    by_noise = prior.sample(text_embed=text(), steps=4, seed=99, noise=iter([noise]))
    assert torch.equal(by_seed, by_generator)
    assert torch.equal(by_seed, by_noise)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_guidance_of_one_is_no_guidance_and_of_zero_ignores_the_text(make_prior: MakePrior, sampler: str) -> None:
    prior = make_prior(4)
    given = {"text_embed": text(), "token_states": states(), "steps": 6, "sampler": sampler}
    plain = prior.sample(**given)
    assert torch.equal(plain, prior.sample(**given, guidance_scale=1.0))
    almost = prior.sample(**given, guidance_scale=1.0 + 1e-7)  # takes the path with the null branch
    torch.testing.assert_close(plain, almost, rtol=1e-3, atol=1e-4)
    assert (plain - prior.sample(**given, guidance_scale=3.0)).abs().max() > 1e-3
    blind = prior.sample(**given, guidance_scale=0.0)
    other = {**given, "text_embed": text(seed=5), "token_states": states(seed=5)}
    torch.testing.assert_close(blind, prior.sample(**other, guidance_scale=0.0), rtol=1e-5, atol=1e-6)
    assert (plain - prior.sample(**other)).abs().max() > 1e-3


def test_the_null_branch_is_what_training_drops_to(make_prior: MakePrior) -> None:
    prior = make_prior(4)
    null = prior._null_cache(3)
    trained = prior.network.prefix(text(), states(), torch.ones(3, dtype=torch.bool))
    for (key, value), (trained_key, trained_value) in zip(null.layers, trained.layers, strict=True):
        torch.testing.assert_close(key, trained_key)
        torch.testing.assert_close(value, trained_value)


@pytest.mark.parametrize("count", [2, 5])
def test_best_of_n_is_the_draw_nearest_to_its_text(make_prior: MakePrior, count: int) -> None:
    prior = make_prior()
    noise = torch.randn(3 * count, 8, generator=torch.Generator().manual_seed(3))
    draws = prior.draw(text(), None, count, 1.0, 4, "ddim", noise=iter([noise]))
    assert draws.shape == (3, count, 8)
    best = prior.sample(text_embed=text(), num_candidates=count, steps=4, noise=iter([noise]))
    for row in range(3):
        cosine = F.cosine_similarity(draws[row], text()[row : row + 1], dim=-1)
        assert cosine.unique().numel() == count
        assert torch.equal(best[row], draws[row, cosine.argmax()])


def test_candidates_of_a_row_follow_each_other_in_the_noise(make_prior: MakePrior) -> None:
    prior = make_prior()
    noise = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    draws = prior.draw(text(), None, 2, 1.0, 4, "ddim", noise=iter([noise]))
    alone = prior.draw(text()[1:2], None, 2, 1.0, 4, "ddim", noise=iter([noise[2:4]]))
    torch.testing.assert_close(draws[1], alone[0])


def test_the_text_is_read_once_and_the_noise_once_a_step(make_prior: MakePrior) -> None:
    prior = make_prior(4)
    calls = {"prefix": 0, "suffix": 0}
    prefix, suffix = prior.network.prefix, prior.network.suffix

    def count_prefix(*args: object) -> object:
        calls["prefix"] += 1
        return prefix(*args)  # type: ignore[arg-type]

    def count_suffix(*args: object) -> object:
        calls["suffix"] += 1
        return suffix(*args)  # type: ignore[arg-type]

    prior.network.prefix, prior.network.suffix = count_prefix, count_suffix  # type: ignore[assignment, method-assign]
    prior.sample(text_embed=text(), token_states=states(), steps=9, num_candidates=3)
    assert calls == {"prefix": 1, "suffix": 9}
    prior.sample(text_embed=text(), token_states=states(), steps=9, guidance_scale=2.0)
    assert calls == {"prefix": 3, "suffix": 9 + 18}


def test_token_states_condition_the_sample(make_prior: MakePrior) -> None:
    prior = make_prior(4)
    once, other = (prior.sample(text_embed=text(), token_states=states(seed=s), steps=3) for s in (0, 1))
    assert (once - other).abs().max() > 1e-3
    # a prior without token states takes them and leaves them alone
    plain = make_prior()
    given = plain.sample(text_embed=text(), token_states=states(), steps=3)
    assert torch.equal(given, plain.sample(text_embed=text(), steps=3))


class FakeText:
    """What the text tower gives for two captions of 2 and 4 tokens."""

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


def endless() -> Iterator[torch.Tensor]:
    while True:
        yield torch.zeros(3, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps=0: .*1 to 100"),
        ({"steps": 101}, "steps=101: .*1 to 100"),
        ({"sampler": "euler"}, "sampler='euler': known are ddpm, ddim"),
        ({"num_candidates": 0}, "num_candidates=0"),
        ({"text_embed": torch.zeros(3, 7)}, "size 7, .* of 8"),
        ({"prompts": ["a"]}, "either prompts or text_embed"),
        ({"text_embed": None}, "either prompts or text_embed"),
    ],
)
def test_bad_arguments_are_named(make_prior: MakePrior, given: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_prior().sample(**{"text_embed": text(), "steps": 3, "noise": endless(), **given})  # type: ignore[arg-type]


def test_missing_token_states_are_named(make_prior: MakePrior) -> None:
    with pytest.raises(SettingsError, match="give token_states"):
        make_prior(4).sample(text_embed=text(), steps=3)


def test_sampling_leaves_no_gradient_and_no_training_mode(make_prior: MakePrior) -> None:
    prior = make_prior()
    assert not prior.network.training
    assert not prior.sample(text_embed=text().requires_grad_(), steps=2).requires_grad
