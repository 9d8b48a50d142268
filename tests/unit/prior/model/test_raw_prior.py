"""`Prior.sample` for priors that take embeddings that are not normalised, with a real text tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from priorkit.pipeline.compute.settings import DeviceSettings
from priorkit.pipeline.errors import SettingsError
from priorkit.prior.model.config import NormStatistics
from priorkit.prior.model.prior import Prior
from priorkit.prior.model.text_encoder import encode_empty_inputs

from ..conftest import MakePrior
from ..raw_priors import D, S, W, captions, draw, make_empty, make_raw_config, make_raw_prior

UNCLIP: dict[str, Any] = {"steps": 4, "sampler": "unclip"}


def given(rows: int = 3) -> dict[str, Any]:
    return {"text_embed": draw(rows, S, seed=2, scale=3.0), "token_states": captions([1, 5, 3][:rows]), **UNCLIP}


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def of_clip(tiny_clip: Path) -> Prior:
    """A prior of the tiny CLIP, which stores the CLIP's outputs for empty inputs."""
    clip = {"model": f"local-dir:{tiny_clip}", "pretrained": None}
    config = make_raw_config({"num_embeddings": 77}, embed_dim=16, text_dim=16, token_width=16, clip_settings=clip)
    return make_raw_prior(config, encode_empty_inputs(clip, {}, DeviceSettings(device="cpu")))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmsolver++", "unclip", "unclip-ddpm"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_every_sampler_gives_norms(sampler: Any, scale: float) -> None:
    prior = make_raw_prior(empty=make_empty())
    how = {**given(), "sampler": sampler, "guidance_scale": scale}
    drawn = prior.sample(**how)
    assert (drawn.shape, drawn.dtype) == ((3, D), torch.float32)
    assert drawn.norm(dim=-1).std() > 1e-3
    assert torch.equal(drawn, prior.sample(**how, norm="raw"))
    unit = prior.sample(**how, norm="unit")
    torch.testing.assert_close(unit, torch.nn.functional.normalize(drawn, dim=-1))


def test_unit_text_is_refused() -> None:
    with pytest.raises(SettingsError, match="this prior takes text embeddings as the CLIP gives them"):
        make_raw_prior().sample(**{**given(), "text_embed": torch.nn.functional.normalize(draw(3, S), dim=-1)})


def test_the_norm_of_the_text_matters() -> None:
    prior = make_raw_prior()
    other = prior.sample(**{**given(), "text_embed": 2 * given()["text_embed"]})
    assert (prior.sample(**given()) - other).abs().max() > 1e-3


def test_a_unit_prior_scales_to_the_mean_norm(make_prior: MakePrior) -> None:
    prior = make_prior()
    with pytest.raises(SettingsError, match="norm=raw: this prior predicts no norms"):
        prior.sample(text_embed=draw(3, 8), steps=3, norm="raw")
    prior.config = prior.config.model_copy(update={"image_norm": NormStatistics(mean=20.5, std=1.0)})
    unit = prior.sample(text_embed=draw(3, 8), steps=3, norm="unit")
    raw = prior.sample(text_embed=draw(3, 8), steps=3, norm="raw")
    torch.testing.assert_close(raw, 20.5 * unit)
    assert torch.equal(prior.sample(text_embed=draw(3, 8), steps=3), unit)


def test_one_step_needs_a_prior_without_time_or_one_step() -> None:
    prior = make_raw_prior(make_raw_config({"time_token": False}))
    texts = {**given(), "steps": 1, "sampler": "one-step"}
    drawn = prior.sample(**texts, noise=[draw(3, D, seed=7)])
    x0 = prior.network(
        draw(3, D, seed=7), torch.full((3,), 49), text_embed=given()["text_embed"], token_states=given()["token_states"]
    )
    torch.testing.assert_close(drawn, prior.normaliser.decode(x0.detach()), rtol=1e-4, atol=1e-5)
    with pytest.raises(
        SettingsError, match="this prior predicts in one step from noise; use sampler=one-step, steps=1"
    ):
        prior.sample(**given())
    with pytest.raises(SettingsError, match="one-step samples this prior in 1 step: set steps=1"):
        prior.sample(**{**texts, "steps": 2})


def test_dropped_images_are_refused_even_if_the_config_says_otherwise() -> None:
    prior = make_raw_prior(make_raw_config(diffusion={"image_drop": 0.1}), make_empty())
    with pytest.raises(SettingsError, match="guidance=dalle2: this prior was trained without dropping the image"):
        prior.sample(**given(), guidance="dalle2", guidance_scale=2.0)


# the empty text


def test_guidance_without_the_empty_text_is_an_error_with_the_fix() -> None:
    prior = make_raw_prior()
    assert prior.sample(**given()).shape == (3, D)
    with pytest.raises(
        SettingsError, match="guidance compares with the empty text, whose encoding this prior does not"
    ):
        prior.sample(**given(), guidance_scale=2.0)


def test_guidance_is_the_formula_with_the_empty_text() -> None:
    empty, noise = make_empty(), [draw(3, D, seed=7)]
    prior = make_raw_prior(empty=empty)
    how = {**given(), "steps": 1, "sampler": "ddim", "noise": noise}
    states = torch.from_numpy(empty.token_states)[None].expand(3, -1, -1)  # type: ignore[arg-type]
    text = torch.from_numpy(empty.text_embed).expand(3, -1)
    null = prior.sample(**{**how, "text_embed": text, "token_states": states})
    known = prior.sample(**how)
    assert close(prior.sample(**how, guidance_scale=3.0), null + 3 * (known - null))


def test_the_empty_text_is_computed_if_it_is_not_stored(of_clip: Prior) -> None:
    bare = make_raw_prior(of_clip.config)
    guided = [prior.sample(["a cat"], **UNCLIP, guidance_scale=3.0) for prior in (of_clip, bare)]
    assert close(*guided)
    assert torch.equal(bare.zero_image_embed(), of_clip.zero_image_embed())


# negative prompts


def test_the_empty_negative_prompt_is_the_default(of_clip: Prior) -> None:
    prompts = ["a cat", "two dogs"]
    plain = of_clip.sample(prompts, **UNCLIP, guidance_scale=3.0)
    assert close(plain, of_clip.sample(prompts, **UNCLIP, guidance_scale=3.0, negative_prompt=""))
    other = of_clip.sample(prompts, **UNCLIP, guidance_scale=3.0, negative_prompt="blurred")
    assert (plain - other).abs().amax(dim=1).min() > 1e-4


def test_each_caption_may_have_its_own_negative_prompt(of_clip: Prior) -> None:
    prompts, negatives = ["a cat", "two dogs", "a cat"], ["blurred", "", "blurred"]
    together = of_clip.sample(prompts, **UNCLIP, guidance_scale=3.0, negative_prompt=negatives)
    for row in range(3):
        alone = of_clip.sample(
            [prompts[row]], **UNCLIP, guidance_scale=3.0, negative_prompt=[negatives[row]], first=row
        )
        assert close(together[row : row + 1], alone)


def test_guidance_against_the_prompt_itself_has_no_effect(of_clip: Prior) -> None:
    plain = of_clip.sample(["a cat"], **UNCLIP)
    assert close(plain, of_clip.sample(["a cat"], **UNCLIP, guidance_scale=5.0, negative_prompt="a cat"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"negative_prompt": "x"}, "negative_prompt has no effect with guidance_scale=1; raise it"),
        ({"negative_prompt": ["x"], "guidance_scale": 2.0}, "negative_prompt: 1 are given for 2 captions; give one"),
        (
            {"negative_prompt": "x", "guidance_scale": 2.0, "guidance": "dalle2"},
            "guidance=dalle2: this prior was trained without dropping the image",
        ),
    ],
)  # fmt: skip
def test_negative_prompts_without_effect_are_refused(how: dict[str, Any], message: str, of_clip: Prior) -> None:
    with pytest.raises(SettingsError, match=message):
        of_clip.sample(["a", "b"], **UNCLIP, **how)


def test_negative_prompts_work_for_the_other_family(make_prior: MakePrior, tiny_clip: Path) -> None:
    prior = make_prior(5, embed_dim=16, token_width=16)
    clip = {"model": f"local-dir:{tiny_clip}", "pretrained": None}
    prior.config = prior.config.model_copy(update={"clip_settings": clip, "clip": {}})
    plain = prior.sample(["a cat"], steps=3, guidance_scale=3.0)
    other = prior.sample(["a cat"], steps=3, guidance_scale=3.0, negative_prompt="blurred")
    assert (plain - other).abs().max() > 1e-4
    same = prior.sample(["a cat"], steps=3, guidance_scale=3.0, negative_prompt="a cat")
    assert close(same, prior.sample(["a cat"], steps=3))
    with pytest.raises(SettingsError, match="negative_prompt needs guidance=text, not dalle2"):
        prior.sample(["a cat"], steps=3, guidance_scale=2.0, guidance="dalle2", negative_prompt="x")


# repeated prompts and generators


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_repeated_prompts_are_encoded_once_and_sampled_each(of_clip: Prior, scale: float) -> None:
    prompts = ["a cat", "two dogs", "a cat", "a cat", "two dogs"]
    encoded: list[int] = []
    prefix = of_clip.network.prefix

    def counted(text_embed: torch.Tensor, *rest: Any) -> Any:
        encoded.append(len(text_embed))
        return prefix(text_embed, *rest)

    of_clip.sample([], **UNCLIP)
    object.__setattr__(of_clip.network, "prefix", counted)
    try:
        together = of_clip.sample(prompts, **UNCLIP, guidance_scale=scale, num_candidates=2)
    finally:
        object.__delattr__(of_clip.network, "prefix")
    assert encoded[0] == 2
    for row, prompt in enumerate(prompts):
        alone = of_clip.sample([prompt], **UNCLIP, guidance_scale=scale, num_candidates=2, first=row)
        assert close(together[row : row + 1], alone)
    assert not close(together[0], together[2])  # from other noise


def test_a_list_of_generators_draws_each_row_from_its_own() -> None:
    prior = make_raw_prior()
    together = prior.sample(**given(), generator=seeded(5, 6, 7))
    for row, seed in enumerate((5, 6, 7)):
        one = {**given(), "text_embed": given()["text_embed"][[row]], "token_states": given()["token_states"][[row]]}
        assert close(together[[row]], prior.sample(**one, generator=seeded(seed)))
    several = prior.sample(**given(), generator=seeded(*range(6)), num_candidates=2)
    assert several.shape == (3, D)
    for count in (1, 2, 4):
        with pytest.raises(SettingsError, match=f"generator: {count} are given, needed are 1 or 3"):
            prior.sample(**given(), generator=seeded(*range(count)))


def test_more_captions_than_a_batch_use_the_generators_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = make_raw_prior()
    expected = prior.sample(**given(), generator=seeded(5, 6, 7))
    monkeypatch.setattr("priorkit.prior.model.prior.SAMPLE_BATCH", 2)
    assert close(prior.sample(**given(), generator=seeded(5, 6, 7)), expected)


def test_token_states_of_another_width_are_refused() -> None:
    with pytest.raises(SettingsError, match=rf"this prior takes \[3, T, {W}\]"):
        make_raw_prior().sample(**{**given(), "token_states": captions([1, 2, 3], width=W + 1)})


def test_a_folder_gives_what_the_prior_lacks() -> None:
    """A prior of diffusers stores no outputs for empty inputs; a folder of its CLIP does."""

    class Dataset:
        empty_inputs = make_empty()

    prior, complete = make_raw_prior(), make_raw_prior(empty=make_empty())
    prior.take_empty_inputs(Dataset())  # type: ignore[arg-type]
    how = {**given(), "guidance_scale": 3.0}
    assert torch.equal(prior.sample(**how), complete.sample(**how))
    assert torch.equal(prior.zero_image_embed(), complete.zero_image_embed())
