"""The exponential moving average of the weights, which is what is sampled from."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move `average` towards `network` after step number `step` (from 0).

    The decay warms up as (1 + step) / (10 + step), so that the first, random weights are forgotten soon.
    """
    decay = min(decay, (1 + step) / (10 + step))
    averaged, current = dict(average.named_parameters()), dict(network.named_parameters())
    assert averaged.keys() == current.keys()
    torch._foreach_lerp_(list(averaged.values()), [current[name] for name in averaged], 1 - decay)
