"""Linear layer with fast matrix products on the CPU, for sampling and training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...pipeline.compute.onednn import pack, packed_product, packing_available
from .derived import Derived

_PACKED_ROWS = 64
"""Number of input rows for which oneDNN optimises the layout of a packed weight.

For inputs of 1 to 1,028 rows, 64 gave faster matrix products than 1 or 12 did.
"""


class _Product(torch.autograd.Function):
    """Linear layer `x W^T + b` of inputs `[N, in]`, computed by oneDNN in float32 on the CPU. The bias is optional.

    The gradients are also computed by oneDNN. For N = 1,000 rows, this product takes 0.85 times as long as torch's
    default product, which uses MKL. For 100 rows, it takes half as long.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return packed_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = packed_product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = packed_product(grad.t(), x.t()) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, grad.sum(dim=0) if ctx.needs_input_grad[2] else None


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply x `[..., in]` by the transposed weight and add the bias, if any, giving `[..., out]`."""
    product: torch.Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return product.view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """Linear layer, which packs its weight into oneDNN's layout for inference on the CPU.

    A sampling step multiplies only about a dozen rows by all weights of the network, so reading the weights takes most
    of the time. Packed weights are read two to four times as fast as unpacked ones. If torch's version counter shows
    that the weight has changed, the next product packs the weight again. After changes that the counter misses, such
    as writes to `.data`, call `clear_derived`.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self._packed = Derived[torch.Tensor]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x `[..., in]` of any float dtype to `[..., out]`.

        The output has the weight's dtype, or autocast's dtype if autocast is enabled.
        """
        weight = self.weight
        if torch.is_autocast_enabled(weight.device.type):
            return F.linear(x, weight, self.bias)
        if x.dtype != weight.dtype:
            x = x.to(weight.dtype)
        if self._trains_by_onednn():
            return _product(x, weight, self.bias)
        if self._infers_by_onednn():
            return packed_product(x, self._packed_copy(weight), self.bias)
        return F.linear(x, weight, self.bias)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Map x `[..., in]` to the exact GELU of the layer's output, `[..., out]`."""
        if torch.is_autocast_enabled(self.weight.device.type) or not self._infers_by_onednn():
            return F.gelu(self(x))
        return packed_product(x.to(self.weight.dtype), self._packed_copy(self.weight), self.bias, gelu=True)

    def halves(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the layer's output for x `[..., in]`, split into its first and second half, `[..., out / 2]` each.

        Call this only for a layer without bias.

        If oneDNN is used for training, each half is computed as a separate matrix product, which is faster. For 1,000
        rows and an output width of 6,144, the two products together take 0.9 times as long as a single product.
        """
        first, second = (
            (_product(x.to(self.weight.dtype), half) for half in self.weight.chunk(2))
            if self._trains_by_onednn() and not torch.is_autocast_enabled("cpu")
            else self(x).chunk(2, dim=-1)
        )
        return first, second

    def _trains_by_onednn(self) -> bool:
        return (
            torch.is_grad_enabled()
            and self.weight.is_cpu
            and self.weight.dtype == torch.float32
            and packing_available(torch.float32)
            and not torch.compiler.is_compiling()
        )

    def _infers_by_onednn(self) -> bool:
        return torch.is_inference_mode_enabled() and self.weight.is_cpu and packing_available(self.weight.dtype)

    def _packed_copy(self, weight: torch.Tensor) -> torch.Tensor:
        return self._packed.get((weight,), lambda: pack(weight, _PACKED_ROWS))

    def clear_derived(self) -> None:
        """Discard the packed copy of the weight. The next inference on the CPU packs the weight again."""
        self._packed.clear()
