"""Derived values: computed once, and again after a change of the weights."""

from __future__ import annotations

import copy

import pytest
import torch

from priorkit.prior.network.derived import Derived, weight_sums


def weights() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.full((2, 2), 2.0))]


class Total:
    """The sum of weights, as a derived value, and the number of its computations."""

    def __init__(self, sources: list[torch.nn.Parameter]) -> None:
        self.sources, self.computed, self.derived = sources, 0, Derived[float]()

    def get(self) -> float:
        return self.derived.get(self.sources, self._compute)

    def _compute(self) -> float:
        self.computed += 1
        return sum(float(weight.detach().sum()) for weight in self.sources)


def test_it_is_computed_once() -> None:
    total = Total(weights())
    assert [total.get(), total.get(), total.computed] == [11.0, 11.0, 1]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("way", ["in place", "new data", "new parameter"])
def test_it_follows_each_weight(which: int, way: str) -> None:
    total = Total(weights())
    before = total.get()
    weight = total.sources[which]
    if way == "in place":
        with torch.no_grad():
            weight.mul_(2)
    elif way == "new data":
        weight.data = weight.data * 2
    else:
        total.sources[which] = torch.nn.Parameter(weight.detach() * 2)
    assert total.get() == before + (3.0, 8.0)[which]
    assert total.computed == 2


def test_a_change_that_torch_does_not_count_needs_clear() -> None:
    total = Total(weights())
    total.get()
    total.sources[0].data.mul_(2)
    assert total.get() == 11.0
    total.derived.clear()
    assert total.derived.value is None
    assert total.get() == 14.0


def test_a_copy_starts_empty() -> None:
    total = Total(weights())
    total.get()
    twin = copy.deepcopy(total.derived)
    assert twin.value is None
    assert twin.get(total.sources, lambda: 7.0) == 7.0
    assert total.derived.value == 11.0


def test_sums_differ_after_any_change() -> None:
    layer = torch.nn.Linear(3, 2)
    before = weight_sums(layer)
    assert before == weight_sums(layer)
    layer.bias.data[1] += 0.5
    assert [now == then for now, then in zip(weight_sums(layer), before, strict=True)] == [True, False]
