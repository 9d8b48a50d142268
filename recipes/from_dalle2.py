"""Conversion of DALLE2-pytorch's training configuration, a JSON file, to a recipe.

Every key of the file is either used or listed in the recipe's header as not applied, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..pipeline.errors import InputError, SettingsError
from ..pipeline.settings import Settings, parse_settings
from ..prior.interchange.dalle2_settings import (
    DiffusionConfig,
    NetworkConfig,
    causal_network,
    parse_config,
    to_prior_config,
)
from ..prior.interchange.load import read_config
from ..prior.network.function_version import LATEST_FUNCTION, FunctionVersion
from .recipe import Recipe

_ALL_POINTS = 250_000_000
"""DALLE2-pytorch's default of `data.num_data_points`, the number of rows to read."""
_CONTEXT_LENGTH = 77
"""Number of token states if the configuration does not set it: the context length of OpenAI's CLIP models.
DALLE2-pytorch's default of 256 adds learned vectors without text."""
_STATE = "state of a training run that was going on"
_CHECKPOINTS = "checkpoints are in the prior folder; see train.checkpoint_every and train.keep_checkpoints"
_REASONS = {
    "prior.image_size": "a prior does not see images",
    "prior.image_channels": "a prior does not see images",
    "prior.clip_adapter_overrides": "an option of DALLE2-pytorch's CLIP classes",
    "prior.sample_timesteps": "evaluate.sample.steps comes from train.eval_timesteps",
    "data.eval_every_seconds": "train.validate_every counts steps",
    "train.best_validation_loss": _STATE,
    "train.current_epoch": _STATE,
    "train.num_samples_seen": _STATE,
    "train.ema_beta": "train.use_ema is false",
    "load.resume": "the same command resumes",
    "tracker.load": "start from a checkpoint with `priorkit train --init-from`",
    "tracker.log": "set it up with the tracker's own environment variables",
    "tracker.save": _CHECKPOINTS,
    "tracker.data_path": _CHECKPOINTS,
    "tracker.overwrite_data_path": "the option --overwrite",
    "tracker": "set it up with the tracker's own environment variables",
}
"""Reasons for keys that are not applied, by the key or by the section that contains it."""


@dataclass
class Converted:
    """Recipe that corresponds to a training configuration."""

    values: dict[str, Any]
    """Settings of the recipe, as nested dictionaries."""
    not_applied: dict[str, str]
    """Keys of the configuration that the recipe does not use, each with the reason."""
    notes: list[str] = field(default_factory=list)
    """Remarks on settings that were computed from several keys."""


class _Keys:
    """Keys of a configuration, which records the ones that are used.

    Args:
        values: parsed JSON.
        source: name of the file, for error messages.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self._source = source
        self._values = {"/".join(path): value for path, value in _leaves(values)}
        self._used: set[str] = set()

    def peek(self, key: str) -> Any:
        """Return the value of a key such as `train.lr`; None if it is missing or null."""
        return self._values.get(key.replace(".", "/"))

    def take(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, and record that it is used. Null counts as missing."""
        self._used.add(key.replace(".", "/"))
        value = self.peek(key)
        return default if value is None else value

    def take_number(self, key: str, default: float) -> float:
        """Return the value of a key that must be a positive number, and record that it is used.

        Raises:
            SettingsError: the value is something else.
        """
        value = self.take(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise SettingsError(f"{self._source}: {key}={value!r} is not a positive number")
        return value

    def use(self, section: str, names: list[str]) -> None:
        """Record that the keys of a section are used."""
        self._used |= {f"{section.replace('.', '/')}/{name}" for name in names}

    def is_set(self, key: str) -> bool:
        """Return True if a key has a value that is not null."""
        return self.peek(key) is not None

    def unused(self) -> list[str]:
        """Return the keys that have not been used, in the order of the file. Keys without a value are left out."""
        left = [name for name, value in self._values.items() if name not in self._used and value is not None]
        return [name.replace("/", ".") for name in left]


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and the value of each key that is not a section. Lists are values."""
    if isinstance(value, Mapping) and (value or not path):
        for name, inner in value.items():
            yield from _leaves(inner, (*path, str(name)))
    else:
        yield path, value


def convert_config(config: str) -> Converted:
    """Convert a DALLE2-pytorch training configuration to the settings of a recipe.

    Args:
        config: path or URL of the JSON file, or name of built-in settings such as `laion-model-card`.

    Raises:
        SettingsError: the file describes no prior, or a value is not valid.
        InputError: the file is not JSON.
    """
    described = read_config(config)
    if not isinstance(described, dict) or not described or not isinstance(described.get("prior", described), dict):
        raise SettingsError(f"{config}: holds no settings; the JSON of dalle2-pytorch's training script is needed")
    if "decoder" in described and "prior" not in described:
        raise SettingsError(f"{config}: configures a decoder; priorkit trains priors, whose JSON has a section `prior`")
    if "prior" not in described:
        described = {"prior": described}
    keys = _Keys(described, config)
    values, notes = _prior(described["prior"], keys, config)
    _training(keys, values, notes, config)
    _data(keys, values, notes)
    _tracker(keys, values)
    parse_settings(Recipe, values, config)
    not_applied = {key: _reason(key) for key in keys.unused()}
    return Converted(values, not_applied, notes)


def _prior(prior: dict[str, Any], keys: _Keys, config: str) -> tuple[dict[str, Any], list[str]]:
    """Return the recipe's network, diffusion and CLIP settings, from the section `prior`, and remarks on them."""
    net = prior.get("net")
    known = {name: value for name, value in prior.items() if name in DiffusionConfig.model_fields and value is not None}
    if isinstance(net, dict):
        known["net"] = {name: value for name, value in net.items() if name in NetworkConfig.model_fields}
        keys.use("prior.net", list(known["net"]))
    converted = to_prior_config(parse_config(known, config), FunctionVersion.parse(LATEST_FUNCTION), config)
    without = {"net", "clip", "image_size", "image_channels", "sample_timesteps", "clip_adapter_overrides"}
    keys.use("prior", [name for name in known if name not in without])
    shape = causal_network(converted)
    size = {"width": shape.width, "depth": shape.depth, "heads": shape.heads}
    network = {**size, **_changed(converted.network)}
    notes = []
    takes_states = converted.token_width is not None
    if not takes_states:
        network.pop("max_text_len", None)
    elif not keys.is_set("prior.net.max_text_len"):
        network["max_text_len"] = _CONTEXT_LENGTH
        notes.append("train.network.max_text_len: the context length; dalle2-pytorch pads to 256")
    values: dict[str, Any] = {"folders": {"embeddings": "data/embeddings"}}
    if converted.clip_settings:
        keys.use("prior.clip", ["make", "model"])
        values["embed"] = {"clip": converted.clip_settings}
    values["train"] = {
        **({"text_condition": "online"} if takes_states else {}),
        "network": network,
        "diffusion": _changed(converted.diffusion),
    }
    return values, notes


def _changed(settings: Settings) -> dict[str, Any]:
    """Return the settings that differ from their defaults."""
    defaults = type(settings)().model_dump(mode="json")
    return {name: value for name, value in settings.model_dump(mode="json").items() if value != defaults[name]}


def _training(keys: _Keys, values: dict[str, Any], notes: list[str], config: str) -> None:
    """Add the settings from the sections `train` and `load`. Keys that are missing have DALLE2-pytorch's defaults."""
    train: dict[str, Any] = values["train"]
    uses_average = keys.take("train.use_ema", True)
    train["optimiser"] = {
        "learning_rate": keys.take("train.lr", 1.1e-4),
        "weight_decay": keys.take("train.wd", 6.02e-2),
        "max_grad_norm": keys.take("train.max_grad_norm", 0.5),
        "ema_decay": keys.take("train.ema_beta", 0.99) if uses_average else 0,
        "warmup_steps": keys.take("train.warmup_steps", 0),
        "decay": "constant",
    }
    batch_size, share = keys.take_number("data.batch_size", 64), keys.take_number("data.splits.train", 0.75)
    epochs, points = keys.take_number("train.epochs", 1), keys.take_number("data.num_data_points", _ALL_POINTS)
    train["batch_size"] = batch_size
    train["steps"] = max(1, math.ceil(epochs * points * share / batch_size))
    notes.append(
        f"train.steps: epochs {epochs:,} x {int(points):,} data points x training share {share} / batch size "
        f"{batch_size:,}; lower it if there are fewer rows. The batch size is per GPU in dalle2-pytorch, and that of "
        "all workers here"
    )
    if keys.take("train.amp", False):
        train["dtype"] = "bfloat16"
    if keys.is_set("train.random_seed"):
        train["seed"] = keys.take("train.random_seed")
    if keys.is_set("train.save_every"):
        train["checkpoint_every"] = keys.take("train.save_every")
    if keys.is_set("train.save_every_seconds"):
        train["checkpoint_minutes"] = keys.take_number("train.save_every_seconds", 3600) / 60
    if keys.is_set("load.source"):
        train["init_from"] = {"path": keys.take("load.source"), "config": config}
        del train["network"]  # that of the checkpoint
    _sampling(keys, values)


def _sampling(keys: _Keys, values: dict[str, Any]) -> None:
    """Add the evaluation's numbers of sampling steps: those of `train.eval_timesteps`, or of the prior's default."""
    if keys.is_set("train.eval_timesteps"):
        given = keys.take("train.eval_timesteps")
    else:
        given = keys.take("prior.sample_timesteps", min(64, values["train"]["diffusion"].get("timesteps", 1000)))
    first, *more = given if isinstance(given, list) and given else [given]
    values["evaluate"] = {"sample": {"steps": first}, **({"sweep": {"steps": more}} if more else {})}


def _data(keys: _Keys, values: dict[str, Any], notes: list[str]) -> None:
    """Add the split fractions and the folder of the embeddings from the section `data`.

    DALLE2-pytorch names one folder for each kind of file. They are used if they are subfolders of one folder, in the
    layout of clip-retrieval.
    """
    values["read"] = {
        "validation_fraction": keys.take("data.splits.val", 0.15), "test_fraction": keys.take("data.splits.test", 0.1)
    }  # fmt: skip
    parents = {}
    for key, name in (("data.image_url", "img_emb"), ("data.text_url", "text_emb"), ("data.meta_url", "metadata")):
        if keys.is_set(key):
            parent, _, last = str(keys.peek(key)).rstrip("/").rpartition("/")
            parents[key] = parent if last == name else None
    found = set(parents.values())
    if "data.image_url" in parents and len(found) == 1 and None not in found:
        for key in parents:
            keys.take(key)
        values["folders"]["embeddings"] = found.pop() or "."
    elif parents:
        notes.append(
            "folders.embeddings: data.image_url and the others are not img_emb, text_emb and metadata of one folder; "
            "name a folder that has them"
        )


def _tracker(keys: _Keys, values: dict[str, Any]) -> None:
    """Add the tracker, if priorkit has it. `console` needs none."""
    for key in ("tracker.log.log_type", "tracker.tracker_type"):
        kind = keys.peek(key) if keys.is_set(key) else None
        if kind == "wandb":
            values["train"]["trackers"] = [keys.take(key)]
        elif kind == "console":
            keys.take(key)


def _reason(key: str) -> str:
    """Return the reason why a key is not applied."""
    parts = key.split(".")
    for count in range(len(parts), 0, -1):
        if reason := _REASONS.get(".".join(parts[:count])):
            return reason
    if key in ("data.image_url", "data.text_url", "data.meta_url"):
        return "set folders.embeddings"
    if key.startswith("prior.clip."):
        return "set embed.clip to the CLIP that made the embeddings; dalle2-pytorch does not name its weights"
    return "no such setting in dalle2-pytorch's training script or in priorkit"


def write_recipe(config: str, destination: Path) -> Converted:
    """Convert a training configuration, and write the recipe to a new file.

    Raises:
        SettingsError: the file describes no prior, or a value is not valid.
        InputError: the file is not JSON, or the destination exists already.
    """
    converted = convert_config(config)
    try:
        with destination.open("x", encoding="utf-8") as file:
            file.write(recipe_yaml(converted, config, destination))
    except FileExistsError:
        raise InputError(f"{destination} exists already; name another file") from None
    return converted


def recipe_yaml(converted: Converted, config: str, destination: Path) -> str:
    """Return the text of a recipe file, with a header that lists what was not applied.

    Args:
        config: path of the configuration, for the header.
        destination: path of the recipe, for the header.
    """
    import yaml

    header = [
        f"Recipe from dalle2-pytorch's {config}, written by `priorkit recipes from-dalle2`.",
        "",
        f"Command:   priorkit run {destination}",
        "",
        *converted.notes,
        *(["", "Not applied:"] if converted.not_applied else []),
        *(f"- {key}: {reason}" for key, reason in converted.not_applied.items()),
    ]
    lines = [f"# {line}".rstrip() for text in header for line in (text.splitlines() or [""])]
    body = yaml.safe_dump(converted.values, sort_keys=False, allow_unicode=False, default_flow_style=False)
    return "\n".join(lines) + "\n" + body
