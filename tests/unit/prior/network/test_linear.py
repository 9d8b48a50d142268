"""Products with packed weights against plain products, after changes of the weights."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from priorkit.pipeline.compute import onednn
from priorkit.pipeline.compute.onednn import packing_available
from priorkit.prior.network import linear as packing_module
from priorkit.prior.network.linear import Linear

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=["packed", "plain"])
def packing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run with oneDNN's private operators, and without, as on machines and torch versions that lack them."""
    if request.param == "plain":
        monkeypatch.setattr(packing_module, "packing_available", lambda dtype: False)
    return str(request.param)


def linear(inputs: int = 24, outputs: int = 40, dtype: torch.dtype = torch.float32) -> Linear:
    torch.manual_seed(0)
    return Linear(inputs, outputs).to(dtype)


def values(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def infer(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = layer(x)
    return result


def right(layer: Linear, x: torch.Tensor) -> bool:
    """Return True if a product in inference uses the current weights, up to rounding."""
    expected = x.double() @ layer.weight.detach().double().T
    found = infer(layer, x)
    assert found.dtype == layer.weight.dtype
    return bool((found.double() - expected).abs().max() <= TOLERANCE[found.dtype] * expected.abs().max())


def test_this_machine_packs_float32() -> None:
    """Otherwise the tests below compare the fallback with itself: another torch may remove private operators."""
    assert packing_available(torch.float32)
    assert not packing_available(torch.float64)
    assert not packing_available(torch.float16)


def test_a_torch_without_the_operators_packs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    uncached = packing_available.__wrapped__
    assert uncached(torch.float32)
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    assert not uncached(torch.float32)
    monkeypatch.undo()

    class Operators:
        _linear_pointwise = None

    monkeypatch.setattr(onednn.torch, "ops", type("Ops", (), {"mkldnn": Operators}))
    assert not uncached(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (12, 24), (3, 5, 24), (200, 24), (0, 24)])
def test_inference_equals_the_plain_product(packing: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    layer, x = linear(dtype=dtype), values(*shape)
    found = infer(layer, x)
    assert found.shape == (*shape[:-1], 40)
    assert (layer._packed.value is not None) == (packing == "packed" and packing_available(dtype))
    expected = F.linear(x.to(dtype), layer.weight).detach()
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_inputs_may_be_strided_and_of_another_type(packing: str) -> None:
    layer = linear()
    assert right(layer, values(24, 6).T)
    assert right(layer, values(6, 48)[:, ::2])
    assert right(layer, values(3, 24).double())
    assert right(layer, values(3, 24).bfloat16())


def test_packed_and_plain_products_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = linear(), values(7, 24)
    packed = infer(layer, x)
    monkeypatch.setattr(packing_module, "packing_available", lambda dtype: False)
    torch.testing.assert_close(infer(layer, x), packed, rtol=1e-5, atol=1e-6)


def test_weights_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = linear()
    infer(layer, values(3, 24))
    packed = layer._packed.value
    for rows in (1, 3, 300):
        infer(layer, values(rows, 24))
    assert packed is not None
    assert layer._packed.value is packed


def test_nothing_is_packed_outside_inference_mode() -> None:
    layer = linear()
    layer(values(3, 24)).sum().backward()
    with torch.no_grad():
        layer(values(3, 24))
    assert layer._packed.value is None
    assert layer.weight.grad is not None


def in_place(layer: Linear) -> None:
    with torch.no_grad():
        layer.weight.mul_(-3)


def in_place_in_inference_mode(layer: Linear) -> None:
    with torch.inference_mode():
        layer.weight.mul_(-3)


def by_state_dict(layer: Linear) -> None:
    layer.load_state_dict({"weight": values(40, 24, seed=9)})


def by_assigned_state_dict(layer: Linear) -> None:
    layer.load_state_dict({"weight": values(40, 24, seed=9)}, assign=True)


def by_data(layer: Linear) -> None:
    layer.weight.data = values(40, 24, seed=9)


def by_new_parameter(layer: Linear) -> None:
    layer.weight = torch.nn.Parameter(values(40, 24, seed=9))


def by_optimiser(layer: Linear) -> None:
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(values(5, 24)).square().sum().backward()
    optimiser.step()


CHANGES = (
    in_place, in_place_in_inference_mode, by_state_dict, by_assigned_state_dict, by_data, by_new_parameter,
    by_optimiser,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_packed_copy_follows_the_weight(packing: str, change: Any) -> None:
    layer, x = linear(), values(5, 24)
    before = infer(layer, x)
    for _ in range(2):
        change(layer)
        assert right(layer, x)
        assert (infer(layer, x) - before).abs().max() > 0.1
        in_place(layer)
        assert right(layer, x)


def test_the_packed_copy_follows_changes_of_type(packing: str) -> None:
    layer, x = linear(), values(5, 24)
    for dtype in (torch.float32, torch.bfloat16, torch.float32, torch.bfloat16):
        layer.to(dtype)
        assert right(layer, x)


def test_a_weight_at_the_address_of_an_older_one_is_packed_again(packing: str) -> None:
    """Convert to another dtype and back: the weights are rounded, and often at the old address."""
    for size in (64, 128, 256):
        for _ in range(5):
            layer, x = linear(size, size), values(3, size)
            infer(layer, x)
            layer.to(torch.bfloat16).to(torch.float32)
            assert right(layer, x)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_after_inference_is_independent(packing: str, way: Any) -> None:
    layer, x = linear(), values(5, 24)
    before = infer(layer, x)
    twin = way(layer)
    assert twin._packed.value is None
    assert torch.equal(infer(twin, x), before)
    in_place(twin)
    assert right(twin, x)
    assert right(layer, x)
    assert torch.equal(infer(layer, x), before)


def test_the_state_does_not_contain_the_packed_copy(packing: str) -> None:
    layer = linear()
    infer(layer, values(3, 24))
    assert list(layer.state_dict()) == ["weight"]


def test_training_continues_after_inference(packing: str) -> None:
    layer, x = linear(), values(5, 24)
    infer(layer, x)
    layer(x).square().sum().backward()
    expected = 2 * (x @ layer.weight.T).T @ x
    torch.testing.assert_close(layer.weight.grad, expected.detach(), rtol=1e-4, atol=1e-4)


# bias and GELU


def biased(dtype: torch.dtype = torch.float32) -> Linear:
    torch.manual_seed(0)
    return Linear(24, 40, bias=True).to(dtype)


@pytest.mark.parametrize("shape", [(24,), (12, 24), (3, 5, 24), (200, 24), (0, 24)])
def test_the_bias_is_added_in_inference_and_training(packing: str, shape: tuple[int, ...]) -> None:
    layer, x = biased(), values(*shape)
    expected = x.double() @ layer.weight.double().T + layer.bias.double()
    for found in (infer(layer, x), layer(x)):
        assert found.shape == expected.shape
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_gradients_with_a_bias_agree_with_float64(packing: str) -> None:
    layer, x = biased(), values(3, 7, 24).requires_grad_()
    weights = values(3, 7, 40, seed=2)
    (layer(x) * weights).sum().backward()
    exact, inputs = biased(torch.float64), x.detach().double().requires_grad_()
    (F.linear(inputs, exact.weight, exact.bias) * weights.double()).sum().backward()
    for found, expected in (
        (x.grad, inputs.grad), (layer.weight.grad, exact.weight.grad), (layer.bias.grad, exact.bias.grad),
    ):  # fmt: skip
        assert found is not None
        assert expected is not None
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_only_the_gradients_that_are_needed_are_computed(packing: str) -> None:
    layer = biased()
    layer.weight.requires_grad_(False)
    layer(values(3, 24)).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((40,), 3.0))


def test_the_gelu_is_the_exact_one(packing: str) -> None:
    layer, x = biased(), 3 * values(50, 24)
    inner = x.double() @ layer.weight.double().T + layer.bias.double()
    expected = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    with torch.inference_mode():
        packed = layer.gelu(x)
    for found in (packed, layer.gelu(x)):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    approximate = F.gelu(inner, approximate="tanh")
    assert (expected - approximate).abs().max() > 1e-4  # the bar above tells them apart
    layer.gelu(x).sum().backward()
    assert layer.bias.grad is not None


def test_the_gelu_follows_the_weight_and_the_bias(packing: str) -> None:
    layer, x = biased(), values(5, 24)
    with torch.inference_mode():
        layer.gelu(x)
        layer.bias.add_(1)
        layer.weight.mul_(-3)
        found = layer.gelu(x)
    torch.testing.assert_close(found, F.gelu(F.linear(x, layer.weight, layer.bias)), rtol=1e-5, atol=1e-5)


def test_autocast_decides_the_dtype(packing: str) -> None:
    layer, x = biased(), values(5, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == layer.gelu(x).dtype == torch.bfloat16
