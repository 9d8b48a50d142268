"""How a network is trained: in which type its products are, what is compiled and what is kept for the backward pass."""

from __future__ import annotations

import torch

from ..network.interface import Network


def prepare_network(network: Network, *, compile: bool = False, activation_checkpointing: bool = False) -> None:
    """Set a network up for training; its weights, their names and its function stay the same."""
    network.checkpoint_activations = activation_checkpointing
    if compile:
        network.compile_layers()


def autocast(dtype: str, device: torch.device) -> torch.autocast:
    """The context in which a loss is computed: products in `float32` or `bfloat16`, weights and sums in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
