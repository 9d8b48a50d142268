"""A linear layer that multiplies fast on the CPU, for sampling and for training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...pipeline.compute.onednn import pack, packed_product, packing_available

_PACKED_ROWS = 64
"""Rows that the layout of packed weights is chosen for; measured best of 1, 12 and 64 for 1 to 1,028 rows."""


class _Product(torch.autograd.Function):
    """`x W^T` of `[N, in]` and its gradients in float32 on the CPU by oneDNN.

    Of torch's own (MKL's) products of the same it takes 0.85 of the time for a thousand rows, and half for a hundred.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return packed_product(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = packed_product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = packed_product(grad.t(), x.t())
        return of_x, of_weight


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`[..., in]` -> `[..., out]`."""
    product: torch.Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), weight)
    return product.view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """A linear layer without bias that, for inference on the CPU, keeps a copy of its weight in oneDNN's layout.

    A step of sampling multiplies a dozen rows by all weights of the network, so that reading weights is its cost; from
    this layout they are read at twice to four times the speed. The copy follows changes of the weight that torch
    counts; after others, such as writes to its `.data`, `forget_packed`.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self._packed: torch.Tensor | None = None
        # the weight itself and not its address, where after a change of type and back another might lie
        self._packed_from: tuple[torch.Tensor, int] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` of any float type -> `[..., out]` in the type of the weight, or of autocast."""
        weight = self.weight
        if torch.is_autocast_enabled(weight.device.type):
            return F.linear(x, weight)
        if x.dtype != weight.dtype:
            x = x.to(weight.dtype)
        if self._trains_by_onednn():
            return _product(x, weight)
        if torch.is_inference_mode_enabled() and weight.is_cpu and packing_available(weight.dtype):
            return packed_product(x, self._packed_copy(weight))
        return F.linear(x, weight)

    def halves(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first and second half of `forward`'s output, `[..., out / 2]` each.

        By two products, where those are oneDNN's: for a thousand rows of 6,144 they take 0.9 of the time of one.
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

    def _packed_copy(self, weight: torch.Tensor) -> torch.Tensor:
        version = 0 if weight.is_inference() else weight._version
        if self._packed_from is not None:
            source, packed_version = self._packed_from
            if (source.data_ptr(), packed_version) != (weight.data_ptr(), version):
                self._packed = None
        if self._packed is None:
            self._packed = pack(weight, _PACKED_ROWS)
            self._packed_from = (weight.detach(), version)
        return self._packed

    def forget_packed(self) -> None:
        """Drop the copy, so that the next product packs the weight anew."""
        self._packed = self._packed_from = None

    def __getstate__(self) -> dict[str, object]:
        """Without the packed copy, which cannot be copied."""
        return {**self.__dict__, "_packed": None, "_packed_from": None}
