"""Config files of diffusers, and the settings that they become."""

from __future__ import annotations

from typing import Any

import pytest

from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.prior.interchange.diffusers.settings import (
    require_exportable,
    to_prior_config,
    to_scheduler_config,
    to_transformer_config,
)
from priorkit.prior.model.config import PriorConfig
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings

from .folders import CONFIG, ECLIPSE, SCHEDULER


def converted(config: dict[str, Any], scheduler: dict[str, Any] | None = None) -> PriorConfig:
    return to_prior_config(config, scheduler, "prior/config.json", "scheduler/scheduler_config.json")


def test_missing_keys_have_the_defaults_of_diffusers() -> None:
    config = converted({"_class_name": "PriorTransformer"})
    network = config.network.model_dump()
    assert (config.embed_dim, config.text_dim, config.token_width) == (768, None, 768)
    assert (network["num_attention_heads"], network["num_layers"], network["num_embeddings"]) == (32, 20, 77)
    assert config.diffusion == DiffusionSettings(normaliser="clip_stats")
    assert config.diffusion.text_drop == 0.1
    assert config.clip == config.clip_settings == {}


def test_the_scheduler_sets_the_range() -> None:
    diffusion = converted(CONFIG, {**SCHEDULER, "clip_sample_range": 10}).diffusion
    assert (diffusion.x0_clamp, diffusion.clip_sample_range, diffusion.timesteps) == ("range", 10.0, 1000)
    diffusion = converted(CONFIG, {**SCHEDULER, "clip_sample": False}).diffusion
    assert (diffusion.x0_clamp, diffusion.clip_sample_range) == ("none", None)
    assert converted(CONFIG, {"prediction_type": "sample"}).diffusion.clip_sample_range == 1.0  # diffusers' default


def test_eclipse_has_no_timestep_and_no_guidance() -> None:
    config = converted(ECLIPSE, SCHEDULER)
    assert not config.network.uses_time
    assert config.diffusion == DiffusionSettings(normaliser="clip_stats", text_drop=0.0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"encoder_hid_proj_type": None}, "encoder_hid_proj_type=null belongs to another network, such as Shap-E's"),
        ({"added_emb_type": None}, "added_emb_type=null belongs to another network"),
        ({"clip_embed_dim": 99}, "clip_embed_dim=99 is not embedding_dim=12"),
        ({"additional_embeddings": 5}, "additional_embeddings=5: known are 4, and 3"),
        ({"num_layer": 2}, "num_layer: unknown key; did you mean 'num_layers'"),
        ({"norm_in_type": "group"}, "norm_in_type: .*'layer'"),
        ({"time_embed_act_fn": "tanh"}, "time_embed_act_fn"),
        ({"embedding_dim": 0}, "embedding_dim: .*greater than or equal to 1"),
    ],
)
def test_other_networks_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"prior/config.json: {named}"):
        converted({**CONFIG, **changes})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prediction_type": "epsilon"}, "prediction_type=epsilon: a PriorTransformer predicts x0"),
        ({"variance_type": "learned_range"}, "variance_type=learned_range"),
        ({"beta_schedule": "linear"}, "beta_schedule=linear: priorkit has only squaredcos_cap_v2"),
        ({"thresholding": True}, "thresholding=true: priorkit has only false"),
        ({"clip_sample_range": 0}, "clip_sample_range: .*greater than 0"),
    ],
)
def test_other_schedulers_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"scheduler/scheduler_config.json: {named}"):
        converted(CONFIG, {**SCHEDULER, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"norm_in_type": "layer", "embedding_proj_norm_type": "layer", "time_embed_dim": 6, "dropout": 0.1},
        {"time_embed_act_fn": "gelu", "embedding_proj_dim": None}, {"additional_embeddings": 3},
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheduler", [SCHEDULER, {**SCHEDULER, "clip_sample": False, "num_train_timesteps": 500}])
def test_there_and_back_is_the_same(changes: dict[str, Any], scheduler: dict[str, Any]) -> None:
    config = converted({**CONFIG, **changes}, scheduler)
    require_exportable(config)
    theirs = to_transformer_config(config)
    assert ("time_embed_act_fn" in theirs) == config.network.uses_time  # ECLIPSE's class does not take it
    assert converted(theirs, to_scheduler_config(config)) == config


def test_priors_that_diffusers_cannot_hold_are_refused() -> None:
    config = converted(CONFIG)
    wide = config.model_copy(update={"token_width": 7})
    with pytest.raises(SettingsError, match="token states have width 7, and image embeddings size 12"):
        require_exportable(wide)
    linear = config.diffusion.model_copy(update={"noise_schedule": "linear"})
    with pytest.raises(SettingsError, match=r"noise_schedule=linear is not cosine; no CLIP made its embeddings"):
        require_exportable(config.model_copy(update={"diffusion": linear, "spaces": {"source": {}}}))
    clamped = converted(ECLIPSE).model_copy(update={"diffusion": converted(CONFIG, SCHEDULER).diffusion})
    with pytest.raises(SettingsError, match="x0_clamp=range needs a scheduler"):
        require_exportable(clamped)
    causal = PriorConfig(
        embed_dim=8, token_width=None, network=NetworkSettings(), diffusion=DiffusionSettings(), clip={},
        clip_settings={},
    )  # fmt: skip
    with pytest.raises(SettingsError, match=r"no network for a causal-transformer; give a decoder .*sample`"):
        require_exportable(causal)
