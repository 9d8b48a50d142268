"""Layers of a `PriorTransformer`, and functions that run them.

Parameter names are those of diffusers.

Dimensions: B rows, L tokens per row, P positions of a text, C stream width (width of the token stream), H heads, A head
width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..interface import DrawnTexts
from ..linear import Linear
from .prefix import KeysValues, TextPrefix, prefix_mask, repeat_texts, suffix_mask


class LayerNorm(nn.LayerNorm):
    """Layer norm with a gain and a bias, computed in float64 for float64 inputs and in float32 otherwise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x `[..., C]` over its last dimension."""
        exact = x if x.dtype == torch.float64 else x.float()
        return torch.layer_norm(exact, self.normalized_shape, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """Multi-head attention, in which each head has its own keys and values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (Linear(width, width, bias=True) for _ in range(3))
        self.to_out = nn.ModuleList([Linear(width, width, bias=True), nn.Dropout(dropout)])

    def keys_values(self, x: torch.Tensor) -> KeysValues:
        """Return the keys and values of normalised tokens x `[B, L, C]`."""
        return KeysValues(self._by_head(self.to_k(x)), self._by_head(self.to_v(x)))

    def forward(self, x: torch.Tensor, known: KeysValues, mask: torch.Tensor) -> torch.Tensor:
        """Compute attention, and return what the caller adds to the token stream, `[B, L, C]`.

        Args:
            x: normalised tokens that attend, `[B, L, C]`.
            known: keys and values that they attend to.
            mask: attention bias `[B or 1, 1, L, P]`.
        """
        return self.project(self.attend(self._by_head(self.to_q(x)), known, mask))

    def attend(self, queries: torch.Tensor, known: KeysValues, mask: torch.Tensor) -> torch.Tensor:
        """Return the mean of the values, weighted by attention, `[B, L, C]`, for queries `[B, H, L, A]`."""
        attended = F.scaled_dot_product_attention(queries, known.keys, known.values, attn_mask=mask.to(queries.dtype))
        return attended.transpose(1, 2).flatten(2)

    def project(self, attended: torch.Tensor) -> torch.Tensor:
        """Apply the output projection and dropout to the result of `attend`."""
        for module in self.to_out:
            attended = module(attended)
        return attended

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)


class Gelu(nn.Module):
    """Linear layer followed by the exact GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(width, inner, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x `[..., C]` to `[..., inner]`."""
        return self.proj.gelu(x)


class FeedForward(nn.Module):
    """Feed-forward layer with an inner width of 4 C."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.ModuleList([Gelu(width, 4 * width), nn.Dropout(dropout), Linear(4 * width, width, bias=True)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised tokens x `[..., C]` to what the caller adds to the token stream."""
        for module in self.net:
            x = module(x)
        return x


class Block(nn.Module):
    """Transformer layer: attention, then feed-forward, each after a layer norm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn1 = Attention(width, heads, dropout)
        self.norm3 = LayerNorm(width)
        self.ff = FeedForward(width, dropout)

    def add_feed_forward(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the token stream `[..., C]` with the output of the feed-forward layer added."""
        output: torch.Tensor = stream + self.ff(self.norm3(stream))
        return output


def encode_texts(stream: torch.Tensor, mask: torch.Tensor, layers: Sequence[Block]) -> TextPrefix:
    """Run the layers on the tokens of B texts, and return their keys and values.

    Args:
        stream: tokens `[B, P, C]`.
        mask: attention bias of each position, `[B, P]`: 0, or -inf for padding.
        layers: layers to run, in order. Of the last layer, only keys and values are computed.
    """
    known, bias = [], prefix_mask(mask)
    for number, layer in enumerate(layers, start=1):
        x = layer.norm1(stream)
        known.append(layer.attn1.keys_values(x))
        if number < len(layers):
            stream = layer.add_feed_forward(stream + layer.attn1(x, known[-1], bias))
    return TextPrefix(known, mask)


def run_cached(
    stream: torch.Tensor, prefix: TextPrefix, shared: int, tokens: int, layers: Sequence[Block]
) -> torch.Tensor:
    """Run the layers on the tokens that follow B encoded texts.

    Args:
        stream: tokens `[B, L, C]`: `shared` tokens that all draws of a text share, then `tokens` tokens of each draw.
        prefix: keys and values of the texts. They are not changed.
        shared: number of shared tokens.
        tokens: number of tokens per draw.
        layers: layers to run, in order.

    Returns:
        Output of the last layer at the last token of each draw, `[N, C]` (N draws in total).
    """
    draws = (stream.shape[1] - shared) // tokens
    mask = prefix.suffix_mask(shared, draws, tokens)
    for number, (layer, texts) in enumerate(zip(layers, prefix.layers, strict=True), start=1):
        x = layer.norm1(stream)
        known = texts.append(layer.attn1.keys_values(x))
        if number == len(layers):  # only the last token of each draw is needed
            last = slice(shared + tokens - 1, None, tokens)
            stream, x, mask = stream[:, last], x[:, last], mask[:, :, last]
        stream = layer.add_feed_forward(stream + layer.attn1(x, known, mask))
    return stream.flatten(0, 1)


def run_training(
    texts: torch.Tensor,
    mask: torch.Tensor,
    suffixes: torch.Tensor,
    draws: DrawnTexts,
    layers: Sequence[Block],
    *,
    checkpointed: bool,
) -> torch.Tensor:
    """Run the layers on a training batch, and return the output at the last token of each draw, `[N, C]`.

    Each layer computes its matrix products for the tokens of all texts and draws at once, without padding.

    Args:
        texts: tokens of the encoded texts, `[texts, P, C]`.
        mask: attention bias of each position of the texts, `[texts, P]`: 0, or -inf for padding.
        suffixes: tokens of each draw (noisy image embedding of a text), `[N, L, C]`.
        draws: mapping from each draw to its text.
        layers: layers to run, in order.
        checkpointed: True to recompute each layer's activations in the backward pass instead of storing them.
    """
    layout = _Layout(mask, suffixes.shape[1], draws)
    stream = layout.join(texts, suffixes)
    for number, layer in enumerate(layers, start=1):
        arguments = (stream, layout, layer, number == len(layers))
        stream = checkpoint(_train_layer, *arguments, use_reentrant=False) if checkpointed else _train_layer(*arguments)
    return stream


class _Layout:
    """Layout of the joined tokens of a training batch: the tokens of all texts without padding, then those of draws.

    Args:
        mask: attention bias of each position of the texts, `[texts, P]`.
        tokens: number of tokens per draw.
        draws: mapping from each draw to its text.
    """

    def __init__(self, mask: torch.Tensor, tokens: int, draws: DrawnTexts) -> None:
        self._shape, self._draws = mask.shape, draws
        self._given = torch.nonzero((mask == 0).flatten())[:, 0]
        self._suffix = (draws.rows * draws.draws, tokens)
        self._text_bias = prefix_mask(mask)
        self._draw_bias = suffix_mask(repeat_texts(mask, draws), 0, 1, tokens)

    def join(self, texts: torch.Tensor, suffixes: torch.Tensor) -> torch.Tensor:
        """Join tokens of texts `[texts, P, C]` and draws `[N, L, C]` to `[M, C]`, without padding."""
        return torch.cat([texts.flatten(0, 1).index_select(0, self._given), suffixes.flatten(0, 1)])

    def split(self, joined: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Split joined vectors `[M, C]` by head, into those of texts `[texts, H, P, A]` and draws `[N, H, L, A]`."""
        count = len(self._given)
        padded = joined.new_zeros(self._shape.numel(), joined.shape[1]).index_copy(0, self._given, joined[:count])
        return tuple(  # type: ignore[return-value]
            part.view(*shape, heads, -1).transpose(1, 2)
            for part, shape in ((padded, self._shape), (joined[count:], self._suffix))
        )

    def attend(self, x: torch.Tensor, attention: Attention, is_last: bool) -> torch.Tensor:
        """Return the result of attention for all joined tokens, or for the last token of each draw if `is_last`."""
        heads = attention.heads
        parts = [self.split(project(x), heads) for project in (attention.to_k, attention.to_v)]
        texts, local = (KeysValues(*pair) for pair in zip(*parts, strict=True))
        known = texts.repeat_for(self._draws).append(local)
        if is_last:
            queries = attention.to_q(self.last(x)).unflatten(-1, (heads, -1))[:, :, None]  # (N, H, 1, A)
            return attention.attend(queries, known, self._draw_bias[:, :, -1:])[:, 0]
        text_queries, draw_queries = self.split(attention.to_q(x), heads)
        return self.join(
            attention.attend(text_queries, texts, self._text_bias),
            attention.attend(draw_queries, known, self._draw_bias),
        )

    def last(self, joined: torch.Tensor) -> torch.Tensor:
        """Return the vectors `[N, C]` at the last token of each draw."""
        return joined[len(self._given) :].view(*self._suffix, -1)[:, -1]


def _train_layer(stream: torch.Tensor, layout: _Layout, layer: Block, is_last: bool) -> torch.Tensor:
    x = layer.norm1(stream)
    attended = layer.attn1.project(layout.attend(x, layer.attn1, is_last))
    return layer.add_feed_forward((layout.last(stream) if is_last else stream) + attended)
