"""Weights of DALLE2-pytorch's priors, converted to ours and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from priorkit.pipeline.errors import InputError
from priorkit.prior.interchange.dalle2_settings import parse_config, to_dalle2_config, to_prior_config
from priorkit.prior.interchange.dalle2_weights import export_weights, import_prior, trainer_checkpoint
from priorkit.prior.model.config import PriorConfig, build_network, build_normaliser
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.function_version import FunctionVersion
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings

NEWEST = FunctionVersion.parse("1.15.6")


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


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """The weights of a prior, as DALLE2-pytorch names them."""
    return export_weights(ours())


def imported(state: dict[str, torch.Tensor]) -> Prior:
    return import_prior(state, ours().config, "a.pth")


def test_missing_and_unknown_weights_are_named(state: dict[str, torch.Tensor]) -> None:
    del state["net.learned_query"]
    with pytest.raises(InputError, match=r"a\.pth: does not fit .* 1\.15\.6: it lacks net\.learned_query$"):
        imported(state)
    state["net.more"] = torch.ones(1)
    with pytest.raises(InputError, match=r"it lacks net\.learned_query and also holds net\.more$"):
        imported(state)
    state |= {f"net.more.{number}": torch.ones(1) for number in range(9)}
    with pytest.raises(InputError, match=r"net\.more\.3 and 5 more$"):
        imported(state)


def test_entries_that_are_not_part_of_a_prior_are_ignored(state: dict[str, torch.Tensor]) -> None:
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
    with pytest.raises(InputError, match=r"also holds .*rotary_emb\.scale"):
        imported(state)


def test_queries_keys_and_values_are_the_rows_of_one_weight_of_ours() -> None:
    prior = ours({"heads": 2, "dim_head": 8})
    theirs, own = export_weights(prior), prior.network.state_dict()
    for layer in range(2):
        qkv = own[f"attention.{layer}.to_qkv.weight"]  # 16 rows of queries, 8 of keys, 8 of values
        name = f"net.causal_transformer.layers.{layer}.0"
        assert torch.equal(theirs[f"{name}.to_q.weight"], qkv[:16])
        assert torch.equal(theirs[f"{name}.to_kv.weight"], qkv[16:])


def test_every_weight_has_the_name_of_its_part() -> None:
    prior = ours({"normformer": True, "norm_in": True})
    theirs, own = export_weights(prior), prior.network.state_dict()
    layer = "net.causal_transformer.layers.1"
    pairs = {
        "query": "net.learned_query",
        "to_time.mlp.0.weight": "net.to_time_embeds.0.1.net.0.0.weight",
        "to_time.mlp.2.bias": "net.to_time_embeds.0.1.net.1.0.bias",
        "to_time.mlp.4.weight": "net.to_time_embeds.0.1.net.2.weight",
        "attention.1.norm.weight": f"{layer}.0.norm.g",
        "attention.1.to_stream.weight": f"{layer}.0.to_out.0.weight",
        "attention.1.out_norm.weight": f"{layer}.0.to_out.1.g",
        "feed_forward.1.norm.weight": f"{layer}.1.0.g",
        "feed_forward.1.to_inner.weight": f"{layer}.1.1.weight",
        "feed_forward.1.inner_norm.weight": f"{layer}.1.3.g",
        "feed_forward.1.to_stream.weight": f"{layer}.1.5.weight",
        "norm_in.weight": "net.causal_transformer.init_norm.g",
        "norm_out.weight": "net.causal_transformer.norm.g",
        "to_embed.weight": "net.causal_transformer.project_out.weight",
    }
    for mine, name in pairs.items():
        assert torch.equal(theirs[name], own[mine]), mine
    for mine, name in (("null_text", "net.null_text_embeds"), ("null_image", "net.null_image_embed")):
        assert torch.equal(theirs[name], own[mine][None]), mine


def test_a_trainers_checkpoint_has_the_weights_in_each_of_its_parts() -> None:
    prior = ours()
    weights = export_weights(prior)
    found = trainer_checkpoint(weights, prior.schedule.alpha_bar)
    assert (found["version"], found["step"].tolist()) == ("1.15.6", [0])
    for part in (found["model"], found["ema_model"]):
        assert all(torch.equal(part[name], value) for name, value in weights.items())
    for prefix in ("online_model.", "ema_model."):
        assert {name.removeprefix(prefix) for name in found["ema"] if name.startswith(prefix)} == set(found["model"])
    matrices = [n for n, v in weights.items() if v.ndim > 1 and ".rotary_emb." not in n]
    vectors = [n for n, v in weights.items() if v.ndim < 2 and ".rotary_emb." not in n]
    groups = found["optimizer"]["param_groups"]
    assert [len(group["params"]) for group in groups] == [len(matrices), len(vectors) + 1]  # one rotary embedding
    assert [group["weight_decay"] for group in groups] == [0.01, 0]


def test_the_constants_of_a_noise_schedule_follow_from_its_betas() -> None:
    """Computed the other way round, from beta, as DALLE2-pytorch does."""
    prior = ours()
    found = trainer_checkpoint(export_weights(prior), prior.schedule.alpha_bar)["model"]

    def constant(name: str) -> torch.Tensor:
        return found[f"noise_scheduler.{name}"].double()

    beta = constant("betas")
    cumulative = torch.cumprod(1 - beta, dim=0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), cumulative[:-1]])
    expected = {
        "alphas_cumprod": cumulative, "alphas_cumprod_prev": before, "sqrt_alphas_cumprod": cumulative.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - cumulative).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - cumulative).log(),
        "posterior_variance": beta * (1 - before) / (1 - cumulative),
        "posterior_mean_coef1": beta * before.sqrt() / (1 - cumulative),
        "posterior_mean_coef2": (1 - before) * (1 - beta).sqrt() / (1 - cumulative),
        "p2_loss_weight": torch.ones(30, dtype=torch.float64),
    }  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(constant(name), value, rtol=1e-3, atol=1e-5)
    ratio = constant("sqrt_recip_alphas_cumprod")[:-1]
    torch.testing.assert_close(ratio, (1 / cumulative[:-1]).sqrt(), rtol=1e-3, atol=1e-5)
    ratio = constant("sqrt_recipm1_alphas_cumprod")[:-1]
    torch.testing.assert_close(ratio, (1 / cumulative[:-1] - 1).sqrt(), rtol=1e-3, atol=1e-5)
