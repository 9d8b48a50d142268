"""Samples equal those of diffusers' pipelines, from the same noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from diffusers import (
    DDPMScheduler,
    KandinskyPriorPipeline,
    KandinskyV22PriorPipeline,
    StableUnCLIPPipeline,
    UnCLIPScheduler,
)
from diffusers.pipelines.deprecated.unclip.pipeline_unclip import UnCLIPPipeline
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

from priorkit.prior.model.prior import Prior
from priorkit.prior.sampling import unclip

from .unclip import Texts, make_diffusers_prior, make_prior

pytestmark = pytest.mark.slow  # importing diffusers takes seconds

DIM, CLIP_RANGE = 32, 2.0
TEXTS = Texts(DIM)
PROMPTS = ["a cat", "two dogs on a red boat", "x"]
TOLERANCE = 5e-6


class Reached(Exception):
    """Raised to end a pipeline after its prior."""


@pytest.fixture(scope="module")
def theirs() -> Any:
    return make_diffusers_prior(3, num_attention_heads=4, attention_head_dim=16, num_layers=3, embedding_dim=DIM)


@pytest.fixture
def ours(theirs: Any) -> Prior:
    return make_prior(theirs, TEXTS, CLIP_RANGE)


def encoded(prompts: list[str], negatives: list[str], guided: bool) -> tuple[torch.Tensor, ...]:
    positive = TEXTS.padded(prompts)
    if not guided:
        return positive
    return tuple(torch.cat(pair) for pair in zip(TEXTS.padded(negatives, seed=1), positive, strict=True))


def kandinsky(cls: type, prior: Any) -> Any:
    """A pipeline of real parts, but for the text encoder, which gives texts their made-up encodings."""

    class Pipeline(cls):  # type: ignore[misc, valid-type]
        def _encode_prompt(self, prompt: Any, device: Any, images: int, guided: bool, negative: Any = None) -> Any:
            prompts = [prompt] if isinstance(prompt, str) else prompt
            negatives = [""] * len(prompts) if negative is None else negative
            parts = encoded(prompts, negatives, guided)
            return tuple(part.repeat_interleave(images, dim=0) for part in parts)

    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, projection_dim=DIM, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    scheduler = UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000, clip_sample=True,
        clip_sample_range=CLIP_RANGE,
    )  # fmt: skip
    pipeline = Pipeline(
        prior=prior, image_encoder=transformers.CLIPVisionModelWithProjection(vision).eval(), text_encoder=None,
        tokenizer=None, scheduler=scheduler, image_processor=None,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("cls", [KandinskyV22PriorPipeline, KandinskyPriorPipeline])
@pytest.mark.parametrize(("steps", "scale"), [(25, 1.0), (25, 4.0), (2, 4.0), (7, 3.0)])
@pytest.mark.parametrize("negative", [None, ["blurred", "", "blurred"]])
def test_kandinsky(theirs: Any, ours: Prior, cls: type, steps: int, scale: float, negative: Any) -> None:
    """With a negative prompt, the pipeline also samples from the negative prompts, in the second half of the batch."""
    result = kandinsky(cls, theirs)(
        PROMPTS, negative_prompt=negative, num_inference_steps=steps, guidance_scale=scale, generator=seeded()
    )
    prompts, negatives = PROMPTS, None
    if negative is not None:
        prompts, negatives = PROMPTS + negative, 2 * negative
    drawn = ours.sample(
        prompts, steps=steps, sampler="unclip", guidance_scale=scale, generator=seeded(),
        negative_prompt=negatives if scale != 1 else None,
    )  # fmt: skip
    assert difference(drawn[:3], result.image_embeds) <= TOLERANCE
    if negative is not None:
        assert difference(drawn[3:], result.negative_image_embeds) <= TOLERANCE


def test_a_float64_schedule_gives_other_samples(theirs: Any, ours: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    result = kandinsky(KandinskyV22PriorPipeline, theirs)(PROMPTS, num_inference_steps=25, generator=seeded())

    def exact(timesteps: int) -> tuple[torch.Tensor, torch.Tensor]:
        alpha_bar = ours.schedule.alpha_bar
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        return 1 - alpha_bar / before, alpha_bar

    monkeypatch.setattr(unclip, "float32_schedule", exact)
    drawn = ours.sample(PROMPTS, steps=25, sampler="unclip", guidance_scale=4.0, generator=seeded())
    assert difference(drawn, result.image_embeds) > 10 * TOLERANCE


def test_one_generator_for_each_image_and_two_images_a_prompt(theirs: Any, ours: Prior) -> None:
    pipeline = kandinsky(KandinskyV22PriorPipeline, theirs)
    result = pipeline(PROMPTS[:2], num_images_per_prompt=2, generator=[seeded(seed) for seed in range(4)])
    prompts = [prompt for prompt in PROMPTS[:2] for _ in range(2)]
    drawn = ours.sample(
        prompts, steps=25, sampler="unclip", guidance_scale=4.0, generator=[seeded(seed) for seed in range(4)]
    )
    assert difference(drawn, result.image_embeds) <= TOLERANCE


def prior_of(
    pipeline: Any, prior: Any, monkeypatch: pytest.MonkeyPatch, *prompts: Any, **arguments: Any
) -> torch.Tensor:
    """Image embeddings of a pipeline that would go on to its decoder."""
    finish, found = prior.post_process_latents, []

    def finished(latents: torch.Tensor) -> torch.Tensor:
        found.append(finish(latents))
        raise Reached

    monkeypatch.setattr(prior, "post_process_latents", finished)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(Reached):
        pipeline(*prompts, **arguments)
    return found[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_karlo(theirs: Any, ours: Prior, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    class Pipeline(UnCLIPPipeline):
        def _encode_prompt(self, prompt: Any, device: Any, images: int, guided: bool, *_: Any) -> Any:
            return encoded(prompt, [""] * len(prompt), guided)

    scheduler = UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=CLIP_RANGE)
    pipeline = Pipeline(
        prior=theirs, decoder=None, text_encoder=None, tokenizer=None, text_proj=None, super_res_first=None,
        super_res_last=None, prior_scheduler=scheduler, decoder_scheduler=None, super_res_scheduler=None,
    )  # fmt: skip
    expected = prior_of(
        pipeline, theirs, monkeypatch, PROMPTS, prior_num_inference_steps=25, prior_guidance_scale=scale,
        decoder_guidance_scale=1.0, generator=seeded(),
    )  # fmt: skip
    drawn = ours.sample(PROMPTS, steps=25, sampler="unclip", guidance_scale=scale, generator=seeded())
    assert difference(drawn, expected) <= TOLERANCE


@pytest.mark.parametrize(("steps", "scale"), [(25, 1.0), (25, 4.0), (7, 4.0)])
def test_stable_unclip(theirs: Any, ours: Prior, monkeypatch: pytest.MonkeyPatch, steps: int, scale: float) -> None:
    """The scheduler has the schedule that Karlo was trained with. (`from_config` of Karlo's gives a linear one.)"""

    class Pipeline(StableUnCLIPPipeline):
        def _encode_prior_prompt(
            self, prompt: Any, device: Any, num_images_per_prompt: int, do_classifier_free_guidance: bool, **_: Any
        ) -> Any:
            return encoded(prompt, [""] * len(prompt), do_classifier_free_guidance)

    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", variance_type="fixed_small_log", prediction_type="sample",
        clip_sample_range=CLIP_RANGE,
    )  # fmt: skip
    pipeline = Pipeline(
        prior_tokenizer=None, prior_text_encoder=None, prior=theirs,
        prior_scheduler=scheduler,
        image_normalizer=StableUnCLIPImageNormalizer(DIM), image_noising_scheduler=DDPMScheduler(), tokenizer=None,
        text_encoder=None, unet=None, scheduler=None, vae=None,
    )  # fmt: skip
    expected = prior_of(
        pipeline, theirs, monkeypatch, PROMPTS, height=64, width=64, prior_num_inference_steps=steps,
        prior_guidance_scale=scale, generator=seeded(),
    )  # fmt: skip
    drawn = ours.sample(PROMPTS, steps=steps, sampler="unclip-ddpm", guidance_scale=scale, generator=seeded())
    assert difference(drawn, expected) <= TOLERANCE
