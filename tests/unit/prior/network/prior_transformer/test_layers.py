"""Layers of a `PriorTransformer` against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch

from priorkit.prior.network.interface import DrawnTexts
from priorkit.prior.network.prior_transformer.layers import (
    Attention,
    Block,
    FeedForward,
    LayerNorm,
    encode_texts,
    run_cached,
    run_training,
)
from priorkit.prior.network.prior_transformer.prefix import padding_mask

from ...raw_priors import draw

C, HEADS = 12, 3


def blocks(count: int = 3, dtype: torch.dtype = torch.float64) -> list[Block]:
    made = []
    for number in range(count):
        block = Block(C, HEADS, 0.0)
        with torch.no_grad():
            for index, parameter in enumerate(block.parameters()):
                parameter.copy_(draw(*parameter.shape, seed=100 * number + index, scale=0.4))
        made.append(block.to(dtype).eval())
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_layer_norm_computes_in_float32_or_float64(dtype: torch.dtype) -> None:
    norm = LayerNorm(C)
    with torch.no_grad():
        norm.weight.copy_(draw(C, seed=1))
        norm.bias.copy_(draw(C, seed=2))
    norm = norm.to(torch.float64) if dtype == torch.float64 else norm
    x = (draw(4, C, seed=3) * 5 + 100).to(dtype)
    found = norm(x)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = x.double()
    variance = exact.var(dim=-1, correction=0, keepdim=True)
    expected = (exact - exact.mean(dim=-1, keepdim=True)) / (variance + 1e-5).sqrt()
    expected = expected * norm.weight.double() + norm.bias.double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_attention_is_the_formula_for_each_head() -> None:
    attention = blocks(1)[0].attn1
    x, known_x = draw(2, 4, C, seed=1).double(), draw(2, 5, C, seed=2).double()
    mask = torch.where(torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(3)) < 0.3, -math.inf, 0.0)
    mask[..., 0] = 0
    found = attention(x, attention.keys_values(known_x), mask.double())
    q, k, v = (
        layer(values).view(2, -1, HEADS, C // HEADS)
        for layer, values in ((attention.to_q, x), (attention.to_k, known_x), (attention.to_v, known_x))
    )
    scores = torch.einsum("bqha,bkha->bhqk", q, k) * (C // HEADS) ** -0.5 + mask
    expected = torch.einsum("bhqk,bkha->bqha", scores.softmax(dim=-1), v).flatten(2)
    torch.testing.assert_close(found, attention.to_out[0](expected))


def test_the_feed_forward_layer_is_the_formula() -> None:
    layer = blocks(1)[0].ff
    x = draw(3, C, seed=1).double()
    inner = x @ layer.net[0].proj.weight.T + layer.net[0].proj.bias
    exact = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    assert inner.shape == (3, 4 * C)
    torch.testing.assert_close(layer(x), exact @ layer.net[2].weight.T + layer.net[2].bias)


def test_dropout_is_after_attention_and_in_the_feed_forward_layer() -> None:
    for module in (Attention(C, HEADS, 0.5), FeedForward(C, 0.5)):
        assert [part.p for part in module.modules() if isinstance(part, torch.nn.Dropout)] == [0.5]
    torch.manual_seed(0)
    layer, x = FeedForward(C, 0.5), draw(3, C, seed=1)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("shared", [0, 1])
def test_a_cached_run_equals_a_single_causal_run(shared: int) -> None:
    """The reference computes every token of a text and one draw together, without a cache."""
    layers, tokens, texts = blocks(), 2, draw(2, 4, C, seed=5).double()
    suffix = draw(2, shared + 3 * tokens, C, seed=6).double()
    prefix = encode_texts(texts, torch.zeros(2, 4, dtype=torch.float64), layers)
    found = run_cached(suffix, prefix, shared, tokens, layers).view(2, 3, C)
    for number in range(3):
        own = suffix[:, shared + number * tokens : shared + (number + 1) * tokens]
        stream = torch.cat([texts, suffix[:, :shared], own], dim=1)
        causal = torch.triu(torch.full((stream.shape[1],) * 2, -math.inf), 1).double()
        for layer in layers:
            x = layer.norm1(stream)
            stream = layer.add_feed_forward(stream + layer.attn1(x, layer.attn1.keys_values(x), causal))
        torch.testing.assert_close(found[:, number], stream[:, -1])


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("texts", [3, 2])
def test_a_training_run_equals_a_cached_run(texts: int, checkpointed: bool) -> None:
    """With a row whose text is dropped (`texts` below the number of rows), and texts of different lengths."""
    layers, tokens, draws = blocks(), 3, DrawnTexts(rows=3, draws=2, texts=texts)
    mask = padding_mask(torch.arange(4) < torch.tensor([4, 2, 3])[:, None], torch.float64)
    stream, suffixes = draw(3, 4, C, seed=5).double(), draw(6, tokens, C, seed=6).double()
    found = run_training(stream, mask, suffixes, draws, layers, checkpointed=checkpointed)
    prefix = encode_texts(stream, mask, layers).take(draws.indices(torch.device("cpu")))
    torch.testing.assert_close(found, run_cached(suffixes, prefix, 0, tokens, layers))
