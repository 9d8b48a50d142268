"""Faster CPU versions of the transformer blocks in an open_clip tower, with weights in oneDNN's memory layout.

Their results equal those of open_clip's blocks, up to rounding. On 2 cores, the ViT-B/32 image tower runs 25% faster
in float32 and 10% faster in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..compute.onednn import pack, packed_product, packing_available

_ROWS = 1024
"""Number of tokens per forward pass for which oneDNN optimises the memory layout of the weights.

The layout works for any number of tokens. A layout optimised for the actual number would be only slightly faster.
"""
_Layer = Callable[[torch.Tensor], torch.Tensor]
_LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Maximum relative error at which a packed block still counts as equal to the original block, keyed by dtype.

The error is the norm of the difference between the two blocks' outputs, divided by the norm of the change that the
original block makes to its input. The limits are far above rounding error.
"""


def pack_blocks(model: nn.Module) -> int:
    """Make the transformer blocks in `model` faster by packing their weights, and return the number of changed blocks.

    The forward pass of each supported block is replaced by a `PackedBlock`. The block's original weights are freed, so
    that only the packed copy stays in memory.

    A block is left unchanged if it has unsupported parts, or if its replacement gives a different result for random
    tokens.
    """
    packed = 0
    for module in model.modules():
        if type(module).__name__ == "ResidualAttentionBlock" and _is_supported(module):
            replacement = PackedBlock(module)
            if _is_equal(module, replacement):
                module.forward = replacement
                for linear in ("attn.out_proj", "mlp.c_fc", "mlp.c_proj"):
                    _clear(module.get_submodule(linear), "weight")
                _clear(module.get_submodule("attn"), "in_proj_weight")
                packed += 1
    return packed


class PackedBlock:
    """Faster replacement for the forward pass of a residual attention block in an open_clip tower.

    The block consists of self-attention and a two-layer MLP. Each is preceded by layer norm, and has a residual
    connection around it.

    Args:
        block: open_clip block to copy the weights from.
    """

    def __init__(self, block: Any) -> None:
        attention, network = block.attn, block.mlp
        self._norms: tuple[_Layer, _Layer] = (block.ln_1, block.ln_2)
        self._scales: tuple[_Layer, _Layer] = (block.ls_1, block.ls_2)
        self._heads: int = attention.num_heads
        self._batch_first: bool = attention.batch_first
        self._qkv = _Product(attention.in_proj_weight, attention.in_proj_bias)
        self._out = _Product(attention.out_proj.weight, attention.out_proj.bias)
        self._activation: _Layer = network.gelu
        self._gelu = type(network.gelu) is nn.GELU and network.gelu.approximate == "none"
        self._rise = _Product(network.c_fc.weight, network.c_fc.bias, gelu=self._gelu)
        self._fall = _Product(network.c_proj.weight, network.c_proj.bias)

    def __call__(
        self, x: torch.Tensor, k_x: None = None, v_x: None = None, attn_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Apply the block to tokens `[B, L, D]`, or `[L, B, D]` if the tower is not batch-first.

        These are B sequences of L tokens, with D values per token. The result has the same shape. `k_x` and `v_x` must
        be None; they exist to match the signature of open_clip's block.
        """
        x = x + self._scales[0](self._attend(self._norms[0](x), attn_mask))
        hidden = self._rise(self._norms[1](x))
        return x + self._scales[1](self._fall(hidden if self._gelu else self._activation(hidden)))

    def _attend(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        qkv = torch.unflatten(self._qkv(x), -1, (3, self._heads, -1))  # (B, L, 3, H, d)
        if not self._batch_first:
            qkv = qkv.transpose(0, 1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, H, L, d)
        if mask is not None:
            mask = mask.to(x.dtype)
            if mask.ndim == 3:
                mask = torch.unflatten(mask, 0, (-1, self._heads))
        attended = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)  # (B, L, D)
        return self._out(attended if self._batch_first else attended.transpose(0, 1))


class _Product:
    """Linear layer with packed weights, optionally followed by GELU."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False) -> None:
        self._packed, self._gelu = pack(weight.detach(), _ROWS), gelu
        self._bias = None if bias is None else bias.detach()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return packed_product(x, self._packed, self._bias, self._gelu)


def _is_supported(block: nn.Module) -> bool:
    """Return True if a block has exactly the layers that `PackedBlock` implements, and its weights can be packed."""
    attention, network = getattr(block, "attn", None), getattr(block, "mlp", None)
    if not isinstance(attention, nn.MultiheadAttention) or attention.in_proj_weight is None:
        return False
    if hasattr(block, "ln_1_kv") or not all(hasattr(block, name) for name in ("ls_1", "ls_2")):
        return False
    if [name for name, _ in getattr(network, "named_children", list)()] != ["c_fc", "gelu", "c_proj"]:
        return False
    weight = attention.in_proj_weight
    return weight.is_cpu and packing_available(weight.dtype)


def _clear(module: nn.Module, name: str) -> None:
    """Free the memory of a weight by replacing its values with an empty tensor of the same dtype.

    The parameter object remains in the module, because open_clip reads the dtype from it.
    """
    parameter = module.get_parameter(name)
    parameter.data = parameter.data.new_empty(0)


@torch.inference_mode()
def _is_equal(block: nn.Module, replacement: PackedBlock) -> bool:
    """Return True if a packed block and the original block give the same results, up to rounding.

    Both blocks are applied to the same random tokens with a causal mask.
    """
    weight: torch.Tensor = block.attn.in_proj_weight  # type: ignore[assignment,union-attr]
    noise = torch.randn(5, 5, weight.shape[1], generator=torch.Generator().manual_seed(0))
    x, mask = noise.to(weight.dtype), torch.full((5, 5), float("-inf")).triu(1)
    expected = block(x, attn_mask=mask) - x
    error = (replacement(x, attn_mask=mask) - x - expected).float().norm() / expected.float().norm()
    return bool(error <= _LARGEST_ERROR[weight.dtype])
