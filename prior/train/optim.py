"""AdamW optimiser with weight decay on matrices only, learning rate schedule, and moving average of the weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from .settings import OptimiserSettings

_FINAL_SHARE = 0.1
"""Learning rate at the end of cosine decay, as a fraction of the peak learning rate."""


def build_optimiser(network: nn.Module, settings: OptimiserSettings) -> torch.optim.AdamW:
    """Return an AdamW optimiser (Loshchilov and Hutter 2017, arXiv 1711.05101) for the trained weights of a network.

    Weight decay applies only to parameters with two or more dimensions.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, settings.beta2), fused=True)


def learning_rate(settings: OptimiserSettings, step: int, steps: int) -> float:
    """Compute the learning rate for one training step.

    The rate rises linearly during warmup. With `decay: constant`, it then stays at its peak. With `decay: cosine`, it
    falls along a cosine curve, towards a tenth of the peak at the end of training.

    Args:
        step: step number, from 0.
        steps: total number of steps.
    """
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.decay == "constant":
        return settings.learning_rate
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    share = _FINAL_SHARE + (1 - _FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))
    return settings.learning_rate * share


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Update the exponential moving average of a network's weights after a training step.

    Args:
        average: network with the averaged weights, which are changed in place.
        network: network with the current weights.
        decay: weight of the previous average in the new average. It is limited to (1 + step) / (10 + step), so that the
            average quickly forgets the random initial weights.
        step: step number, from 0.
    """
    decay = min(decay, (1 + step) / (10 + step))
    averaged, current = dict(average.named_parameters()), dict(network.named_parameters())
    assert averaged.keys() == current.keys()
    names = [name for name, value in current.items() if value.requires_grad]
    torch._foreach_lerp_([averaged[name] for name in names], [current[name] for name in names], 1 - decay)
