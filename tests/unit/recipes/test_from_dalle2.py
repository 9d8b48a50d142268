"""Recipes from DALLE2-pytorch's training configuration: every key is used or named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.recipes.from_dalle2 import convert_config, write_recipe
from priorkit.recipes.recipe import Recipe, load_recipe

CONFIG: dict[str, Any] = {
    "prior": {
        "clip": {"make": "openai", "model": "ViT-L/14", "base_model_kwargs": {"dim_text": 768}},
        "net": {
            "dim": 768, "depth": 12, "num_timesteps": 1000, "heads": 12, "ff_mult": 4, "normformer": True,
            "attn_dropout": 0.05, "max_text_len": 256, "new_option": 3,
        },
        "image_embed_dim": 768, "image_size": 224, "image_channels": 3, "timesteps": 1000, "cond_drop_prob": 0.1,
        "loss_type": "l2", "predict_x_start": True, "beta_schedule": "cosine", "condition_on_text_encodings": True,
    },
    "data": {
        "image_url": "https://example.com/laion/img_emb/", "text_url": "https://example.com/laion/text_emb/",
        "meta_url": "https://example.com/laion/metadata/", "batch_size": 256, "num_data_points": 1_000_000,
        "splits": {"train": 0.8, "val": 0.05, "test": 0.15}, "eval_every_seconds": 1600,
    },
    "train": {
        "epochs": 2, "lr": 1.2e-4, "wd": 6.02e-2, "max_grad_norm": 0.4, "use_ema": True, "ema_beta": 0.9999,
        "amp": True, "warmup_steps": 70, "save_every_seconds": 1800, "eval_timesteps": [64, 250], "random_seed": 84513,
        "best_validation_loss": 0.2, "current_epoch": 3,
    },
    "load": {"source": None, "resume": False},
    "tracker": {
        "data_path": ".prior", "overwrite_data_path": True,
        "log": {"log_type": "wandb", "wandb_entity": "laion", "verbose": True},
        "save": [{"save_to": "local", "save_all": True}],
    },
}  # fmt: skip
"""A configuration with keys of every kind."""


def leaves(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in leaves(inner, f"{path}.{name}".lstrip("."))]
    return [] if value is None else [path]


def changed(**values: Any) -> dict[str, Any]:
    """The configuration with dotted names (`train__lr`) replaced; `...` removes a key."""
    config = copy.deepcopy(CONFIG)
    for name, value in values.items():
        *outer, last = name.split("__")
        section = config
        for part in outer:
            section = section[part]
        if value is ...:
            del section[last]
        else:
            section[last] = value
    return config


def write(tmp_path: Path, config: Any) -> str:
    path = tmp_path / "train_config.json"
    path.write_text(json.dumps(config))
    return str(path)


def recipe_of(tmp_path: Path, **values: Any) -> Recipe:
    (tmp_path / "recipe.yaml").unlink(missing_ok=True)
    write_recipe(write(tmp_path, changed(**values)), tmp_path / "recipe.yaml")
    return load_recipe(str(tmp_path / "recipe.yaml"))


def test_the_recipe_has_the_values_of_the_configuration(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    network, diffusion, optimiser = recipe.train.network, recipe.train.diffusion, recipe.train.optimiser
    assert (network.width, network.depth, network.heads, network.num_timesteps) == (768, 12, 12, 1000)
    assert (network.normformer, network.attn_dropout, network.max_text_len) == (True, 0.05, 256)
    assert (diffusion.timesteps, diffusion.prediction, diffusion.text_drop) == (1000, "x0", 0.1)
    assert (optimiser.learning_rate, optimiser.weight_decay, optimiser.max_grad_norm) == (1.2e-4, 6.02e-2, 0.4)
    assert (optimiser.ema_decay, optimiser.warmup_steps, optimiser.decay) == (0.9999, 70, "constant")
    assert (recipe.train.batch_size, recipe.train.steps) == (256, 6250)  # 2 x 1,000,000 x 0.8 / 256
    assert (recipe.train.dtype, recipe.train.seed, recipe.train.checkpoint_minutes) == ("bfloat16", 84513, 30)
    assert recipe.train.text_condition == "online"
    assert recipe.train.trackers == ("wandb",)
    assert (recipe.read.validation_fraction, recipe.read.test_fraction) == (0.05, 0.15)
    assert (recipe.evaluate.sample.steps, recipe.evaluate.sweep.steps) == (64, (250,))
    assert (recipe.embed.clip.model, recipe.embed.clip.pretrained) == ("ViT-L-14", "openai")
    assert recipe.folders.embeddings == "https://example.com/laion"
    assert recipe.first_stage == "train"


def test_every_key_is_used_or_named(tmp_path: Path) -> None:
    """Changing a key that is not named changes the recipe; the key that is named does not."""
    path = write(tmp_path, CONFIG)
    converted = convert_config(path)
    named = converted.not_applied
    assert set(named) == {
        "prior.clip.base_model_kwargs.dim_text", "prior.net.new_option", "prior.image_size", "prior.image_channels",
        "data.eval_every_seconds", "train.best_validation_loss", "train.current_epoch", "load.resume",
        "tracker.data_path", "tracker.overwrite_data_path", "tracker.log.wandb_entity", "tracker.log.verbose",
        "tracker.save",
    }  # fmt: skip
    others = {
        "clip.make": "x-clip", "clip.model": "ViT-B/32", "loss_type": "l1", "beta_schedule": "linear",
        "image_url": "/a/b/", "text_url": "/a/b/", "meta_url": "/a/b/", "log_type": "console",
        "eval_timesteps": [32], "splits.train": 0.7,
    }  # fmt: skip
    for key in leaves(CONFIG):
        if key in ("prior.net.dim", "prior.image_embed_dim"):
            continue  # they belong together
        before: Any = CONFIG
        for part in key.split("."):
            before = before[part]
        other = next((value for end, value in others.items() if key.endswith(end)), None)
        if other is None:
            other = (not before) if isinstance(before, bool) else before / 2 if isinstance(before, float) else before
            other = other * 2 if isinstance(other, int) and not isinstance(other, bool) else other
        if key == "prior.timesteps":
            other = 500
        if key == "prior.net.num_timesteps":
            other = 1200
        now = convert_config(write(tmp_path, changed(**{key.replace(".", "__"): other})))
        same = now.values == converted.values
        assert same == (key in named), key
        assert (key in now.not_applied) == (key in named) or key.startswith(("data.", "prior.clip", "tracker.log")), key


def test_the_header_names_what_is_not_applied_with_the_reason(tmp_path: Path) -> None:
    destination = tmp_path / "recipe.yaml"
    converted = write_recipe(write(tmp_path, CONFIG), destination)
    header = [line for line in destination.read_text().splitlines() if line.startswith("#")]
    for key, reason in converted.not_applied.items():
        assert f"# - {key}: {reason}" in header
    assert f"# Command:   priorkit run {destination}" in header
    assert any(line.startswith("# train.steps: epochs 2 x 1,000,000 data points") for line in header)
    assert yaml.safe_load(destination.read_text()) == converted.values


def test_missing_keys_have_the_defaults_of_dalle2_pytorch(tmp_path: Path) -> None:
    config = {"prior": {"net": {"dim": 512, "depth": 6}, "condition_on_text_encodings": False}}
    write_recipe(write(tmp_path, config), tmp_path / "recipe.yaml")
    recipe = load_recipe(str(tmp_path / "recipe.yaml"))
    assert (recipe.train.network.width, recipe.train.network.max_text_len) == (512, 0)
    assert recipe.train.text_condition is None
    assert (recipe.train.batch_size, recipe.train.steps) == (64, 2_929_688)  # 25e7 x 0.75 / 64
    assert recipe.train.optimiser.learning_rate == 1.1e-4
    assert recipe.folders.embeddings == "data/embeddings"


def test_token_states_without_a_length_fill_the_context(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, prior__net__max_text_len=...)
    assert recipe.train.network.max_text_len == 77
    assert "max_text_len: the context length" in (tmp_path / "recipe.yaml").read_text()


def test_a_checkpoint_to_start_from_brings_its_network(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, load__source="latest.pth", train__use_ema=False)
    assert recipe.train.init_from is not None
    assert (recipe.train.init_from.path, recipe.train.init_from.config) == (
        "latest.pth", str(tmp_path / "train_config.json"),
    )  # fmt: skip
    assert recipe.train.network.model_fields_set == set()
    assert recipe.train.optimiser.ema_decay == 0


def test_folders_that_are_not_of_one_layout_are_named(tmp_path: Path) -> None:
    converted = convert_config(
        write(tmp_path, changed(data__meta_url="https://example.com/laion/laion2B-en-metadata/"))
    )
    assert converted.values["folders"]["embeddings"] == "data/embeddings"
    for key in ("data.image_url", "data.text_url", "data.meta_url"):
        assert converted.not_applied[key] == "set folders.embeddings"


def test_a_named_configuration_gives_a_recipe(tmp_path: Path) -> None:
    write_recipe("laion-model-card", tmp_path / "recipe.yaml")
    assert load_recipe(str(tmp_path / "recipe.yaml")).train.network.depth == 24


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"decoder": {"unets": []}}, SettingsError, "configures a decoder; priorkit trains priors"),
        ({}, SettingsError, "holds no settings; the JSON of dalle2"),
        ([1], SettingsError, "holds no settings; the JSON of dalle2-pytorch's training script is needed"),
        ({"prior": {"net": {"depth": 3}}}, SettingsError, r"net\.dim"),
        (changed(train__epochs="two"), SettingsError, r"train\.epochs='two' is not a positive number"),
        (changed(train__save_every_seconds="x"), SettingsError, r"train\.save_every_seconds='x' is not a positive"),
        (changed(train__lr=-1), SettingsError, r"train\.optimiser\.learning_rate"),
        (changed(data__splits={"train": 0.1, "val": 0.5, "test": 0.5}), SettingsError, "must be below 1"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(
    tmp_path: Path, config: Any, error: type[Exception], message: str
) -> None:
    path = write(tmp_path, config)
    with pytest.raises(error, match=message) as raised:
        write_recipe(path, tmp_path / "recipe.yaml")
    assert path in str(raised.value)
    assert not (tmp_path / "recipe.yaml").exists()


def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("precious")
    with pytest.raises(InputError, match=r"recipe\.yaml exists already"):
        write_recipe(write(tmp_path, CONFIG), tmp_path / "recipe.yaml")
    assert (tmp_path / "recipe.yaml").read_text() == "precious"
