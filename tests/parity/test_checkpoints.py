"""Checkpoints that DALLE2-pytorch's own trainers saved, read, converted and exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.prior.interchange.load import convert, load_prior
from priorkit.prior.interchange.pth import StandIn, read_pth
from priorkit.prior.model.prior import Prior

from .checkpoints import CHECKPOINTS, Checkpoint

TOLERANCE = 1e-5
BY_NAME = {checkpoint.name: checkpoint for checkpoint in CHECKPOINTS}

each = pytest.mark.parametrize(
    ("checkpoint", "weights"),
    [pytest.param(c, weights, id=f"{c.name}-{weights}") for c in CHECKPOINTS for weights in c.weights],
)


def output(prior: Prior, checkpoint: Checkpoint) -> torch.Tensor:
    given = {name: torch.from_numpy(value) for name, value in checkpoint.inputs().items()}
    with torch.inference_mode():
        return prior.network(given.pop("noisy_image_embed"), given.pop("timesteps"), **given)


def relative_error(found: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.abs(found.numpy() - expected).max() / np.abs(expected).max())


def load(checkpoint: Checkpoint, **arguments: object) -> Prior:
    return load_prior(str(checkpoint.pth), config=str(checkpoint.json), **arguments)  # type: ignore[arg-type]


@each
def test_outputs_equal_upstreams(checkpoint: Checkpoint, weights: str) -> None:
    prior = load(checkpoint, weights=weights)
    assert prior.config.network.function_version == checkpoint.release
    assert relative_error(output(prior, checkpoint), checkpoint.expected(weights)) < TOLERANCE


@pytest.mark.parametrize("checkpoint", [c for c in CHECKPOINTS if len(c.weights) == 2], ids=lambda c: c.name)
def test_averaged_and_trained_weights_differ(checkpoint: Checkpoint) -> None:
    """Otherwise the test above could not distinguish them."""
    difference = np.abs(checkpoint.expected("ema") - checkpoint.expected("online")).max()
    assert difference > 100 * TOLERANCE * np.abs(checkpoint.expected("ema")).max()


@each
def test_a_converted_checkpoint_is_the_same_prior(checkpoint: Checkpoint, weights: str, tmp_path: Path) -> None:
    convert(str(checkpoint.pth), str(tmp_path / "prior"), config=str(checkpoint.json), weights=weights)
    direct, converted = load(checkpoint, weights=weights), load_prior(str(tmp_path / "prior"))
    assert converted.config == direct.config
    assert torch.equal(output(converted, checkpoint), output(direct, checkpoint))


@pytest.mark.parametrize("name", ["warmup", "cosine", "plain"])
def test_import_and_export_round_trip(name: str, tmp_path: Path) -> None:
    checkpoint = BY_NAME[name]
    arguments = {"config": str(checkpoint.json), "weights": checkpoint.weights[-1]}
    convert(str(checkpoint.pth), str(tmp_path / "again.pth"), **arguments)
    direct = load(checkpoint, weights=checkpoint.weights[-1])
    for weights in ("ema", "online"):
        again = load_prior(str(tmp_path / "again.pth"), config=str(tmp_path / "again.json"), weights=weights)  # type: ignore[arg-type]
        assert torch.equal(output(again, checkpoint), output(direct, checkpoint))
        assert again.config.network == direct.config.network
        assert again.config.diffusion == direct.config.diffusion


@pytest.mark.parametrize("name", ["warmup", "cosine", "plain"])
def test_an_export_contains_everything_the_trainer_saves(name: str, tmp_path: Path) -> None:
    """Names and shapes of weights, the noise schedule's constants, and the optimiser's groups."""
    checkpoint = BY_NAME[name]
    arguments = {"config": str(checkpoint.json), "weights": "online"}
    convert(str(checkpoint.pth), str(tmp_path / "again.pth"), **arguments)
    theirs, ours = read_pth(str(checkpoint.pth)), read_pth(str(tmp_path / "again.pth"))
    assert ours["model"].keys() == theirs["model"].keys()
    for key, value in theirs["model"].items():
        assert ours["model"][key].shape == value.shape, key
        torch.testing.assert_close(ours["model"][key], value, rtol=1e-5, atol=1e-6, msg=key)
    found, expected = ours["optimizer"]["param_groups"], theirs["optimizer"]["param_groups"]
    if checkpoint.trainer.get("wd") != 0:  # without decay there is one group
        assert [group["params"] for group in found] == [group["params"] for group in expected]
    assert [number for group in found for number in group["params"]] == [
        number for group in expected for number in group["params"]
    ]
    if "ema" in theirs:
        assert ours["ema"].keys() == theirs["ema"].keys()
        for key, value in theirs["ema"].items():
            assert (ours["ema"][key].shape, ours["ema"][key].dtype) == (value.shape, value.dtype), key


def test_releases_differ_on_the_same_weights() -> None:
    checkpoint = BY_NAME["laion"]
    with pytest.raises(InputError, match=r"lacks .*null_image_embed.*also holds net\.null_text_embed"):
        load(checkpoint, function_version="1.15.6")
    older = load(checkpoint, function_version="1.4.3")  # of the same weights, with cosine attention
    assert relative_error(output(older, checkpoint), checkpoint.expected("ema")) > 0.01


def test_pickled_classes_are_read_as_stand_ins() -> None:
    for name in ("warmup", "cosine"):
        content = read_pth(str(BY_NAME[name].pth))
        assert isinstance(content["warmup_scheduler"], StandIn)
        assert isinstance(content["warmup_scheduler"].values["optimizer"], StandIn)
        assert isinstance(content["version"], StandIn)
    assert read_pth(str(BY_NAME["laion"].pth))["samples_seen"] == 20


def test_openais_clip_is_named_as_in_open_clip() -> None:
    named, unnamed = load(BY_NAME["warmup"]), load(BY_NAME["cosine"])
    assert named.config.clip_settings == {"model": "ViT-L-14", "pretrained": "openai"}
    assert unnamed.config.clip_settings == {}
    assert named.config.clip == {}


def test_a_checkpoint_without_averaged_weights_says_so() -> None:
    with pytest.raises(InputError, match=r"plain.pth: holds no ema weights .*; try weights=online"):
        load(BY_NAME["plain"])


@pytest.mark.parametrize("key", ["ema_model", "ema"])
def test_either_copy_of_the_averaged_weights_is_read(key: str, tmp_path: Path) -> None:
    checkpoint = BY_NAME["warmup"]
    content = read_pth(str(checkpoint.pth))
    kept = {"version": "1.15.6", key: content[key]}
    torch.save(kept, tmp_path / "small.pth")
    prior = load_prior(str(tmp_path / "small.pth"), config=str(checkpoint.json))
    assert torch.equal(output(prior, checkpoint), output(load(checkpoint), checkpoint))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"net": {"dim": 16}}, r"net\.learned_query has shape \[8\], its settings make \[16\]"),
        ({"net": {"depth": 3}}, r"lacks net\.causal_transformer\.layers\.2\.0\.null_kv"),
        ({"net": {"depth": 1}}, r"also holds net\.causal_transformer\.layers\.1\.0\."),
        ({"net": {"heads": 4}}, r"relative_attention_bias.weight has shape \[32, 2\], its settings make \[32, 4\]"),
        ({"net": {"dim_head": 8}}, r"null_kv has shape \[2, 4\], its settings make \[2, 8\]"),
        ({"net": {"ff_mult": 4}}, r"layers\.0\.1\.1\.weight has shape \[32, 8\], its settings make \[64, 8\]"),
        ({"net": {"max_text_len": 7}}, r"null_text_encodings has shape \[1, 3, 8\], its settings make \[1, 7, 8\]"),
        ({"net": {"max_text_len": None}}, r"null_text_encodings has shape .*, its settings make \[1, 256, 8\]"),
        ({"net": {"num_timesteps": None}}, r"lacks net\.to_time_embeds\.0\.1\.net\.0\.0\.weight"),
        ({"net": {"num_timesteps": 1000}}, r"to_time_embeds\.0\.weight has shape \[20, 8\], its settings make \[1000"),
        ({"net": {"num_text_embeds": 2}}, r"null_text_embeds has shape \[1, 1, 8\], its settings make \[1, 2, 8\]"),
        ({"net": {"num_image_embeds": 2}}, r"lacks net\.to_image_embeds\.0\.weight, net\.to_image_embeds\.0\.bias"),
        ({"net": {"normformer": False}}, r"also holds net\.causal_transformer\.layers\.0\.1\.3\.g"),
        ({"net": {"norm_in": True}}, r"lacks net\.causal_transformer\.init_norm\.g"),
        ({"net": {"norm_out": False}}, r"also holds net\.causal_transformer\.norm\.g"),
        ({"net": {"final_proj": False}}, r"also holds net\.causal_transformer\.project_out\.weight"),
        ({"net": {"rotary_emb": False}}, r"has rotary embedding, unlike net\.rotary_emb"),
        ({"beta_schedule": "linear", "timesteps": 20}, "linear needs more than 20"),
        ({"beta_schedule": "jsd"}, r"noise schedule has 20 timesteps and is not the jsd one of 20 .*beta_schedule"),
        ({"timesteps": 19}, r"noise schedule has 20 timesteps and is not the cosine one of 19 .*timesteps"),
        ({"timesteps": 21}, r"net\.num_timesteps=20 is fewer than timesteps=21"),
    ],
    ids=str,
)
def test_settings_of_another_checkpoint_are_named(change: dict, named: str, tmp_path: Path) -> None:
    checkpoint = BY_NAME["warmup"]
    changed = {**checkpoint.prior, **change}
    changed["net"] = {**checkpoint.prior["net"], **change.get("net", {})}
    if "dim" in change.get("net", {}):
        changed["image_embed_dim"] = change["net"]["dim"]
    (tmp_path / "other.json").write_text(json.dumps(changed))
    with pytest.raises((InputError, SettingsError), match=named):
        load_prior(str(checkpoint.pth), config=str(tmp_path / "other.json"))


def test_a_missing_rotary_embedding_is_named(tmp_path: Path) -> None:
    checkpoint = BY_NAME["cosine"]
    changed = {**checkpoint.prior, "net": {**checkpoint.prior["net"], "rotary_emb": True}}
    (tmp_path / "other.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match=r"cosine\.pth: has no rotary embedding, unlike net\.rotary_emb"):
        load_prior(str(checkpoint.pth), config=str(tmp_path / "other.json"))
