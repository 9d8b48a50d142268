"""Products by weights that are kept in oneDNN's own layout.

Against torch's they take a fifth less time for hundreds of rows, and for a dozen a half to a quarter.

The operators are private ones of torch, of its compiler: ask `packing_available` first, and keep another way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch


@functools.cache
def packing_available(dtype: torch.dtype) -> bool:
    """Whether this torch and machine have the operators, for weights of this type."""
    operators = torch.ops.mkldnn
    if not (torch._C._has_mkldnn and hasattr(operators, "_linear_pointwise")):
        return False
    if not hasattr(operators, "_reorder_linear_weight"):
        return False
    if dtype == torch.bfloat16:
        return hasattr(operators, "_is_mkldnn_bf16_supported") and bool(operators._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def pack(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """A copy of a weight `[out, in]` for `packed_product`, in the layout that is best for so many rows."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return packed


def packed_product(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None = None, gelu: bool = False
) -> torch.Tensor:
    """`[..., in]` in the type of the weight -> `[..., out]`, and on request the (exact) GELU of it."""
    return _operator()(x, packed, bias, "gelu" if gelu else "none", [], "none" if gelu else "")


@functools.cache
def _operator() -> Callable[..., torch.Tensor]:
    """The overload itself: looking it up takes as long as a small product."""
    product: Callable[..., torch.Tensor] = torch.ops.mkldnn._linear_pointwise.default
    return product
