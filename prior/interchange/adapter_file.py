"""Files of low-rank adapters (LoRA), in peft's layout, which diffusers' `load_lora_adapter` reads."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import torch

from ...pipeline.contract.hashing import HashingFile
from ...pipeline.contract.storage import Store, open_location
from ...pipeline.errors import InputError, SettingsError
from ...pipeline.json_text import parse_json
from ..model.prior import Prior
from ..model.tensor_file import TensorFile, write_tensors
from ..network.linear import Linear
from ..network.lora import LayerAdapter, merge

ADAPTER_NAME = "pytorch_lora_weights.safetensors"
"""Name of the file in the folder of a prior or of a model of diffusers."""
_METADATA = "lora_adapter_metadata"
"""Key of the file's metadata with the settings of the adapters."""
_PREFIXES = ("base_model.model.", "prior.", "transformer.")
"""Prefixes that other programs put before the names of layers."""
_NEW_NAME = re.compile(r"(?P<layer>.+)\.lora_(?P<part>A|B)\.weight")
_OLD_NAME = re.compile(r"(?P<layer>.+?)\.(processor\.)?to_(?P<own>q|k|v|out)_lora\.(?P<part>down|up)\.weight")
"""Names of adapters in peft's layout, and in the older one of diffusers' attention processors."""
_UNSUPPORTED = ("use_dora", "use_rslora", "alpha_pattern", "lora_bias")
"""Settings of peft that change what an adapter computes, which priorkit does not have."""


def write_adapters(file: HashingFile, adapters: Mapping[str, LayerAdapter], dtype: torch.dtype = torch.float32) -> None:
    """Write a file of adapters that all have one rank and one scale.

    Args:
        adapters: adapters by the name of their layer.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, adapter in adapters.items():
        tensors |= {f"{name}.lora_A.weight": adapter.down, f"{name}.lora_B.weight": adapter.up}
    rank, scale = next((len(adapter.down), adapter.scale) for adapter in adapters.values())
    alpha = scale * rank
    settings = {
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "target_modules": sorted(adapters),
    }
    # safetensors writes several metadata keys in an order that varies, so there is only this one
    write_tensors(file, tensors, dtype, {_METADATA: json.dumps(settings, sort_keys=True)})


def read_adapters(path: str | os.PathLike[str]) -> dict[str, LayerAdapter]:
    """Read the adapters in a file, or in a folder that contains `pytorch_lora_weights.safetensors`.

    Returns:
        Adapters by the name of their layer. Their scale is alpha divided by the rank; alpha is the rank unless the
        file's metadata names another one.

    Raises:
        InputError: there is no such file, or it is damaged or holds something else.
    """
    path = os.fspath(path)
    fs, location = open_location(path)
    folder, _, name = location.rstrip("/").rpartition("/")
    store = Store(path) if fs.isdir(location) else Store(fs.unstrip_protocol(folder or "/"))
    name = ADAPTER_NAME if fs.isdir(location) else name
    try:
        file = TensorFile(store, name)
    except FileNotFoundError:
        raise InputError(f"lora={path}: no such file; give a .safetensors, or a folder with {ADAPTER_NAME}") from None
    parts: dict[str, dict[str, str]] = {}
    for key in file.entries:
        layer, part = _named(key, file.source)
        parts.setdefault(layer, {})[part] = key
    if not parts or any(len(pair) != 2 for pair in parts.values()):
        raise InputError(f"{file.source}: holds no adapters, or half of one; each needs lora_A and lora_B")
    settings = _settings(file)
    tensors = file.read(list(file.entries))
    adapters = {}
    for layer, pair in parts.items():
        down, up = tensors[pair["A"]], tensors[pair["B"]]
        if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1]:
            raise InputError(f"{file.source}: {layer} has matrices of {list(down.shape)} and {list(up.shape)}")
        adapters[layer] = LayerAdapter(down, up, float(settings.get("lora_alpha", len(down))) / len(down))
    return adapters


def _named(key: str, source: str) -> tuple[str, str]:
    """Return the layer that a tensor belongs to, and `A` or `B`.

    Raises:
        InputError: the name is not that of an adapter.
    """
    name = key
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if found := _NEW_NAME.fullmatch(name):
        return found["layer"], found["part"]
    if found := _OLD_NAME.fullmatch(name):
        own = "to_out.0" if found["own"] == "out" else f"to_{found['own']}"
        return f"{found['layer']}.{own}", {"down": "A", "up": "B"}[found["part"]]
    raise InputError(f"{source}: {key[:100]} is no weight of an adapter; known are names such as X.lora_A.weight")


def _settings(file: TensorFile) -> dict[str, Any]:
    """Return the settings of the adapters in a file's metadata; empty if there are none.

    Raises:
        InputError: the metadata is damaged, or names something that priorkit does not have.
    """
    try:
        settings = parse_json(file.metadata.get(_METADATA, "{}"))
        if not isinstance(settings, dict) or not math.isfinite(float(settings.get("lora_alpha", 1))):
            raise ValueError("it is not an object with a number lora_alpha")
    except (ValueError, TypeError) as error:
        raise InputError(f"{file.source}: its metadata {_METADATA} is damaged ({error})") from None
    for name in _UNSUPPORTED:
        if settings.get(name):
            raise InputError(f"{file.source}: {name}={settings[name]!r} is not supported; merge it with peft first")
    return settings


def apply_adapters(prior: Prior, adapters: Mapping[str, LayerAdapter], source: str) -> None:
    """Add adapters to the weights of a prior, in place.

    Raises:
        SettingsError: the adapters do not fit the prior's network.
    """
    layers = {name: module for name, module in prior.network.named_modules() if isinstance(module, Linear)}
    for name, adapter in adapters.items():
        if name not in layers:
            raise SettingsError(f"lora={source}: the prior has no layer {name[:100]}; is it for another network?")
        shape = (len(adapter.up), adapter.down.shape[1])
        if tuple(layers[name].weight.shape) != shape:
            raise SettingsError(
                f"lora={source}: {name} is for a layer of {list(shape)}, the prior's is "
                f"{list(layers[name].weight.shape)}"
            )
    prior.network.load_state_dict(merge(prior.network.state_dict(), adapters))
