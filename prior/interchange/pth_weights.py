"""Selection of weights from a `.pth`: a trainer checkpoint, or a bare state_dict (weights only) from another tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

import torch

from ...pipeline.errors import InputError, SettingsError
from ..model.settings import WeightsName
from .pth import version_text


def choose_weights(content: dict[str, Any], weights: WeightsName, path: str) -> dict[str, torch.Tensor]:
    """Return the requested weights, keyed by their names in the state_dict of `DiffusionPrior`.

    A bare state_dict contains only one set of weights, which is returned for both `ema` and `online`.

    Args:
        content: dictionary read from the `.pth`.
        weights: `ema` or `online`.
        path: name of the file, for error messages.

    Raises:
        SettingsError: `weights` is neither `ema` nor `online`.
        InputError: the file does not contain the requested weights.
    """
    if weights not in ("ema", "online"):
        raise SettingsError(f"weights={weights!r}: known are ema and online")
    if (bare := _bare_weights(content)) is not None:
        return bare
    stored = {"ema": _averaged(content), "online": content.get("model")}
    chosen = stored.pop(weights)
    if _is_state_dict(chosen):
        return chosen
    other, alternative = stored.popitem()
    advice = f"; try weights={other}" if _is_state_dict(alternative) else ""
    if "state_dict" in content or _is_state_dict(content):
        advice = "; save the prior's state_dict alone, with names that begin with net."
    key = "model" if weights == "online" else "ema_model"
    raise InputError(
        f"{path}: holds no {weights} weights (`{key}`) but {', '.join(sorted(map(str, content)))[:200]}{advice}"
    )


def _bare_weights(content: dict[str, Any]) -> dict[str, torch.Tensor] | None:
    """Return the weights in a `.pth` that contains only a state_dict, keyed by their names in `DiffusionPrior`.

    Return None if the file contains anything else, such as a trainer checkpoint. Three variants of a state_dict are
    also recognised:

    - The state_dict is stored under the key `state_dict`.
    - All names have the prefix `module.`, because the model was wrapped. The prefix is removed.
    - The names lack the prefix `net.`, because only the network was saved. The prefix is added.
    """
    weights = content
    if "state_dict" in content and not {"model", "ema", "ema_model"} & content.keys():
        weights = content["state_dict"]
    if not _is_state_dict(weights):
        return None
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    if "learned_query" in weights and any(name.startswith("causal_transformer.") for name in weights):
        weights = {f"net.{name}": value for name, value in weights.items()}
    return weights if any(name.startswith("net.") for name in weights) else None


def _is_state_dict(value: Any) -> TypeGuard[dict[str, torch.Tensor]]:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and _is_plain_tensor(part) for name, part in value.items())
    )


def _is_plain_tensor(value: Any) -> bool:
    """Return True if a value is a dense CPU tensor that is not nested, quantized or complex."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_nested or value.is_quantized or value.is_complex())
    )


def _averaged(content: dict[str, Any]) -> Any:
    """Return the averaged (EMA) weights that a trainer checkpoint stores.

    Newer trainers store them under the key `ema_model`. Older trainers store them only in the dictionary under the key
    `ema`, where their names have the prefix `ema_model.`. If the checkpoint has no averaged weights, return None or an
    empty dictionary. The result is not checked: the caller must verify that it is a state_dict.
    """
    if "ema_model" in content:
        return content["ema_model"]
    average = content.get("ema")
    prefix = "ema_model."
    if not isinstance(average, Mapping):
        return None
    return {name.removeprefix(prefix): value for name, value in average.items() if str(name).startswith(prefix)}


def stored_version(content: dict[str, Any], path: str) -> str:
    """Return the DALLE2-pytorch release that wrote a checkpoint, such as `1.15.6`.

    Raises:
        SettingsError: the file stores no version. A file that contains only a state_dict never stores one.
        InputError: the stored version has an unknown type.
    """
    version = None if _is_state_dict(content) else version_text(content.get("version"), path)
    if version is None:
        raise SettingsError(
            f"{path}: stores no version; give function_version=, the release of dalle2-pytorch that wrote it (0.23.10 "
            "for LAION's), since the same weights under another give other embeddings"
        )
    return version
