"""The weights of a prior in the dictionary of a `.pth`: a trainer's checkpoint, or a state_dict of another tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

import torch

from ...pipeline.errors import InputError, SettingsError
from ..model.settings import WeightsName
from .pth import version_text


def choose_weights(content: dict[str, Any], weights: WeightsName, path: str) -> dict[str, torch.Tensor]:
    """The weights of a `DiffusionPrior` in a trainer's checkpoint, or in a bare state_dict."""
    if weights not in ("ema", "online"):
        raise SettingsError(f"weights={weights!r}: known are ema and online")
    if (bare := _bare_state(content)) is not None:
        return bare
    found = {"ema": _averaged(content), "online": content.get("model")}
    chosen = found.pop(weights)
    if _is_state(chosen):
        return chosen
    other, there = found.popitem()
    advice = f"; try weights={other}" if _is_state(there) else ""
    if "state_dict" in content or _is_state(content):
        advice = "; save the prior's state_dict alone, with names that begin with net."
    key = "model" if weights == "online" else "ema_model"
    raise InputError(
        f"{path}: holds no {weights} weights (`{key}`) but {', '.join(sorted(map(str, content)))[:200]}{advice}"
    )


def _bare_state(content: dict[str, Any]) -> dict[str, torch.Tensor] | None:
    """The state_dict in a file that holds no trainer's checkpoint, by the names of a `DiffusionPrior`; None if none.

    Other tools put it under `state_dict`, wrap the model (`module.`), or save its network alone (without `net.`).
    """
    state = content
    if "state_dict" in content and not {"model", "ema", "ema_model"} & content.keys():
        state = content["state_dict"]
    if not _is_state(state):
        return None
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    if "learned_query" in state and any(name.startswith("causal_transformer.") for name in state):
        state = {f"net.{name}": value for name, value in state.items()}
    return state if any(name.startswith("net.") for name in state) else None


def _is_state(value: Any) -> TypeGuard[dict[str, torch.Tensor]]:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and _is_plain(part) for name, part in value.items())
    )


def _is_plain(value: Any) -> bool:
    """Return whether it is a tensor of numbers in memory, one after another."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_nested or value.is_quantized or value.is_complex())
    )


def _averaged(content: dict[str, Any]) -> Any:
    """The averaged weights, which newer trainers store by themselves too."""
    if "ema_model" in content:
        return content["ema_model"]
    inside = content.get("ema")
    prefix = "ema_model."
    if not isinstance(inside, Mapping):
        return None
    return {name.removeprefix(prefix): value for name, value in inside.items() if str(name).startswith(prefix)}


def stored_version(content: dict[str, Any], path: str) -> str:
    """The release that wrote a checkpoint."""
    version = None if _is_state(content) else version_text(content.get("version"), path)
    if version is None:
        raise SettingsError(
            f"{path}: stores no version; give function_version=, the release of dalle2-pytorch that wrote it (0.23.10 "
            "for LAION's), since the same weights under another give other embeddings"
        )
    return version
