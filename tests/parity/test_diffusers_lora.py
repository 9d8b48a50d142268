"""Adapters: diffusers' `load_lora_adapter` gives the function that they have here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import PriorTransformer as DiffusersPrior

from priorkit import load_prior
from priorkit.pipeline.contract.storage import Store
from priorkit.prior.interchange.adapter_file import ADAPTER_NAME, read_adapters, write_adapters
from priorkit.prior.network.lora import LayerAdapter, add_adapters, is_adapter_weight, network_adapters

from .unclip import make_diffusers_prior

SIZES = {"num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 24, "num_embeddings": 12}
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
RANK = 4


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(12) < torch.tensor([[3], [12], [7]])
    return {
        "noisy": torch.randn(3, 24, generator=generator),
        "steps": torch.tensor([5, 500, 999]),
        "text": torch.randn(3, 24, generator=generator),
        "states": torch.randn(3, 12, 24, generator=generator) * mask[:, :, None],
        "mask": mask,
    }


def ours_of(network: Any) -> torch.Tensor:
    given = inputs()
    found: torch.Tensor = network(
        given["noisy"], given["steps"], text_embed=given["text"], token_states=given["states"]
    )
    return found


def theirs_of(prior: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = prior(*inputs().values()).predicted_image_embedding
    return found


@pytest.mark.parametrize("alpha", [4.0, 10.0, 1.0])
def test_our_files_in_diffusers(alpha: float, tmp_path: Path) -> None:
    """The network as it is trained, and the prior with the file added, compute what diffusers does."""
    make_diffusers_prior(1, **SIZES).save_pretrained(tmp_path / "base")
    trained = load_prior(tmp_path / "base").network
    add_adapters(trained, TARGETS, RANK, alpha)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if is_adapter_weight(name):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    with Store(str(tmp_path)).create(ADAPTER_NAME) as file:
        write_adapters(file, network_adapters(trained))

    theirs = DiffusersPrior.from_pretrained(tmp_path / "base").eval()
    before = theirs_of(theirs)
    theirs.load_lora_adapter(tmp_path, weight_name=ADAPTER_NAME, prefix=None)
    expected = theirs_of(theirs)
    assert difference(before, expected) > 0.01
    with torch.no_grad():
        assert difference(ours_of(trained), expected) <= 1e-6
        assert difference(ours_of(load_prior(tmp_path / "base", lora=tmp_path).network), expected) <= 1e-6


def write_old(path: Path) -> None:
    """Names of the attention processors, from before peft."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for block in range(2):
        for layer in ("to_q", "to_k", "to_v", "to_out"):
            stem = f"transformer_blocks.{block}.attn1.processor.{layer}_lora"
            tensors[f"{stem}.down.weight"] = 0.2 * torch.randn(RANK, 24, generator=generator)
            tensors[f"{stem}.up.weight"] = 0.2 * torch.randn(24, RANK, generator=generator)
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


def test_old_files_here_and_in_diffusers(tmp_path: Path) -> None:
    make_diffusers_prior(2, **SIZES).save_pretrained(tmp_path / "base")
    write_old(tmp_path / ADAPTER_NAME)
    theirs = DiffusersPrior.from_pretrained(tmp_path / "base").eval()
    theirs.load_lora_adapter(tmp_path, weight_name=ADAPTER_NAME, prefix=None)
    ours = load_prior(tmp_path / "base", lora=tmp_path)
    with torch.no_grad():
        assert difference(ours_of(ours.network), theirs_of(theirs)) <= 1e-6


def test_files_that_diffusers_saves_are_read(tmp_path: Path) -> None:
    from peft import LoraConfig

    theirs = make_diffusers_prior(3, **SIZES)
    theirs.save_pretrained(tmp_path / "base")
    theirs.add_adapter(LoraConfig(r=RANK, lora_alpha=6, target_modules=list(TARGETS), init_lora_weights=False))
    theirs.save_lora_adapter(tmp_path, weight_name=ADAPTER_NAME)
    adapters = read_adapters(tmp_path)
    assert {adapter.scale for adapter in adapters.values()} == {1.5}
    assert isinstance(next(iter(adapters.values())), LayerAdapter)
    ours = load_prior(tmp_path / "base", lora=tmp_path)
    with torch.no_grad():
        assert difference(ours_of(ours.network), theirs_of(theirs.eval())) <= 1e-6


def test_the_file_is_that_of_peft(tmp_path: Path) -> None:
    adapters = {"transformer_blocks.0.attn1.to_q": LayerAdapter(torch.ones(2, 3), torch.ones(3, 2), 2.0)}
    with Store(str(tmp_path)).create(ADAPTER_NAME) as file:
        write_adapters(file, adapters)
    with safetensors.safe_open(tmp_path / ADAPTER_NAME, "pt") as stored:
        assert sorted(stored.keys()) == [f"{next(iter(adapters))}.lora_{part}.weight" for part in "AB"]
        described = json.loads(stored.metadata()["lora_adapter_metadata"])
    assert described == {"r": 2, "lora_alpha": 4, "target_modules": list(adapters)}
