"""Settings of the prior: refused values, and settings that count as a change."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from pydantic import ValidationError

from priorkit.pipeline.errors import SettingsError
from priorkit.pipeline.settings import Settings, parse_settings
from priorkit.prior.decode.settings import DecodeSettings
from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.network.network import PriorNetwork
from priorkit.prior.network.prior_transformer.settings import PriorTransformerSettings
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings
from priorkit.prior.sampling.settings import SampleSettings
from priorkit.prior.train.settings import OptimiserSettings, TrainSettings

EVERY = (
    DecodeSettings,
    DiffusionSettings,
    EvaluateSettings,
    NetworkSettings,
    OptimiserSettings,
    PriorTransformerSettings,
    SampleSettings,
    TrainSettings,
)


@pytest.mark.parametrize("cls", EVERY)
def test_every_field_is_documented_and_has_a_default(cls: type[Settings]) -> None:
    settings = cls()
    for name, field in cls.model_fields.items():
        assert field.description, name
    assert cls.model_validate(settings.model_dump()) == settings
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, next(iter(cls.model_fields)), None)


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (NetworkSettings, {"width": 7}),
        (NetworkSettings, {"depth": 0}),
        (NetworkSettings, {"dim_head": 1}),
        (NetworkSettings, {"ff_mult": 0}),
        (NetworkSettings, {"attn_dropout": 1.0}),
        (NetworkSettings, {"ff_dropout": -0.1}),
        (NetworkSettings, {"max_text_len": -1}),
        (NetworkSettings, {"num_timesteps": 1}),
        (NetworkSettings, {"num_time_embeds": 0}),
        (NetworkSettings, {"num_image_embeds": 0}),
        (NetworkSettings, {"num_text_embeds": 0}),
        (DiffusionSettings, {"timesteps": 1}),
        (DiffusionSettings, {"text_drop": 1.1}),
        (DiffusionSettings, {"image_drop": -0.1}),
        (DiffusionSettings, {"noise_schedule": "sqrt"}),
        (DiffusionSettings, {"prediction": "x1"}),
        (DiffusionSettings, {"loss": "mse"}),
        (DiffusionSettings, {"normaliser": "zca"}),
        (DiffusionSettings, {"embed_scale": 0}),
        (DiffusionSettings, {"x0_clamp": "box"}),
        (DiffusionSettings, {"output_norm": "sphere"}),
        (DiffusionSettings, {"x0_clamp": "range", "clip_sample_range": 0}),
        (OptimiserSettings, {"learning_rate": 0}),
        (OptimiserSettings, {"ema_decay": 1.0}),
        (OptimiserSettings, {"learning_rate": float("nan")}),
        (TrainSettings, {"batch_size": 0}),
        (TrainSettings, {"seed": -1}),
        (TrainSettings, {"device": "tpu"}),
        (SampleSettings, {"guidance_scale": -1}),
        (SampleSettings, {"guidance_scale": float("nan")}),
        (SampleSettings, {"guidance_scale": float("inf")}),
        (SampleSettings, {"steps": 0}),
        (SampleSettings, {"sampler": "euler"}),
        (SampleSettings, {"guidance": "cfg"}),
        (EvaluateSettings, {"splits": ["train"]}),
        (EvaluateSettings, {"max_rows": 1}),
    ],
)
def test_values_out_of_range_are_refused(cls: type[Settings], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cls(**values)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (NetworkSettings, {"dim_head": 15}, "dim_head=15 must be even for rotary_emb"),
        (NetworkSettings, {"width": 33}, "width=33 must be even for sinusoidal timesteps; or set num_timesteps"),
        (NetworkSettings, {"function_version": "1.16.0"}, "dalle2-pytorch 1.16.0: releases 0.23.3 to 1.15.6 are known"),
        (NetworkSettings, {"function_version": "1.11.0"}, "1.11.0 trained v on a target of the wrong sign"),
        (NetworkSettings, {"function_version": "newest"}, "'newest' is not a release of dalle2-pytorch"),
        (
            NetworkSettings,
            {"self_cond": True, "function_version": "1.4.3"},
            "self_cond=True: dalle2-pytorch 1.4.3 had none",
        ),
        (
            DiffusionSettings,
            {"embed_scale": 2.0, "normaliser": "standardise"},
            "embed_scale has no meaning for normaliser=standardise",
        ),
        (
            DiffusionSettings,
            {"training_clamp": True, "normaliser": "whiten"},
            "training_clamp needs normaliser=sqrt_dim, not whiten",
        ),
        (DiffusionSettings, {"x0_clamp": "range"}, "x0_clamp=range needs clip_sample_range, such as 10"),
        *[
            (
                DiffusionSettings,
                {"x0_clamp": clamp, "clip_sample_range": 5.0},
                f"clip_sample_range has no effect with x0_clamp={clamp}; set x0_clamp=range",
            )
            for clamp in ("none", "unit_box", "sphere")
        ],
        *[
            (
                DiffusionSettings,
                {"x0_clamp": clamp, "normaliser": "clip_stats"},
                f"x0_clamp={clamp} does not fit normaliser=clip_stats; use range or none",
            )
            for clamp in ("unit_box", "sphere")
        ],
        (
            DiffusionSettings,
            {"init_clamp": True, "normaliser": "clip_stats"},
            "init_clamp does not fit normaliser=clip_stats; leave it out",
        ),
        (
            DiffusionSettings,
            {"training_clamp": True, "normaliser": "clip_stats"},
            "training_clamp needs normaliser=sqrt_dim, not clip_stats",
        ),
        *[
            (DiffusionSettings, {"noise_schedule": name, "timesteps": 20}, f"timesteps=20: {name} needs more than 20")
            for name in ("linear", "quadratic", "sigmoid")
        ],
        *[
            (
                TrainSettings,
                {"network": {"function_version": "1.8.4"}, "diffusion": {"text_drop": 0, "image_drop": 0, **drops}},
                "dalle2-pytorch 1.8.4 had nothing in place of what is dropped: set diffusion.text_drop and",
            )
            for drops in ({"text_drop": 0.1}, {"image_drop": 0.1})
        ],
    ],
)
def test_impossible_combinations_are_named(cls: type[Settings], values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        parse_settings(cls, values, "recipe")


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (NetworkSettings, {"dim_head": 15, "rotary_emb": False}),
        (NetworkSettings, {"width": 33, "num_timesteps": 1000}),
        (NetworkSettings, {"self_cond": True, "function_version": "1.6.1"}),
        (DiffusionSettings, {"noise_schedule": "linear", "timesteps": 21}),
        (DiffusionSettings, {"noise_schedule": "jsd", "timesteps": 2}),
        (DiffusionSettings, {"embed_scale": 1.0, "training_clamp": True}),
        (DiffusionSettings, {"x0_clamp": "range", "clip_sample_range": 5.0, "normaliser": "clip_stats"}),
        (DiffusionSettings, {"x0_clamp": "range", "clip_sample_range": 0.5}),
        (TrainSettings, {"network": {"function_version": "1.8.4"}, "diffusion": {"text_drop": 0}}),
        (SampleSettings, {"guidance_scale": 0}),
    ],
)
def test_combinations_at_the_limit_are_accepted(cls: type[Settings], values: dict[str, Any]) -> None:
    settings = parse_settings(cls, values, "recipe")
    assert cls.model_validate(settings.model_dump()) == settings


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (NetworkSettings, {"dropout": 0.1}, "recipe: dropout: unknown key; did you mean 'ff_dropout'?"),
        (NetworkSettings, {"self_conditioning": True}, "self_conditioning: unknown key; did you mean 'self_cond'?"),
        (DiffusionSettings, {"shedule": "cosine"}, "shedule: unknown key; did you mean 'noise_schedule'?"),
        (DiffusionSettings, {"normalizer": "whiten"}, "normalizer: unknown key; did you mean 'normaliser'?"),
        (SampleSettings, {"guidance_scales": 3}, "guidance_scales: unknown key; did you mean 'guidance_scale'?"),
        (SampleSettings, {"guidence": "text"}, "guidence: unknown key; did you mean 'guidance'?"),
        (TrainSettings, {"network": {"heds": 2}}, "network.heds: unknown key; did you mean 'heads'?"),
        (EvaluateSettings, {"sample": {"zzz": 1}}, "sample.zzz: unknown key; known keys: guidance, guidance_scale,"),
    ],
)
def test_unknown_keys_name_the_nearest(cls: type[Settings], values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        parse_settings(cls, values, "recipe")


def test_the_network_accepts_every_setting() -> None:
    """`build_network` passes all settings by name."""
    arguments = set(inspect.signature(PriorNetwork.__init__).parameters) - {"self"}
    assert arguments == set(NetworkSettings.model_fields) - {"family"} | {"embed_dim", "text_dim", "token_width"}


def test_defaults_of_the_network_and_its_settings_agree() -> None:
    parameters = inspect.signature(PriorNetwork.__init__).parameters
    for name, field in NetworkSettings.model_fields.items():
        if name == "family":
            continue
        default = parameters[name].default
        assert default in (inspect.Parameter.empty, field.default), name
