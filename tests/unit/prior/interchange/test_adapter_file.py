"""Files of adapters: both styles of names, alpha, and adapters that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from priorkit import load_prior
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.prior.interchange.adapter_file import ADAPTER_NAME, read_adapters, write_adapters
from priorkit.prior.network.lora import LayerAdapter

from .diffusers.folders import make_weights, write_model

LAYERS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}
"""Names of layers, and in the older style."""


def make_adapters(rank: int = 2, scale: float = 1.0) -> dict[str, LayerAdapter]:
    generator = torch.Generator().manual_seed(3)
    return {
        f"transformer_blocks.{block}.attn1.{layer}": LayerAdapter(
            torch.randn(rank, 16, generator=generator), torch.randn(16, rank, generator=generator), scale
        )
        for block in range(2)
        for layer in LAYERS
    }


def require_equal(found: dict[str, LayerAdapter], expected: dict[str, LayerAdapter]) -> None:
    assert found.keys() == expected.keys()
    for name, adapter in expected.items():
        assert torch.equal(found[name].down, adapter.down)
        assert torch.equal(found[name].up, adapter.up)
        assert found[name].scale == adapter.scale


def write(folder: Path, adapters: dict[str, LayerAdapter], style: str = "new", **metadata: Any) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = {}
    for name, adapter in adapters.items():
        stem, layer = name.split(".attn1.")
        down, up = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        if style == "old":
            down, up = (f"{stem}.attn1.processor.{LAYERS[layer]}_lora.{part}.weight" for part in ("down", "up"))
        elif style == "peft":
            down, up = f"base_model.model.{down}", f"base_model.model.{up}"
        tensors |= {down: adapter.down, up: adapter.up}
    described = {"lora_adapter_metadata": json.dumps(metadata)} if metadata else None
    safetensors.torch.save_file(tensors, folder / ADAPTER_NAME, described)
    return folder / ADAPTER_NAME


@pytest.mark.parametrize("scale", [1.0, 4.0, 0.25])
def test_there_and_back_is_the_same(scale: float, tmp_path: Path) -> None:
    with Store(str(tmp_path)).create(ADAPTER_NAME) as file:
        write_adapters(file, make_adapters(scale=scale))
    require_equal(read_adapters(tmp_path), make_adapters(scale=scale))


@pytest.mark.parametrize("style", ["new", "old", "peft"])
def test_all_styles_of_names_are_read(style: str, tmp_path: Path) -> None:
    require_equal(read_adapters(write(tmp_path, make_adapters(), style)), make_adapters())


def test_alpha_comes_from_the_metadata(tmp_path: Path) -> None:
    require_equal(read_adapters(write(tmp_path, make_adapters(), lora_alpha=16, r=2)), make_adapters(scale=8.0))


@pytest.mark.parametrize("style", ["new", "old"])
def test_a_prior_with_adapters_has_the_sum_of_weights(style: str, tmp_path: Path) -> None:
    weights = write_model(tmp_path / "model")
    file = write(tmp_path / "lora", make_adapters(), style, lora_alpha=6)
    prior = load_prior(tmp_path / "model", lora=file)
    for name, value in prior.network.state_dict().items():
        adapter = make_adapters().get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        change = 0 if adapter is None else 3 * adapter.up @ adapter.down
        torch.testing.assert_close(value, weights[name] + change)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"use_dora": True}, "use_dora=True is not supported; merge it with peft first"),
        ({"alpha_pattern": {"to_q": 3}}, "alpha_pattern="),
        ({"lora_alpha": "many"}, "its metadata lora_adapter_metadata is damaged"),
    ],
)
def test_settings_that_are_not_supported_are_named(metadata: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=named):
        read_adapters(write(tmp_path, make_adapters(), **metadata))


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lora=.*nothing: no such file; give a \.safetensors, or a folder"):
        read_adapters(tmp_path / "nothing")
    safetensors.torch.save_file(make_weights(), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="is no weight of an adapter"):
        read_adapters(tmp_path / "a.safetensors")
    safetensors.torch.save_file({"to_q.lora_A.weight": torch.ones(2, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="holds no adapters, or half of one"):
        read_adapters(tmp_path / "a.safetensors")
    halves = {"to_q.lora_A.weight": torch.ones(2, 3), "to_q.lora_B.weight": torch.ones(3, 4)}
    safetensors.torch.save_file(halves, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"to_q has matrices of \[2, 3\] and \[3, 4\]"):
        read_adapters(tmp_path / "a.safetensors")


def test_adapters_of_another_network_are_named(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    far = {"transformer_blocks.7.attn1.to_q": make_adapters()["transformer_blocks.0.attn1.to_q"]}
    with pytest.raises(SettingsError, match=r"the prior has no layer transformer_blocks\.7\.attn1\.to_q"):
        load_prior(tmp_path / "model", lora=write(tmp_path / "far", far))
    wide = {"transformer_blocks.1.attn1.to_q": LayerAdapter(torch.ones(2, 9), torch.ones(16, 2), 1.0)}
    with pytest.raises(SettingsError, match=r"to_q is for a layer of \[16, 9\], the prior's is \[16, 16\]"):
        load_prior(tmp_path / "model", lora=write(tmp_path / "wide", wide))
