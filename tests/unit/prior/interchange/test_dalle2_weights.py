"""DALLE2-pytorch's settings and weight names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from priorkit.pipeline.errors import InputError, PriorkitError, SettingsError
from priorkit.prior.interchange.dalle2_settings import NAMED_CONFIGS, parse_config, to_dalle2_config, to_prior_config
from priorkit.prior.interchange.dalle2_weights import export_weights, import_prior
from priorkit.prior.model.config import PriorConfig, build_network, build_normaliser
from priorkit.prior.model.prior import Prior
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


def random_prior(config: PriorConfig) -> Prior:
    network = build_network(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return Prior(config, network, build_normaliser(config))


def ours(network: dict[str, Any] | None = None, diffusion: dict[str, Any] | None = None, **config: Any) -> Prior:
    """A prior of ours that DALLE2-pytorch could have too, changed."""
    return random_prior(
        PriorConfig(
            **{
                "embed_dim": 16, "token_width": 16, "clip": {}, "clip_settings": {},
                "network": NetworkSettings(
                    **{"width": 16, "depth": 2, "heads": 2, "dim_head": 8, "max_text_len": 3, **(network or {})}
                ),
                "diffusion": DiffusionSettings(**{"timesteps": 30, **(diffusion or {})}),
                **config,
            }
        )
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
def test_what_is_wrong_with_settings_is_named(document: Any, named: str) -> None:
    with pytest.raises(PriorkitError) as error:
        to_prior_config(parse_config(copy.deepcopy(document), "a.json"), NEWEST, "a.json")
    assert str(error.value).startswith("a.json: ")
    assert named in str(error.value)


def test_self_conditioning_before_its_time_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"self_cond=true, but dalle2-pytorch 1\.6\.0 had no self-conditioning"):
        to_ours({"self_cond": True}, FunctionVersion.parse("1.6.0"))


EXPORTABLE: list[dict[str, Any]] = [
    {},
    {"network": {"max_text_len": 0}},
    {"token_width": None},
    {"token_width": None, "network": {"max_text_len": 0}},
    {"network": {"num_timesteps": 40, "num_time_embeds": 2, "num_image_embeds": 3, "num_text_embeds": 2}},
    {"network": {"self_cond": True, "rotary_emb": False, "norm_in": True, "norm_out": False, "final_proj": False}},
    {"network": {"normformer": True, "ff_mult": 2, "attn_dropout": 0.1, "ff_dropout": 0.2, "dim_head": 40}},
    {"diffusion": {"prediction": "eps", "x0_clamp": "unit_box", "output_norm": "none", "loss": "l1"}},
    {"diffusion": {"prediction": "v", "x0_clamp": "unit_box", "output_norm": "none"}},
    {"diffusion": {"prediction": "v", "x0_clamp": "sphere", "embed_scale": 2.0, "noise_schedule": "sigmoid"}},
    {"diffusion": {"prediction": "v", "x0_clamp": "none", "output_norm": "none", "training_clamp": True}},
    {"diffusion": {"x0_clamp": "sphere", "init_clamp": True, "text_drop": 0.3, "image_drop": 0.2, "loss": "huber"}},
    {"network": {"function_version": "1.12.1"}},
    {"network": {"function_version": "1.10.8"}},
]


@pytest.mark.parametrize("change", EXPORTABLE, ids=str)
def test_a_prior_comes_back_from_its_export(change: dict[str, Any]) -> None:
    prior = ours(**change)
    state, settings = export_weights(prior), to_dalle2_config(prior.config)
    config = to_prior_config(parse_config(settings, "a.json"), NEWEST, "a.json")
    assert config.diffusion == prior.config.diffusion
    assert config.network == prior.config.network.model_copy(update={"function_version": "1.15.6"})
    again = import_prior(state, config, "a.pth")
    expected = prior.network.state_dict()
    assert again.network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in again.network.state_dict().items())
    assert again.config.model_copy(update={"network": prior.config.network}) == prior.config


def test_an_export_shares_no_memory_with_the_prior() -> None:
    prior = ours()
    kept = {name: value.clone() for name, value in export_weights(prior).items()}
    state = export_weights(prior)
    for value in prior.network.state_dict().values():
        value.add_(1)
    assert all(torch.equal(value, kept[name]) for name, value in state.items())


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
def test_what_dalle2_pytorch_has_not_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError) as error:
        export_weights(ours(**change))
    assert str(error.value).startswith("dalle2-pytorch has no such prior: ")
    assert named in str(error.value)


def test_all_reasons_are_named_at_once() -> None:
    with pytest.raises(SettingsError, match=r"text_dim=12 .*; .*normaliser=whiten"):
        export_weights(ours(text_dim=12, diffusion={"normaliser": "whiten"}))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """The weights of a prior, as DALLE2-pytorch names them."""
    return export_weights(ours())


def imported(state: dict[str, torch.Tensor]) -> Prior:
    return import_prior(state, ours().config, "a.pth")


def test_missing_and_left_over_weights_are_named(state: dict[str, torch.Tensor]) -> None:
    del state["net.learned_query"]
    with pytest.raises(InputError, match=r"a\.pth: does not fit .* 1\.15\.6: it lacks net\.learned_query$"):
        imported(state)
    state["net.more"] = torch.ones(1)
    with pytest.raises(InputError, match=r"it lacks net\.learned_query and holds besides net\.more$"):
        imported(state)
    state |= {f"net.more.{number}": torch.ones(1) for number in range(9)}
    with pytest.raises(InputError, match=r"net\.more\.3 and 5 more$"):
        imported(state)


def test_what_is_no_part_of_a_prior_is_left_alone(state: dict[str, torch.Tensor]) -> None:
    state |= {"clip.visual.weight": torch.ones(3), "noise_scheduler.betas": torch.ones(1), "_dummy": torch.ones(1)}
    imported(state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net.learned_query", torch.ones(())),
        ("net.learned_query", torch.ones(1, 16)),
        ("net.causal_transformer.layers.0.0.to_kv.weight", torch.ones(16, 3)),
        ("net.causal_transformer.layers.0.0.to_kv.weight", torch.ones(())),
        ("net.causal_transformer.layers.0.0.to_q.weight", torch.ones(24, 16)),
        ("net.null_text_encodings", torch.ones(3, 16)),
        ("net.null_image_embed", torch.ones(2, 16)),
    ],
)
def test_another_shape_is_named(name: str, value: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
    expected = list(state[name].shape)
    state[name] = value
    with pytest.raises(InputError) as error:
        imported(state)
    assert f"{name} has shape {list(value.shape)}, its settings make {expected}" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_become_float32(dtype: torch.dtype, state: dict[str, torch.Tensor]) -> None:
    prior = imported({name: value.to(dtype) for name, value in state.items()})
    assert {value.dtype for value in prior.network.state_dict().values()} == {torch.float32}
    assert torch.equal(prior.network.query, state["net.learned_query"].to(dtype).float())


@pytest.mark.parametrize("alpha_bar", [torch.ones(()), torch.ones(29), torch.ones(30), torch.ones(30, 1)])
def test_another_noise_schedule_is_named(alpha_bar: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
    state["noise_scheduler.alphas_cumprod"] = alpha_bar
    with pytest.raises(InputError, match=r"noise schedule has \d+ timesteps and is not the cosine one of 30"):
        imported(state)


def test_its_own_noise_schedule_is_accepted(state: dict[str, torch.Tensor]) -> None:
    state["noise_scheduler.alphas_cumprod"] = ours().schedule.alpha_bar.half()
    imported(state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_rotary_frequencies_are_accepted(dtype: torch.dtype, state: dict[str, torch.Tensor]) -> None:
    rotary = {name: value.to(dtype) for name, value in state.items() if ".rotary_emb." in name}
    assert rotary
    imported({**state, **rotary})


@pytest.mark.parametrize("change", [lambda f: f * 1.01, lambda f: f[:-1], lambda f: f * float("nan"), torch.zeros_like])
def test_other_rotary_frequencies_are_named(
    change: Callable[[torch.Tensor], torch.Tensor], state: dict[str, torch.Tensor]
) -> None:
    name = "net.causal_transformer.layers.1.0.rotary_emb.freqs"
    state[name] = change(state[name])
    with pytest.raises(InputError, match=r"a\.pth: net\..*\.layers\.1\.0\.rotary_emb\.freqs holds other"):
        imported(state)


def test_a_rotary_embedding_with_scales_is_not_ours(state: dict[str, torch.Tensor]) -> None:
    state["net.causal_transformer.layers.0.0.rotary_emb.scale"] = torch.ones(8)
    with pytest.raises(InputError, match=r"holds besides .*rotary_emb\.scale"):
        imported(state)
