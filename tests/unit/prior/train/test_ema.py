"""The moving average against its formula."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from priorkit.prior.train.optim import update_ema


def test_it_follows_the_formula() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2).double()
    average = copy.deepcopy(network)
    expected = average.weight.detach().clone()
    decays = []
    for step in range(200):
        with torch.no_grad():
            network.weight.copy_(torch.randn(2, 3))
        decay = min(0.9, (1 + step) / (10 + step))
        decays.append(decay)
        expected = decay * expected + (1 - decay) * network.weight.detach()
        update_ema(average, network, 0.9, step)
        torch.testing.assert_close(average.weight, expected, rtol=1e-12, atol=1e-12)
    assert decays[0] == pytest.approx(0.1)  # the first weights are forgotten soon
    assert decays[-1] == 0.9


def test_decay_zero_copies() -> None:
    network, average = nn.Linear(3, 2), nn.Linear(3, 2)
    update_ema(average, network, 0.0, 1000)
    assert torch.equal(average.weight, network.weight)
    assert torch.equal(average.bias, network.bias)


def test_no_gradient_is_recorded_and_the_network_is_untouched() -> None:
    network, average = nn.Linear(3, 2), nn.Linear(3, 2)
    before = network.weight.detach().clone()
    update_ema(average, network, 0.5, 10)
    assert average.weight.grad_fn is None
    assert torch.equal(network.weight, before)


def test_another_network_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        update_ema(nn.Linear(3, 2), nn.Linear(3, 2, bias=False), 0.5, 0)
