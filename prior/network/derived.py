"""Cached values that are computed from a network's weights, and detection of weight changes.

Examples of such values are weights packed for fast matrix products, and the attention keys and values of learned
padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import nn

T = TypeVar("T")


class Derived(Generic[T]):
    """Cache for a single value that is computed from weights, such as a packed copy of a weight.

    The value is computed again when torch's version counter shows that a weight has changed. The counter misses writes
    to `.data` and fused optimiser steps. Call `clear` after such changes.
    """

    def __init__(self) -> None:
        self.value: T | None = None
        """The cached value; None before the first `get`."""
        # keep references to the weights, so that no new tensor can reuse the address of a freed weight
        self._sources: list[torch.Tensor] = []
        self._versions: list[tuple[int, int]] = []

    def get(self, weights: Sequence[torch.Tensor], compute: Callable[[], T]) -> T:
        """Return the cached value, which is computed on the first call and again after any change to the weights.

        Args:
            weights: all weights that the value depends on.
            compute: function that computes the value. It is called only if no value is cached or a weight has changed.
        """
        versions = [_version(weight) for weight in weights]
        if self.value is None or versions != self._versions:
            self.value = None  # free the old value's memory before the new value is allocated
            self.value = compute()
            self._sources, self._versions = [weight.detach() for weight in weights], versions
        return self.value

    def clear(self) -> None:
        """Discard the cached value."""
        self.value, self._sources, self._versions = None, [], []

    def __getstate__(self) -> dict[str, object]:
        """Return an empty state, so that a copied or unpickled network recomputes the value."""
        return {"value": None, "_sources": [], "_versions": []}


def _version(weight: torch.Tensor) -> tuple[int, int]:
    """Return the memory address of a weight and the value of its torch version counter.

    Inference tensors have no version counter; for them, the second number is 0.
    """
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def weight_sums(network: nn.Module) -> list[float]:
    """Return the sum of the elements of each weight tensor, one number per tensor.

    Comparing two results shows whether weights have changed, even if torch's version counter missed the change.
    """
    return torch.stack([weight.detach().sum(dtype=torch.float32) for weight in network.parameters()]).tolist()
