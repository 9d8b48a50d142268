"""The layers: norms, feed-forward, attention and position encoding against their formulas."""

from __future__ import annotations

import cmath
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from priorkit.prior.network.layers import Attention, FeedForward, LayerNorm, PositionEncoding, _bucket
from priorkit.prior.network.parts import KeysValues, Part, Positions, join, join_rotations, split


def values(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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


def attend(
    attention: Attention, stream: torch.Tensor, before: KeysValues | None, places: Positions, asked: int = 0
) -> tuple[torch.Tensor | None, KeysValues]:
    """Attention of one part `[B, L, C]`."""
    part = Part(*stream.shape[:2], places, None if before is None else lambda layer, known: before)
    added, known = attention(stream, places.rotation, [part], 0, asked)
    return added, known[0]


@pytest.mark.parametrize("cosine", [True, False])
def test_attention_after_a_cache_is_attention_from_the_start(cosine: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(12, heads=3, head_width=8, dropout=0.0, cosine=cosine).double()
    positions, stream = encoding(cosine=cosine), values(2, 9, 12).double()
    whole, all_ = attend(attention, stream, None, positions(0, 0, 1, 9))
    _, before = attend(attention, stream[:, :6], None, positions(0, 0, 1, 6))
    rest, own = attend(attention, stream[:, 6:], before, positions(6, 0, 1, 3))
    assert whole is not None
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
        _, before = attend(attention, values(2, 3, 12, seed=8).double(), None, positions(0, 0, 1, 3))
        places = positions(3, 0, 1, 4)
    nothing, alone = attend(attention, stream, before, places, asked=1)
    assert nothing is None
    for found, expected in zip(alone, attend(attention, stream, before, places)[1], strict=True):
        assert torch.equal(found, expected)


def test_parts_that_are_joined_are_parts_one_after_the_other() -> None:
    """Texts, then rows that each continue one of them; what is not asked for is left out."""
    torch.manual_seed(0)
    attention = Attention(12, heads=3, head_width=8, dropout=0.0, cosine=True).double()
    positions, text, rest = encoding(), values(2, 4, 12).double(), values(6, 3, 12, seed=2).double()
    added, known = attend(attention, text, None, positions(0, 0, 1, 4))
    texts_of = torch.tensor([0, 1, 1, 0, 0, 1])

    def before(layer: int, known: list[KeysValues]) -> KeysValues:
        assert layer == 5
        return KeysValues(*(part[texts_of] for part in known[0]))

    places = positions(4, 0, 1, 3)
    continued, own = attend(attention, rest, before(5, [known]), places)
    parts = [Part(2, 4, positions(0, 0, 1, 4), None), Part(6, 3, places, before)]
    stream, rotation = join([text, rest]), join_rotations(parts)
    assert stream.shape == (1, 2 * 4 + 6 * 3, 12)
    for asked in range(3):
        found, keys_values = attention(stream, rotation, parts, 5, asked)
        expected = [added, continued][asked:]
        for part, wanted in zip(split(found, parts[asked:]) if expected else [], expected, strict=True):
            torch.testing.assert_close(part.view(wanted.shape), wanted, rtol=1e-12, atol=1e-12)
        assert (found is None) == (not expected)
        for one, other in zip(keys_values, [known, own], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
