"""Values derived from weights: packed copies, constant prefixes. The only place that detects changed weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import nn

T = TypeVar("T")


class Derived(Generic[T]):
    """A value computed from weights, and computed again after a change that torch counts.

    Torch does not count writes to `.data` or fused optimiser steps: call `clear` after those.
    """

    def __init__(self) -> None:
        self.value: T | None = None
        """The current value; None before the first `get`."""
        # The weights and not only their addresses: another tensor may later take the address of a freed one.
        self._sources: list[torch.Tensor] = []
        self._versions: list[tuple[int, int]] = []

    def get(self, weights: Sequence[torch.Tensor], compute: Callable[[], T]) -> T:
        """Return the value for these weights; call `compute` if any of them has changed."""
        versions = [_version(weight) for weight in weights]
        if self.value is None or versions != self._versions:
            self.value = None  # frees the memory before the new value takes it
            self.value = compute()
            self._sources, self._versions = [weight.detach() for weight in weights], versions
        return self.value

    def clear(self) -> None:
        """Drop the value."""
        self.value, self._sources, self._versions = None, [], []

    def __getstate__(self) -> dict[str, object]:
        """Return an empty state: a copy of a network computes its own values."""
        return {"value": None, "_sources": [], "_versions": []}


def _version(weight: torch.Tensor) -> tuple[int, int]:
    """Address and change counter of a weight."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def weight_sums(network: nn.Module) -> list[float]:
    """Return the sum of each weight: these also differ after changes that torch does not count."""
    return torch.stack([weight.detach().sum(dtype=torch.float32) for weight in network.parameters()]).tolist()
