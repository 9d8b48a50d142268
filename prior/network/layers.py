"""Layers of the prior network, and functions that run them.

For sampling, the keys and values of each text are cached. Training uses no cache. A draw is one noisy image embedding
of a text.

Dimensions: B rows, L tokens per row, P cached positions, C stream width (width of the token stream), H heads, A head
width, M tokens in a training step. In sampling, a row is a text with all of its draws concatenated. In training, each
text and each draw has its own row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .cache import KeysValues, PrefixCache
from .interface import DrawnTexts
from .linear import Linear
from .positions import Positions

_COSINE_SCALE = 16.0
"""Factor applied to cosine similarities before the softmax, as in DALLE2-pytorch."""


class Blocks(NamedTuple):
    """Layout of the token sequence that a training step processes.

    The sequence consists of two or three blocks:

    - learned padding, which replaces missing token states (per-token text-encoder outputs). This block exists only if
      the padding is the same for all texts. Otherwise, any padding is part of the texts.
    - texts
    - draws (noisy image embeddings). The tokens of a draw are timestep, noisy image and query. Their positions follow
      those of the draw's text.

    All blocks are joined into one sequence `[1, M, ...]`, where M is the total number of tokens. Each linear layer then
    computes a single matrix product and a single weight gradient.
    """

    shapes: list[tuple[int, int]]
    """Number of rows and number of tokens per row, for each block.

    The padding has one row, the texts have one row per text, and the draws have one row per draw.
    """
    positions: list[Positions]
    """Attention bias and rotary embedding of each block."""
    draws: DrawnTexts
    """For each draw (one noisy image embedding of a text), the index of the text that it attends to."""

    def rotation(self) -> torch.Tensor | None:
        """Return the rotary embedding of all joined tokens, or None if the network uses none.

        The shape is `[M, 1, rotated / 2]`: for each of M tokens, one complex number per pair of rotated coordinates.
        """
        rotations = []
        for (rows, _), (_, rotation) in zip(self.shapes, self.positions, strict=True):
            if rotation is None:
                return None
            rotations.append(rotation.repeat(rows, 1, 1))
        return torch.cat(rotations)

    def split(self, joined: torch.Tensor) -> list[torch.Tensor]:
        """Split a joined sequence `[1, M, ...]` of all M tokens into blocks `[rows, tokens, ...]`.

        This is the inverse of `join`.
        """
        pieces = torch.split(joined[0], [rows * tokens for rows, tokens in self.shapes])
        return [piece.view(*shape, *piece.shape[1:]) for piece, shape in zip(pieces, self.shapes, strict=True)]


def join(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join blocks `[rows, tokens, ...]` into one sequence `[1, M, ...]` of all M tokens."""
    return torch.cat([block.flatten(0, 1) for block in blocks])[None]


class LayerNorm(nn.Module):
    """Layer norm with a gain and no bias, computed in float64 for float64 inputs and in float32 otherwise.

    With `stable`, the input is first divided by its maximum coordinate, as in DALLE2-pytorch's final norm. The maximum
    is signed. If all coordinates are negative, the maximum is negative too, and the division makes them positive.
    """

    def __init__(self, width: int, stable: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.shape, self.stable = (width,), stable

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x `[..., C]` over its last dimension. Return float64 for float64 inputs, and float32 otherwise."""
        x = x if x.dtype == torch.float64 else x.float()
        if self.stable:
            x = x / x.amax(dim=-1, keepdim=True).detach()
        return torch.layer_norm(x, self.shape, self.weight)


class FeedForward(nn.Module):
    """Feed-forward layer: layer norm and SwiGLU (Shazeer 2020, arXiv 2002.05202).

    `normformer` adds a second norm before the output projection (arXiv 2110.09456).
    """

    def __init__(self, width: int, mult: float, dropout: float, normformer: bool) -> None:
        super().__init__()
        inner = int(mult * width)
        self.norm = LayerNorm(width)
        self.to_inner = Linear(width, 2 * inner)
        self.inner_norm = LayerNorm(inner) if normformer else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.to_stream = Linear(inner, width)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for a token stream. The caller adds the output to the stream.

        Both have the shape `[B, L, C]` (B rows of L tokens, stream width C).
        """
        value, gate = self.to_inner.halves(self.norm(stream))  # each (B, L, inner)
        output: torch.Tensor = self.to_stream(self.dropout(self.inner_norm(value * F.silu(gate))))
        return output


class Attention(nn.Module):
    """Causal multi-query attention (Shazeer 2019, arXiv 1911.02150) with a null position.

    All query heads share one head of keys and values. The null position is a learned key and value at the start of the
    sequence, without a token. Each token attends to the null position, to the cached positions, to earlier tokens in
    the same row, and to itself.
    """

    def __init__(self, width: int, *, heads: int, head_width: int, dropout: float, cosine: bool) -> None:
        super().__init__()
        self.heads, self.head_width, self.dropout, self.cosine = heads, head_width, dropout, cosine
        self.logit_scale = _COSINE_SCALE if cosine else 1 / math.sqrt(head_width)
        self.norm = LayerNorm(width)
        self.to_qkv = Linear(width, (heads + 2) * head_width)
        self.null = nn.Parameter(torch.randn(2, head_width))
        self.to_stream = Linear(heads * head_width, width)
        self.out_norm = LayerNorm(width)

    def forward(
        self, stream: torch.Tensor, blocks: Blocks, rotation: torch.Tensor | None, draws_only: bool
    ) -> torch.Tensor:
        """Compute attention for one training step.

        Every token attends to the null position, to earlier tokens in its own row, and to itself. In addition, tokens
        of texts attend to the learned padding, if it is a separate block. Tokens of draws (noisy image embeddings)
        attend to this padding and to their text.

        Args:
            stream: token stream of all blocks joined, `[1, M, C]` (M tokens in all, stream width C).
            blocks: layout of the token stream.
            rotation: result of `Blocks.rotation`, computed once for all layers.
            draws_only: return only the outputs at the tokens of the draws.

        Returns:
            The output that the caller adds to the stream. The shape is `[1, M, C]`, or `[draws, L, C]` (L tokens per
            draw) if `draws_only` is true.
        """
        query, joined = self._project(stream, rotation)
        queries, keys, values = blocks.split(query), blocks.split(joined.keys), blocks.split(joined.values)
        local = [KeysValues(*pair) for pair in zip(keys, values, strict=True)]
        biases = [positions.bias for positions in blocks.positions]
        has_padding = len(local) == 3
        first = self._null_position(local[0].keys).append(local[0])  # the padding, or the texts if there is no padding
        attended = []
        if not draws_only:
            attended.append(self._attend(queries[0], first, biases[0]))
            if has_padding:
                attended.append(self._attend(queries[1], first.append(local[1]), biases[1]))
        texts = first.append(local[1]) if has_padding else first
        attended.append(self._attend(queries[-1], texts.repeat_for(blocks.draws).append(local[-1]), biases[-1]))
        output: torch.Tensor = self.out_norm(self.to_stream(attended[0] if draws_only else join(attended)))
        return output

    def forward_cached(
        self, stream: torch.Tensor, positions: Positions, before: KeysValues | None
    ) -> tuple[torch.Tensor, KeysValues]:
        """Compute attention for the new tokens in `stream`, which follow the cached positions.

        Args:
            stream: token stream `[B, L, C]`: L new tokens for each of B texts, stream width C.
            positions: attention bias and rotary embedding of the new tokens.
            before: keys and values of the cached positions, for B texts or for one text that all rows share. None if
                `stream` starts the sequence.

        Returns:
            The output `[B, L, C]` that the caller adds to the stream, and the keys and values of all positions so far.
        """
        query, known = self._query_and_known(stream, positions, before)
        return self.out_norm(self.to_stream(self._attend(query, known, positions.bias))), known

    def keys_values(self, stream: torch.Tensor, positions: Positions, before: KeysValues | None) -> KeysValues:
        """Return only the keys and values that `forward_cached` returns, without computing the attention."""
        return self._query_and_known(stream, positions, before)[1]

    def _query_and_known(
        self, stream: torch.Tensor, positions: Positions, before: KeysValues | None
    ) -> tuple[torch.Tensor, KeysValues]:
        query, local = self._project(stream, positions.rotation)
        return query, (self._null_position(local.keys) if before is None else before).append(local)

    def _project(self, stream: torch.Tensor, rotation: torch.Tensor | None) -> tuple[torch.Tensor, KeysValues]:
        """Project the token stream to queries `[B, L, H, A]`, and to keys and values `[B, L, A]`.

        B is the number of rows, L the number of tokens per row, H the number of heads, and A the head width.
        """
        qkv = self.to_qkv(self.norm(stream)).unflatten(-1, (self.heads + 2, self.head_width))
        exact = qkv if qkv.dtype == torch.float64 else qkv.float()
        query_key = exact[..., :-1, :]  # the key is processed like an additional query head
        if rotation is not None:
            pairs = query_key[..., : 2 * rotation.shape[-1]].unflatten(-1, (-1, 2))
            # in place is safe: only the values are read from qkv afterwards
            torch.view_as_complex(pairs).mul_(rotation)
        query_key = self._direction(query_key)
        query, key = query_key[..., :-1, :].to(qkv.dtype), query_key[..., -1, :].to(qkv.dtype)
        return query, KeysValues(key, qkv[..., -1, :])

    def _direction(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x, dim=-1) if self.cosine else x

    def _null_position(self, like: torch.Tensor) -> KeysValues:
        key, value = self.null.to(like.dtype)
        rows = (like.shape[0], 1, self.head_width)
        return KeysValues(self._direction(key).expand(rows), value.expand(rows))

    def _attend(self, query: torch.Tensor, known: KeysValues, bias: torch.Tensor) -> torch.Tensor:
        """Compute the attention of queries `[B, L, H, A]` to the keys and values in `known`.

        B is the number of rows, L the number of tokens per row, H the number of heads, and A the head width. The
        queries of all tokens and heads of a row are treated as L * H queries of a single head. Keys and values
        therefore need not be repeated for each head. In sampling, a row contains all draws (noisy image embeddings)
        of a text, so keys and values need not be repeated for each draw either.

        Args:
            query: queries `[B, L, H, A]`.
            known: keys and values of all positions that the queries can attend to.
            bias: bias added to the attention logits. It is -inf where a query must not attend to a position.

        Returns:
            The attention output, `[B, L, H * A]`.
        """
        batch, length, heads, width = query.shape
        dropout = self.dropout if self.training else 0.0
        query = query.reshape(batch, length * heads, width)
        if query.is_cpu and bias.requires_grad:
            # the same computation as torch's fallback for a bias that requires a gradient, but without the fallback's
            # slow search for fully masked rows; autocast is off so that the logits keep full precision
            with torch.autocast("cpu", enabled=False):
                exact, keys = query.to(bias.dtype), known.keys.to(bias.dtype)
                weights = torch.baddbmm(bias, exact, keys.transpose(1, 2), alpha=self.logit_scale).softmax(dim=-1)
                attended = F.dropout(weights, dropout).to(query.dtype) @ known.values
        else:
            attended = F.scaled_dot_product_attention(
                query[:, None], known.keys[:, None], known.values[:, None],
                attn_mask=bias, dropout_p=dropout, scale=self.logit_scale,
            )  # fmt: skip
        return attended.view(batch, length, heads * width)


Layer = tuple[Attention, FeedForward]
"""Transformer layer: attention, then feed-forward."""


def run_training(stream: torch.Tensor, blocks: Blocks, layers: Sequence[Layer], *, checkpointed: bool) -> torch.Tensor:
    """Run all layers on a training batch, and return the outputs at the draws (noisy image embeddings).

    Args:
        stream: token stream of all blocks joined, `[1, M, C]` (M tokens in all, stream width C).
        blocks: layout of the token stream.
        layers: layers to run, in order.
        checkpointed: True to recompute each layer's activations in the backward pass instead of storing them.

    Returns:
        Output of the last layer at the tokens of the draws, `[draws, L, C]` (L tokens per draw).
    """
    rotation = blocks.rotation()
    for number, layer in enumerate(layers, start=1):
        is_last = number == len(layers)  # the prediction needs only the draws from the last layer
        arguments = (stream, blocks, rotation, is_last, *layer)
        stream = checkpoint(_train_layer, *arguments, use_reentrant=False) if checkpointed else _train_layer(*arguments)
    return stream


def _train_layer(
    stream: torch.Tensor,
    blocks: Blocks,
    rotation: torch.Tensor | None,
    is_last: bool,
    attention: Attention,
    feed_forward: FeedForward,
) -> torch.Tensor:
    attended: torch.Tensor = attention(stream, blocks, rotation, is_last)
    stream = (blocks.split(stream)[-1] if is_last else stream) + attended
    output: torch.Tensor = stream + feed_forward(stream)
    return output


def run_cached(stream: torch.Tensor, positions: Positions, cache: PrefixCache, layers: Sequence[Layer]) -> torch.Tensor:
    """Run all layers on the tokens that follow B encoded texts, using the cached keys and values of these texts.

    Args:
        stream: tokens `[B, L, C]`: L tokens that follow each text, stream width C.
        positions: attention bias and rotary embedding of these tokens.
        cache: keys and values of the B texts in every layer. It is not changed.
        layers: layers to run, in order.

    Returns:
        Output of the last layer, `[B, L, C]`.
    """
    for (attention, feed_forward), before in zip(layers, cache.layers, strict=True):
        attended, _ = attention.forward_cached(stream, positions, before)
        stream = stream + attended
        stream = stream + feed_forward(stream)
    return stream


def fill_cache(
    stream: torch.Tensor, positions: Positions, cache: PrefixCache | None, layers: Sequence[Layer]
) -> PrefixCache:
    """Run the layers on new tokens, and return a cache with the keys and values of all positions so far.

    Args:
        stream: new tokens `[B, L, C]`: L tokens for each of B texts, stream width C.
        positions: attention bias and rotary embedding of the new tokens.
        cache: cache of the positions that precede the new tokens, for B texts or for one text that all rows share. None
            if the new tokens start the sequence. It is not changed.
        layers: layers to run, in order.
    """
    filled = []
    for number, (attention, feed_forward) in enumerate(layers):
        before = None if cache is None else cache.layers[number]
        if number == len(layers) - 1:  # the output of the last layer is not needed
            filled.append(attention.keys_values(stream, positions, before))
            break
        attended, known = attention.forward_cached(stream, positions, before)
        filled.append(known)
        stream = stream + attended
        stream = stream + feed_forward(stream)
    return PrefixCache(filled)
