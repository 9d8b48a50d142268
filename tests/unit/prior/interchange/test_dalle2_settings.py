"""Settings of DALLE2-pytorch's priors, converted to ours and back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from priorkit.pipeline.errors import PriorkitError, SettingsError
from priorkit.prior.interchange.dalle2_settings import (
    NAMED_CONFIGS,
    parse_config,
    require_exportable,
    to_dalle2_config,
    to_prior_config,
)
from priorkit.prior.model.config import PriorConfig, build_network
from priorkit.prior.network.function_version import FunctionVersion
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings

NEWEST = FunctionVersion.parse("1.15.6")
LAIONS = FunctionVersion.parse("0.23.10")


def described(net: dict[str, Any] | None = None, **prior: Any) -> dict[str, Any]:
    """The JSON of a small prior."""
    return {
        "net": {
            "dim": 16,
            "depth": 2,
            "dim_head": 8,
            "heads": 2,
            "max_text_len": 3,
            "num_timesteps": 20,
            **(net or {}),
        },
        "image_embed_dim": 16,
        "timesteps": 20,
        **prior,
    }


def to_ours(net: dict[str, Any] | None = None, function: FunctionVersion = NEWEST, **prior: Any) -> PriorConfig:
    return to_prior_config(parse_config(described(net, **prior), "a.json"), function, "a.json")


def our_config(
    network: dict[str, Any] | None = None, diffusion: dict[str, Any] | None = None, **config: Any
) -> PriorConfig:
    """Settings of ours that DALLE2-pytorch has too, with changes."""
    return PriorConfig(
        **{
            "embed_dim": 16, "token_width": 16, "clip": {}, "clip_settings": {},
            "network": NetworkSettings(
                **{"width": 16, "depth": 2, "heads": 2, "dim_head": 8, "max_text_len": 3, **(network or {})}
            ),
            "diffusion": DiffusionSettings(**{"timesteps": 30, **(diffusion or {})}),
            **config,
        }
    )  # fmt: skip


def test_the_model_cards_settings() -> None:
    """LAION's card: what its code passes, and DALLE2-pytorch's defaults for the rest."""
    config = to_prior_config(parse_config(NAMED_CONFIGS["laion-model-card"], "card"), LAIONS, "card")
    assert (config.embed_dim, config.text_dim, config.token_width) == (768, None, 768)
    assert config.network == NetworkSettings(
        width=768, depth=24, dim_head=64, heads=32, normformer=True, attn_dropout=5e-2, ff_dropout=5e-2,
        num_time_embeds=1, num_image_embeds=1, num_text_embeds=1, num_timesteps=1000, ff_mult=4, max_text_len=256,
        function_version="0.23.10",
    )  # fmt: skip
    assert config.diffusion == DiffusionSettings(
        timesteps=1000, noise_schedule="cosine", prediction="x0", loss="l2", text_drop=0, image_drop=0,
        x0_clamp="none", output_norm="none",
    )  # fmt: skip
    assert config.clip_settings == {"model": "ViT-L-14", "pretrained": "openai"}
    newest = to_prior_config(parse_config(NAMED_CONFIGS["laion-model-card"], "card"), NEWEST, "card")
    assert (newest.diffusion.text_drop, newest.diffusion.image_drop) == (0.1, 0.1)


@pytest.mark.parametrize("function", [LAIONS, NEWEST], ids=str)
def test_the_model_cards_network_has_as_many_weights_as_its_code_makes(function: FunctionVersion) -> None:
    config = to_prior_config(parse_config(NAMED_CONFIGS["laion-model-card"], "card"), function, "card")
    with torch.device("meta"):
        network = build_network(config)
    dim, depth, heads, head, inner = 768, 24, 32, 64, 4 * 768
    attention = dim + 2 * head + dim * heads * head + dim * 2 * head + heads * head * dim + dim
    feed_forward = dim + dim * 2 * inner + inner + inner * dim
    transformer = depth * (attention + feed_forward) + 32 * heads + dim + dim * dim
    embeds = 1000 * dim + dim + 256 * dim  # timesteps, the query, learned padding
    nulls = 2 * dim if function is NEWEST else 0  # of the pooled text and the image
    assert sum(parameter.numel() for parameter in network.parameters()) == transformer + embeds + nulls


@pytest.mark.parametrize(
    ("function", "prior", "expected"),
    [
        (NEWEST, {}, {"prediction": "x0", "x0_clamp": "none", "output_norm": "none", "text_drop": 0}),
        (NEWEST, {"predict_x_start": False}, {"prediction": "eps", "x0_clamp": "unit_box"}),
        (NEWEST, {"predict_x_start": False, "predict_v": True}, {"prediction": "v", "x0_clamp": "unit_box"}),
        (NEWEST, {"predict_v": True}, {"prediction": "v", "x0_clamp": "none"}),
        (NEWEST, {"sampling_clamp_l2norm": True}, {"x0_clamp": "sphere"}),
        (NEWEST, {"sampling_clamp_l2norm": True, "predict_x_start": False}, {"x0_clamp": "unit_box"}),
        (NEWEST, {"sampling_final_clamp_l2norm": True}, {"output_norm": "unit"}),
        (NEWEST, {"sampling_final_clamp_l2norm": True, "predict_x_start": False}, {"output_norm": "none"}),
        (NEWEST, {"training_clamp_l2norm": True}, {"training_clamp": True}),
        (NEWEST, {"training_clamp_l2norm": True, "predict_x_start": False}, {"training_clamp": False}),
        (NEWEST, {"init_image_embed_l2norm": True}, {"init_clamp": True}),
        (NEWEST, {"image_embed_scale": 3.0}, {"embed_scale": 3.0, "normaliser": "sqrt_dim"}),
        (NEWEST, {"cond_drop_prob": 0.2}, {"text_drop": 0.2, "image_drop": 0.2}),
        (NEWEST, {"cond_drop_prob": 0.2, "text_cond_drop_prob": 0.0}, {"text_drop": 0, "image_drop": 0.2}),
        (NEWEST, {"text_cond_drop_prob": 0.3, "image_cond_drop_prob": 0.1}, {"text_drop": 0.3, "image_drop": 0.1}),
        (FunctionVersion.parse("1.9.0"), {"cond_drop_prob": 0.2}, {"text_drop": 0.2, "image_drop": 0.2}),
        (FunctionVersion.parse("1.8.4"), {"cond_drop_prob": 0.2}, {"text_drop": 0, "image_drop": 0}),
        (NEWEST, {"loss_type": "huber", "beta_schedule": "jsd"}, {"loss": "huber", "noise_schedule": "jsd"}),
    ],
)
def test_settings_of_the_diffusion(function: FunctionVersion, prior: dict[str, Any], expected: dict[str, Any]) -> None:
    diffusion = to_ours(function=function, **prior).diffusion.model_dump()
    assert {name: diffusion[name] for name in expected} == expected


def test_settings_of_the_network() -> None:
    config = to_ours({"max_text_len": None, "num_timesteps": None, "ff_mult": 2}, condition_on_text_encodings=False)
    assert (config.network.max_text_len, config.network.num_timesteps) == (256, None)
    assert config.token_width is None
    assert build_network(config).pads_only
    assert to_ours({"max_text_len": 0}).network.max_text_len == 0


@pytest.mark.parametrize(
    ("clip", "located"),
    [
        (None, {}),
        ({"make": "openai", "model": "ViT-B/32"}, {"model": "ViT-B-32", "pretrained": "openai"}),
        ({"make": "openai", "model": "ViT-L/14@336px"}, {"model": "ViT-L-14-336", "pretrained": "openai"}),
        ({"make": "openai", "model": "of our own"}, {}),
        ({"make": "open_clip", "model": "ViT-B-32"}, {}),
        ({"make": "x-clip", "base_model_kwargs": {}}, {}),
        ({}, {"model": "ViT-L-14", "pretrained": "openai"}),
    ],
)
def test_where_the_clip_is(clip: dict[str, Any] | None, located: dict[str, Any]) -> None:
    assert to_ours(clip=clip).clip_settings == located


def test_the_clips_of_openai_are_those_of_open_clip() -> None:
    import open_clip

    from priorkit.prior.interchange.dalle2_settings import _OPENAI_CLIPS

    assert {(name, "openai") for name in _OPENAI_CLIPS.values()} <= set(open_clip.list_pretrained())


def test_the_json_of_a_whole_run_is_taken_too() -> None:
    whole = {"prior": described(), "data": {"batch_size": 3}, "train": {}, "tracker": {}}
    assert parse_config(whole, "a.json") == parse_config(described(), "a.json")


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (None, "a.json: holds no settings"),
        ([described()], "a.json: holds no settings"),
        ("text", "a.json: holds no settings"),
        ({}, "net: Field required"),
        ({"data": {}, "train": {}}, "data: unknown key"),
        (described({"dept": 3}), "net.dept: unknown key; did you mean 'depth'?"),
        (described(cond_drop=0.1), "cond_drop: unknown key; did you mean 'cond_drop_prob'?"),
        ({"prior": described(clamp=True)}, "clamp: unknown key"),
        (described({"depth": "many"}), "net.depth"),
        (described({"depth": 0}), "net.depth"),
        (described({"dim": 4}), "net.dim"),
        ({**described(), "net": [1]}, "net: "),
        (described(image_embed_dim=8), "image_embed_dim=8 differs from net.dim=16"),
        (described(timesteps=21), "net.num_timesteps=20 is fewer than timesteps=21"),
        (described(timesteps=1), "timesteps"),
        (described(beta_schedule="cosin"), "beta_schedule: Input should be 'cosine', 'linear'"),
        (described(loss_type="l3"), "loss_type: Input should be 'l1', 'l2' or 'huber'"),
        (described(cond_drop_prob=2), "cond_drop_prob"),
        (described(text_cond_drop_prob=-1), "text_cond_drop_prob"),
        (described(image_embed_scale=0), "image_embed_scale"),
        (described(beta_schedule="linear"), "linear needs more than 20"),
        (described({"heads": 0}), "heads"),
        (described({"attn_dropout": 1.5}), "attn_dropout"),
        (described({"dim_head": 7}), "dim_head=7 must be even for rotary_emb"),
        (described({"num_text_embeds": 0}), "num_text_embeds"),
        (described({"ff_mult": 0}), "ff_mult"),
    ],
)
def test_wrong_settings_are_named(document: Any, named: str) -> None:
    with pytest.raises(PriorkitError) as error:
        to_prior_config(parse_config(copy.deepcopy(document), "a.json"), NEWEST, "a.json")
    assert str(error.value).startswith("a.json: ")
    assert named in str(error.value)


def test_self_conditioning_before_its_time_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"self_cond=true, but dalle2-pytorch 1\.6\.0 had no self-conditioning"):
        to_ours({"self_cond": True}, FunctionVersion.parse("1.6.0"))


def test_exported_settings_have_the_names_of_dalle2_pytorch() -> None:
    config = our_config(
        {"num_time_embeds": 2, "ff_mult": 3},
        {"prediction": "v", "loss": "huber", "text_drop": 0.3, "image_drop": 0.2, "x0_clamp": "sphere"},
        token_width=None,
    )
    found = to_dalle2_config(config)
    net = found.pop("net")
    assert (net["dim"], net["depth"], net["num_time_embeds"], net["ff_mult"]) == (16, 2, 2, 3)
    assert isinstance(net["ff_mult"], int)
    assert not {"width", "function_version"} & net.keys()
    assert found == {
        "image_embed_dim": 16, "image_size": 224, "timesteps": 30, "text_cond_drop_prob": 0.3,
        "image_cond_drop_prob": 0.2, "loss_type": "huber", "predict_x_start": True, "predict_v": True,
        "beta_schedule": "cosine", "condition_on_text_encodings": False, "sampling_clamp_l2norm": True,
        "sampling_final_clamp_l2norm": config.diffusion.output_norm == "unit", "training_clamp_l2norm": False,
        "init_image_embed_l2norm": False, "image_embed_scale": None,
    }  # fmt: skip
    assert parse_config({"prior": {**found, "net": net}}, "a.json").net.max_text_len == 3


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"network": {"width": 24}}, "network.width=24 is not embed_dim=16"),
    ({"text_dim": 12}, "text_dim=12 is not embed_dim=16"),
    ({"token_width": 12}, "token_width=12 is not embed_dim=16"),
    ({"network": {"ff_mult": 2.5}}, "network.ff_mult=2.5 is no whole number"),
    ({"diffusion": {"normaliser": "whiten"}}, "normaliser=whiten"),
    ({"diffusion": {"normaliser": "standardise"}}, "normaliser=standardise"),
    ({"diffusion": {"x0_clamp": "unit_box", "output_norm": "none"}}, "prediction=x0 with x0_clamp=unit_box"),
    ({"diffusion": {"prediction": "eps"}}, "prediction=eps with x0_clamp=none"),
    ({"diffusion": {"prediction": "eps", "x0_clamp": "sphere"}}, "prediction=eps with x0_clamp=sphere"),
    ({"diffusion": {"prediction": "v", "x0_clamp": "unit_box"}}, "output_norm=unit with x0_clamp=unit_box"),
    (
        {"diffusion": {"prediction": "v", "x0_clamp": "unit_box", "output_norm": "none", "training_clamp": True}},
        "training_clamp with x0_clamp=unit_box",
    ),
    *(
        ({"network": {"function_version": release}}, f"function_version={release}")
        for release in ("0.23.10", "1.4.3", "1.9.0", "1.10.4")
    ),
    ({"network": {"function_version": "1.12.0", "self_cond": True}}, "function_version=1.12.0"),
]


@pytest.mark.parametrize(("change", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_settings_that_dalle2_pytorch_lacks_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError) as error:
        require_exportable(our_config(**change))
    assert str(error.value).startswith("dalle2-pytorch has no such prior: ")
    assert named in str(error.value)


def test_all_reasons_are_named_at_once() -> None:
    with pytest.raises(SettingsError, match=r"text_dim=12 .*; .*normaliser=whiten"):
        require_exportable(our_config(text_dim=12, diffusion={"normaliser": "whiten"}))
