"""Low-rank adapters of linear layers (LoRA, Hu et al. 2021, arXiv 2106.09685), under peft's names.

A layer with an adapter computes `W x + b + scale * B A x`. Only A `[rank, in]` and B `[out, rank]` are trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .linear import Linear

_PARTS = ("lora_A", "lora_B")
"""Names of the matrices of an adapter inside their layer."""


class LayerAdapter(NamedTuple):
    """Trained adapter of one layer."""

    down: torch.Tensor
    """A, `[rank, in]`."""
    up: torch.Tensor
    """B, `[out, rank]`."""
    scale: float
    """Factor of the adapter's output; alpha divided by the rank."""


class AdaptedLinear(Linear):
    """Linear layer with an adapter. It takes over the weight and the bias of another layer, which are not trained."""

    def __init__(self, base: Linear, rank: int, scale: float) -> None:
        with torch.device("meta"):  # no memory for a weight that is replaced
            super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.weight, self.bias, self.scale = base.weight, base.bias, scale
        self.lora_A = Linear(base.in_features, rank)
        self.lora_B = Linear(rank, base.out_features)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x `[..., in]` to `[..., out]`."""
        output: torch.Tensor = super().forward(x) + self.scale * self.lora_B(self.lora_A(x))
        return output

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Map x `[..., in]` to the exact GELU of the layer's output, `[..., out]`."""
        return F.gelu(self(x))

    def halves(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the layer's output for x `[..., in]`, split into its first and second half."""
        first, second = self(x).chunk(2, dim=-1)
        return first, second


def find_targets(network: nn.Module, targets: Sequence[str]) -> list[str]:
    """Return the full names of the linear layers that adapters belong to, in the network's order.

    Args:
        targets: names of layers, or the ends of their names after a dot, such as `to_q`.

    Raises:
        ValueError: no layer has one of the names.
    """
    layers = [name for name, module in network.named_modules() if isinstance(module, Linear)]
    for target in targets:
        if not any(_is_target(name, (target,)) for name in layers):
            known = sorted({name.rpartition(".")[2] if not name[-1].isdigit() else name for name in layers})
            raise ValueError(f"no linear layer is named {target}; known are {', '.join(known[:8])}")
    return [name for name in layers if _is_target(name, targets)]


def _is_target(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def add_adapters(network: nn.Module, targets: Sequence[str], rank: int, alpha: float) -> None:
    """Add untrained adapters to a network, in place, and train nothing else. Its outputs do not change at first.

    Raises:
        ValueError: no layer has one of the names in `targets`; see `find_targets`.
    """
    names = find_targets(network, targets)
    network.requires_grad_(False)
    for name in names:
        layer = network.get_submodule(name)
        assert isinstance(layer, Linear)
        adapted = AdaptedLinear(layer, rank, alpha / rank).to(layer.weight.device)
        for part in (adapted.lora_A, adapted.lora_B):
            part.requires_grad_(True)
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, adapted)


def is_adapter_weight(name: str) -> bool:
    """Return True if the name of a weight is that of an adapter's matrix."""
    return name.split(".")[-2:-1] in [[part] for part in _PARTS]


def network_adapters(network: nn.Module) -> dict[str, LayerAdapter]:
    """Return the adapters of a network, by the name of their layer; an empty dictionary if it has none."""
    return {
        name: LayerAdapter(layer.lora_A.weight, layer.lora_B.weight, layer.scale)
        for name, layer in network.named_modules()
        if isinstance(layer, AdaptedLinear)
    }


def fold_adapters(network: nn.Module) -> None:
    """Replace all layers with adapters by plain ones with merged weights, in place. The outputs do not change."""
    for name in network_adapters(network):
        adapted = network.get_submodule(name)
        assert isinstance(adapted, AdaptedLinear)
        adapter = LayerAdapter(adapted.lora_A.weight, adapted.lora_B.weight, adapted.scale)
        merged = merge({"layer.weight": adapted.weight.detach()}, {"layer": adapter})["layer.weight"]
        with torch.device("meta"):
            layer = Linear(adapted.in_features, adapted.out_features, bias=adapted.bias is not None)
        layer.weight, layer.bias = nn.Parameter(merged.detach(), requires_grad=False), adapted.bias
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, layer)


def adapters_among(weights: Mapping[str, torch.Tensor], scale: float) -> dict[str, LayerAdapter]:
    """Return the adapters among named weights, by the name of their layer."""
    layers = [name.removesuffix(".lora_A.weight") for name in weights if name.endswith(".lora_A.weight")]
    return {
        name: LayerAdapter(weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"], scale)
        for name in layers
    }  # fmt: skip


def merge(
    weights: Mapping[str, torch.Tensor], adapters: Mapping[str, LayerAdapter], sign: float = 1.0
) -> dict[str, torch.Tensor]:
    """Return the weights of a network without adapters, whose outputs are those with the adapters.

    Args:
        weights: weights of the network, with or without those of adapters.
        adapters: adapters by the name of their layer.
        sign: 1 to add the adapters, or -1 to remove merged adapters.
    """
    merged = {name: value for name, value in weights.items() if not is_adapter_weight(name)}
    for name, adapter in adapters.items():
        weight = merged[f"{name}.weight"]
        change = adapter.up.to(weight).double() @ adapter.down.to(weight).double()
        merged[f"{name}.weight"] = (weight.double() + sign * adapter.scale * change).to(weight.dtype)
    return merged
