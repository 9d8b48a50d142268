"""The layers: products by packed weights, norms, and position encoding against their formulas."""

from __future__ import annotations

import cmath
import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from priorkit.prior import layers
from priorkit.prior.layers import (
    Attention,
    FeedForward,
    KeysValues,
    LayerNorm,
    Linear,
    PositionEncoding,
    _bucket,
    packing_available,
)

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=["packed", "plain"])
def packing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the private operators, and without, as on machines and torch versions that have none."""
    if request.param == "plain":
        monkeypatch.setattr(layers, "packing_available", lambda dtype: False)
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
    """Whether a product in inference is that of the weights as they are now, to rounding."""
    expected = x.double() @ layer.weight.detach().double().T
    found = infer(layer, x)
    assert found.dtype == layer.weight.dtype
    return bool((found.double() - expected).abs().max() <= TOLERANCE[found.dtype] * expected.abs().max())


def test_this_machine_packs_float32() -> None:
    """Else the tests below compare the fallback with itself; private operators of another torch may go away."""
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

    monkeypatch.setattr(layers.torch, "ops", type("Ops", (), {"mkldnn": Operators}))
    assert not uncached(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (12, 24), (3, 5, 24), (200, 24), (0, 24)])
def test_inference_is_the_plain_product(packing: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    layer, x = linear(dtype=dtype), values(*shape)
    found = infer(layer, x)
    assert found.shape == (*shape[:-1], 40)
    assert (layer._packed is not None) == (packing == "packed" and packing_available(dtype))
    expected = F.linear(x.to(dtype), layer.weight).detach()
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_inputs_may_be_strided_and_of_another_type(packing: str) -> None:
    layer = linear()
    assert right(layer, values(24, 6).T)
    assert right(layer, values(6, 48)[:, ::2])
    assert right(layer, values(3, 24).double())
    assert right(layer, values(3, 24).bfloat16())


def test_both_ways_are_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = linear(), values(7, 24)
    packed = infer(layer, x)
    monkeypatch.setattr(layers, "packing_available", lambda dtype: False)
    torch.testing.assert_close(infer(layer, x), packed, rtol=1e-5, atol=1e-6)


def test_weights_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = linear()
    infer(layer, values(3, 24))
    packed = layer._packed
    for rows in (1, 3, 300):
        infer(layer, values(rows, 24))
    assert packed is not None
    assert layer._packed is packed


def test_outside_of_inference_mode_nothing_is_packed() -> None:
    layer = linear()
    layer(values(3, 24)).sum().backward()
    with torch.no_grad():
        layer(values(3, 24))
    assert layer._packed is None
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


def test_a_weight_that_comes_to_lie_where_an_older_one_lay_is_packed_anew(packing: str) -> None:
    """There and back in another type without a product between them: rounded weights, often at the old address."""
    for size in (64, 128, 256):
        for _ in range(5):
            layer, x = linear(size, size), values(3, size)
            infer(layer, x)
            layer.to(torch.bfloat16).to(torch.float32)
            assert right(layer, x)


@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_after_inference_is_a_layer_of_its_own(packing: str, way: Any) -> None:
    layer, x = linear(), values(5, 24)
    before = infer(layer, x)
    twin = way(layer)
    assert twin._packed is None
    assert torch.equal(infer(twin, x), before)
    if twin.weight is not layer.weight:
        in_place(twin)
        assert right(twin, x)
    assert right(layer, x)
    assert torch.equal(infer(layer, x), before)


def test_the_packed_copy_is_no_part_of_the_state(packing: str) -> None:
    layer = linear()
    infer(layer, values(3, 24))
    assert list(layer.state_dict()) == ["weight"]


def test_training_goes_on_after_inference(packing: str) -> None:
    layer, x = linear(), values(5, 24)
    infer(layer, x)
    layer(x).square().sum().backward()
    expected = 2 * (x @ layer.weight.T).T @ x
    torch.testing.assert_close(layer.weight.grad, expected.detach(), rtol=1e-4, atol=1e-4)


# norm and feed-forward


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stable", [False, True])
def test_norm_is_its_formula_and_computed_in_float32(dtype: torch.dtype, stable: bool) -> None:
    norm, x = LayerNorm(12, stable), (values(3, 4, 12) * 7 + 2).to(dtype)
    torch.nn.init.uniform_(norm.weight)
    norm = norm.to(torch.float64 if dtype == torch.float64 else torch.float32)
    found, expected = norm(x), x.double()
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if stable:
        expected = expected / expected.amax(dim=-1, keepdim=True)
    centred = expected - expected.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-5)


def test_the_stable_norm_flips_signs_where_all_coordinates_are_negative() -> None:
    x = torch.tensor([[-1.0, -2.0, -4.0]])
    torch.testing.assert_close(LayerNorm(3, stable=True)(x), -LayerNorm(3)(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normformer", [False, True])
def test_feed_forward_is_swiglu(normformer: bool) -> None:
    torch.manual_seed(0)
    layer, stream = FeedForward(8, 1.4, 0.0, normformer).double(), values(2, 3, 8).double()
    normed = F.layer_norm(stream, (8,), layer.norm.weight)
    weights = layer.to_inner.weight  # inner width int(11.2): the first 11 rows are values, the others gates
    assert weights.shape == (22, 8)
    gate = normed @ weights[11:].T
    inner = normed @ weights[:11].T * gate * torch.sigmoid(gate)
    if normformer:
        inner = F.layer_norm(inner, (11,))
    torch.testing.assert_close(layer(stream), inner @ layer.to_stream.weight.T)


# positions


def t5_bucket(distance: int) -> int:
    """Raffel et al. 2019: 16 exact buckets, then 16 that are even in the logarithm up to 128."""
    return distance if distance < 16 else min(31, 16 + int(math.log(distance / 16) / math.log(8) * 16))


def test_buckets_are_t5s() -> None:
    distances = [*range(300), 1000, 100_000]
    assert _bucket(torch.tensor(distances)).tolist() == [t5_bucket(distance) for distance in distances]


def encoding(**settings: Any) -> PositionEncoding:
    torch.manual_seed(0)
    return PositionEncoding(3, 8, **{"rotary": True, "cosine": True, **settings}).double()


@pytest.mark.parametrize("cosine", [True, False])
def test_bias_from_the_start(cosine: bool) -> None:
    positions = encoding(cosine=cosine)
    table, scale = positions.bias.weight, 1 if cosine else 128
    bias = positions(0, 0, 1, 30).bias.view(30, 3, 31).transpose(0, 1)
    assert bias.shape == (3, 30, 31)
    for head, place, key in ((0, 0, 0), (1, 0, 1), (2, 5, 0), (0, 29, 0), (1, 29, 2), (2, 29, 30), (0, 17, 1)):
        assert bias[head, place, key] == table[t5_bucket(max(place - key, 0)), head] * scale
    seen = torch.ones(30, 31).tril(1).bool()  # the null, and tokens up to the own one
    assert torch.equal(torch.isfinite(bias), seen.expand(3, -1, -1))
    assert (bias[~seen.expand(3, -1, -1)] == -math.inf).all()


@pytest.mark.parametrize(
    ("cached", "shared", "draws", "own"), [(1, 0, 1, 3), (1, 1, 1, 2), (20, 2, 3, 4), (0, 0, 2, 1)]
)
def test_bias_after_a_cache_is_that_of_each_draw_alone(cached: int, shared: int, draws: int, own: int) -> None:
    positions = encoding()
    length, heads = shared + draws * own, 3
    found = positions(cached, shared, draws, own).bias.view(length, heads, cached + 1 + length)
    whole = cached + shared + own
    alone = positions(0, 0, 1, whole).bias.view(whole, heads, whole + 1)[cached:]  # (shared + own, H, keys)
    for draw in range(draws):
        mine = [*range(shared), *range(shared + draw * own, shared + (draw + 1) * own)]
        keys = [*range(cached + 1), *(cached + 1 + index for index in mine)]
        assert torch.equal(found[mine][:, :, keys], alone)
        others = [cached + 1 + index for index in range(shared, length) if index not in mine]
        assert (found[mine[shared:]][:, :, others] == -math.inf).all()
        assert (found[:shared][:, :, cached + 1 + shared :] == -math.inf).all()


@pytest.mark.parametrize(("width", "rotated"), [(8, 8), (32, 32), (40, 32), (64, 32)])
def test_rotation_is_by_the_place_and_the_number_of_the_pair(width: int, rotated: int) -> None:
    rotation = PositionEncoding(1, width, rotary=True, cosine=True).double()(5, 1, 2, 3).rotation
    assert rotation is not None
    places = [5, 6, 7, 8, 6, 7, 8]  # the shared token, then those of both draws
    expected = [
        [cmath.exp(1j * place / 10_000 ** (2 * pair / rotated)) for pair in range(rotated // 2)] for place in places
    ]
    assert rotation.shape == (7, 1, rotated // 2)
    torch.testing.assert_close(rotation[:, 0], torch.tensor(expected, dtype=torch.complex128), rtol=0, atol=1e-6)


def test_without_rotary_there_is_none() -> None:
    positions = encoding(rotary=False)
    assert positions(0, 0, 1, 3).rotation is None
    assert positions(3, 1, 2, 2).rotation is None


# attention


@pytest.mark.parametrize("cosine", [True, False])
def test_attention_after_a_cache_is_attention_from_the_start(cosine: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(12, heads=3, head_width=8, dropout=0.0, cosine=cosine).double()
    positions, stream = encoding(cosine=cosine), values(2, 9, 12).double()
    whole, all_ = attention(stream, None, positions(0, 0, 1, 9))
    _, before = attention(stream[:, :6], None, positions(0, 0, 1, 6))
    rest, own = attention(stream[:, 6:], before, positions(6, 0, 1, 3))
    torch.testing.assert_close(rest, whole[:, 6:], rtol=1e-10, atol=1e-10)
    for joined, expected in zip(before.append(own), all_, strict=True):
        torch.testing.assert_close(joined, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cached", [False, True])
def test_keys_values_are_those_of_a_whole_layer(cached: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(12, heads=3, head_width=8, dropout=0.0, cosine=True).double()
    positions, stream = encoding(), values(2, 4, 12).double()
    before, places = None, positions(0, 0, 1, 4)
    if cached:
        _, before = attention(values(2, 3, 12, seed=8).double(), None, positions(0, 0, 1, 3))
        places = positions(3, 0, 1, 4)
    for alone, whole in zip(
        attention.keys_values(stream, before, places), attention(stream, before, places)[1], strict=True
    ):
        assert torch.equal(alone, whole)


def test_appending_to_one_row_repeats_it() -> None:
    one, three = KeysValues(values(1, 2, 4), values(1, 2, 4)), KeysValues(values(3, 1, 4), values(3, 1, 4, seed=2))
    joined = one.append(three)
    assert joined.keys.shape == (3, 3, 4)
    for row in range(3):
        assert torch.equal(joined.values[row], torch.cat([one.values[0], three.values[row]]))
