"""Learning rates at known steps, the groups of weight decay, and the moving average against its formula."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from priorkit.prior.network.network import PriorNetwork
from priorkit.prior.train.optim import build_optimiser, learning_rate, update_ema
from priorkit.prior.train.settings import OptimiserSettings

MakeNetwork = Callable[..., PriorNetwork]


def test_warmup_is_linear_and_reaches_the_peak() -> None:
    settings = OptimiserSettings(learning_rate=2e-3, warmup_steps=10)
    assert learning_rate(settings, 0, 100) == pytest.approx(2e-4)
    assert learning_rate(settings, 4, 100) == pytest.approx(1e-3)
    assert learning_rate(settings, 9, 100) == pytest.approx(2e-3)
    assert learning_rate(settings, 10, 100) == pytest.approx(2e-3)


def test_cosine_decay_ends_at_a_tenth_of_the_peak() -> None:
    settings = OptimiserSettings(learning_rate=1e-3, warmup_steps=100)
    assert learning_rate(settings, 550, 1000) == pytest.approx(1e-3 * (0.1 + 0.9 * 0.5))
    assert learning_rate(settings, 999, 1000) == pytest.approx(1e-4, rel=1e-3)
    rates = [learning_rate(settings, step, 1000) for step in range(100, 1000)]
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


def test_constant_stays_at_the_peak() -> None:
    settings = OptimiserSettings(learning_rate=1e-3, warmup_steps=5, decay="constant")
    assert [learning_rate(settings, step, 50) for step in (5, 30, 49)] == [1e-3] * 3


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(OptimiserSettings(learning_rate=1e-3, warmup_steps=0), 0, 10) == 1e-3


def test_a_warmup_longer_than_the_training_stays_below_the_peak() -> None:
    settings = OptimiserSettings(learning_rate=1e-3, warmup_steps=100)
    assert learning_rate(settings, 19, 20) == pytest.approx(2e-4)


def test_only_matrices_decay_and_every_parameter_is_in_one_group(make_network: MakeNetwork) -> None:
    network = make_network(4)
    settings = OptimiserSettings(weight_decay=0.3, beta2=0.97)
    optimiser = build_optimiser(network, settings)
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    grouped = sum(len(group["params"]) for group in optimiser.param_groups)
    assert grouped == len(decay) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        expected = 0.0 if name.endswith(".bias") or "norm" in name or parameter.ndim == 1 else 0.3
        assert decay[id(parameter)] == expected, name
    assert decay[id(network.query)] == 0.0
    assert decay[id(network.to_text.project.weight)] == 0.3
    assert {group["betas"] for group in optimiser.param_groups} == {(0.9, 0.97)}


def test_a_step_without_gradient_signal_decays_matrices_only(make_network: MakeNetwork) -> None:
    network = make_network()
    optimiser = build_optimiser(network, OptimiserSettings(learning_rate=0.1, weight_decay=0.5))
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for name, parameter in network.named_parameters():
        factor = 0.95 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter, before[name] * factor)


def test_the_average_follows_the_formula() -> None:
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
    assert decays[0] == pytest.approx(0.1)  # the initial weights are forgotten quickly
    assert decays[-1] == 0.9


def test_an_average_with_decay_zero_is_a_copy() -> None:
    network, average = nn.Linear(3, 2), nn.Linear(3, 2)
    update_ema(average, network, 0.0, 1000)
    assert torch.equal(average.weight, network.weight)
    assert torch.equal(average.bias, network.bias)


def test_averaging_records_no_gradient_and_keeps_the_network() -> None:
    network, average = nn.Linear(3, 2), nn.Linear(3, 2)
    before = network.weight.detach().clone()
    update_ema(average, network, 0.5, 10)
    assert average.weight.grad_fn is None
    assert torch.equal(network.weight, before)


def test_averaging_another_network_fails() -> None:
    with pytest.raises(AssertionError):
        update_ema(nn.Linear(3, 2), nn.Linear(3, 2, bias=False), 0.5, 0)
