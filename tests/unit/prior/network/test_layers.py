"""Norms, feed-forward and attention against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from priorkit.prior.network.cache import KeysValues
from priorkit.prior.network.interface import DrawnTexts
from priorkit.prior.network.layers import Attention, Blocks, FeedForward, LayerNorm, join
from priorkit.prior.network.positions import PositionEncoding


def values(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# norm and feed-forward


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stable", [False, True])
def test_norm_follows_its_formula_in_float32(dtype: torch.dtype, stable: bool) -> None:
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


def test_the_stable_norm_flips_signs_if_all_coordinates_are_negative() -> None:
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


# attention


def encoding(cosine: bool = True) -> PositionEncoding:
    torch.manual_seed(0)
    return PositionEncoding(3, 8, rotary=True, cosine=cosine).double()


def small_attention(cosine: bool = True) -> Attention:
    torch.manual_seed(0)
    return Attention(12, heads=3, head_width=8, dropout=0.0, cosine=cosine).double()


@pytest.mark.parametrize("cosine", [True, False])
def test_attention_after_a_cache_equals_attention_from_the_start(cosine: bool) -> None:
    attention, positions, stream = small_attention(cosine), encoding(cosine), values(2, 9, 12).double()
    whole, all_known = attention.forward_cached(stream, positions(0, 0, 1, 9), None)
    _, before = attention.forward_cached(stream[:, :6], positions(0, 0, 1, 6), None)
    rest, known = attention.forward_cached(stream[:, 6:], positions(6, 0, 1, 3), before)
    torch.testing.assert_close(rest, whole[:, 6:], rtol=1e-10, atol=1e-10)
    for found, expected in zip(known, all_known, strict=True):
        assert found.shape == (2, 1 + 9, 8)  # the null position comes first
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cached", [False, True])
def test_keys_and_values_equal_those_of_the_whole_layer(cached: bool) -> None:
    attention, positions, stream = small_attention(), encoding(), values(2, 4, 12).double()
    before, places = None, positions(0, 0, 1, 4)
    if cached:
        before = attention.keys_values(values(2, 3, 12, seed=8).double(), positions(0, 0, 1, 3), None)
        places = positions(3, 0, 1, 4)
    alone = attention.keys_values(stream, places, before)
    for found, expected in zip(alone, attention.forward_cached(stream, places, before)[1], strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("texts", [2, 1])
@pytest.mark.parametrize("padding", [0, 2])
def test_training_attention_equals_cached_attention_of_each_block(padding: int, texts: int) -> None:
    """Two rows of three draws each; with one text of its own, the other row shares the prefix after it."""
    attention, positions, draws = small_attention(), encoding(), DrawnTexts(rows=2, draws=3, texts=texts)
    pad, text, suffixes = (values(*shape, seed=sum(shape)).double() for shape in ((1, 2, 12), (2, 4, 12), (6, 3, 12)))
    places = [positions(padding, 0, 1, 4), positions(padding + 4, 0, 1, 3)]
    before, blocks = None, [text, suffixes]
    expected = []
    if padding:
        places.insert(0, positions(0, 0, 1, padding))
        blocks.insert(0, pad)
        padded, before = attention.forward_cached(pad, places[0], None)
        expected.append(padded)
    for index, block in enumerate(blocks[-2:], start=len(blocks) - 2):
        if index == len(blocks) - 1:
            before = KeysValues(*(part[torch.tensor([0, 0, 0, 1, 1, 1])] for part in before))
        output, before = attention.forward_cached(block, places[index], before)
        expected.append(output)
    described = Blocks([tuple(block.shape[:2]) for block in blocks], places, draws)
    stream = join(blocks)
    assert stream.shape == (1, padding + 2 * 4 + 6 * 3, 12)
    found = described.split(attention(stream, described, described.rotation(), False))
    for output, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(output, wanted, rtol=1e-12, atol=1e-12)
    alone = attention(stream, described, described.rotation(), True)
    torch.testing.assert_close(alone, expected[-1], rtol=1e-12, atol=1e-12)


def test_split_inverts_join() -> None:
    blocks = [values(1, 2, 5), values(3, 4, 5, seed=2)]
    described = Blocks([(1, 2), (3, 4)], [], DrawnTexts(3, 1, 3))
    for found, expected in zip(described.split(join(blocks)), blocks, strict=True):
        assert torch.equal(found, expected)
