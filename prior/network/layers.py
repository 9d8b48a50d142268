"""The layers of the prior network: norm, feed-forward, and attention that can continue from a cache.

Letters: B texts, L tokens of a text (side by side those of all its draws), P cached positions, C width of the stream,
H heads, A width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .function_version import DOT_PRODUCT_BIAS
from .linear import Linear
from .parts import KeysValues, Part, Positions, join, join_rotations, split

_COSINE_SCALE = 16.0
_BUCKETS = 32
_MAX_DISTANCE = 128
_ROTARY_WIDTH = 32


class LayerNorm(nn.Module):
    """Layer norm with a gain and no bias, in float32 whatever the type of its input.

    `stable` divides by the largest coordinate first, as the final norm of DALLE2-pytorch does; by the largest, not the
    largest in size, so that it may flip signs.
    """

    def __init__(self, width: int, stable: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.shape, self.stable = (width,), stable

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., C]` -> `[..., C]` float32, or float64 of float64."""
        x = x if x.dtype == torch.float64 else x.float()
        if self.stable:
            x = x / x.amax(dim=-1, keepdim=True).detach()
        return torch.layer_norm(x, self.shape, self.weight)


class FeedForward(nn.Module):
    """Norm, SwiGLU (Shazeer 2020, arXiv 2002.05202), and in a normformer (arXiv 2110.09456) another norm after it."""

    def __init__(self, width: int, mult: float, dropout: float, normformer: bool) -> None:
        super().__init__()
        inner = int(mult * width)
        self.norm = LayerNorm(width)
        self.to_inner = Linear(width, 2 * inner)
        self.inner_norm = LayerNorm(inner) if normformer else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.to_stream = Linear(inner, width)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        """`[B, L, C]` -> what is to be added to it."""
        value, gate = self.to_inner.halves(self.norm(stream))  # each (B, L, inner)
        added: torch.Tensor = self.to_stream(self.dropout(self.inner_norm(value * F.silu(gate))))
        return added


class Attention(nn.Module):
    """Causal attention with one head of keys and values (Shazeer 2019, arXiv 1911.02150) and a learned null position.

    Every query sees the null position, the cached ones, and those of its own row up to itself.
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
        self, stream: torch.Tensor, rotation: torch.Tensor | None, parts: Sequence[Part], layer: int = 0, asked: int = 0
    ) -> tuple[torch.Tensor | None, list[KeysValues]]:
        """What is to be added to joined parts, and each part's keys and values, after the null where they begin.

        Args:
            stream: `[B, L, C]`, or several parts as `join` has them.
            rotation: as `join_rotations` has it.
            layer: number of this layer, for `Part.before`.
            asked: the first part that is to be added to: None is, where it is past the last.
        """
        queries, own = self._project(stream, rotation)
        each = zip(parts, split(queries, parts), split(own.keys, parts), split(own.values, parts), strict=True)
        known: list[KeysValues] = []
        attended = []
        for number, (part, query, keys, values) in enumerate(each):
            own = KeysValues(keys, values)
            before = part.before(layer, known) if part.before is not None else None
            if before is None:
                own = self._null_position(keys).append(own)
            known.append(own)
            if number >= asked:
                seen = own if before is None else before.append(own)
                attended.append(self._attend(query, seen, part.positions.bias))
        return self.out_norm(self.to_stream(join(attended))) if attended else None, known

    def _project(self, stream: torch.Tensor, rotation: torch.Tensor | None) -> tuple[torch.Tensor, KeysValues]:
        """Queries `[B, L, H, A]`, and keys and values `[B, L, A]`."""
        qkv = self.to_qkv(self.norm(stream)).unflatten(-1, (self.heads + 2, self.head_width))
        exact = qkv if qkv.dtype == torch.float64 else qkv.float()
        query_key = exact[..., :-1, :]  # the key as one more head
        if rotation is not None:
            pairs = query_key[..., : 2 * rotation.shape[-1]].unflatten(-1, (-1, 2))
            torch.view_as_complex(pairs).mul_(rotation)  # qkv is this layer's own
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
        """Attention of `[B, L, H, A]` to all that is known: `[B, L, H * A]`.

        All tokens and heads of a text ask as if they were tokens of one head, in which `bias` hides from each what it
        must not see; so keys and values are repeated neither for heads nor for draws.
        """
        batch, length, heads, width = query.shape
        dropout = self.dropout if self.training else 0.0
        query = query.reshape(batch, length * heads, width)
        if query.is_cpu and bias.requires_grad:
            # what torch's own falls back to, without its search for rows that see nothing; logits exact under autocast
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


class PositionEncoding(nn.Module):
    """A learned bias of each head for each bucket of distances, and rotary embedding.

    The bias is T5's (Raffel et al. 2019, arXiv 1910.10683); the null position counts as a token, one before the first.
    A dot-product function multiplies it by 128. Rotary embedding (Su et al. 2021, arXiv 2104.09864) turns the first 32
    coordinates of queries and keys.
    """

    def __init__(self, heads: int, head_width: int, *, rotary: bool, cosine: bool) -> None:
        super().__init__()
        self.bias = nn.Embedding(_BUCKETS, heads)
        self.bias_scale = 1.0 if cosine else DOT_PRODUCT_BIAS
        self.rotated = min(_ROTARY_WIDTH, head_width) if rotary else 0

    def forward(self, cached: int, shared: int, draws: int, own: int) -> Positions:
        """What the L = shared + draws * own tokens after `cached` ones need.

        The shared tokens come first; those of each draw follow them, and do not see those of other draws.
        """
        device = self.bias.weight.device
        index = torch.arange(shared + draws * own, device=device)
        draw = torch.where(index < shared, -1, (index - shared) // own)
        places = cached + torch.where(index < shared, index, shared + (index - shared) % own)
        keys = torch.cat([torch.arange(cached + 1, device=device), places + 1])
        seen = (places <= places[:, None]) & ((draw == draw[:, None]) | (draw == -1))  # (L, L)
        seen = torch.cat([seen.new_ones(len(places), cached + 1), seen], dim=1)  # (L, P + L)
        bias = self._bias(places, keys).masked_fill(~seen[..., None], -math.inf)
        return Positions(bias.transpose(1, 2).flatten(0, 1), self._rotation(places))

    def _bias(self, places: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Bias `[L, keys, H]` of tokens at `places` for keys, of which number 0 is the null and 1 the first token."""
        return self.bias(_bucket((places[:, None] - keys).clamp(min=0))) * self.bias_scale  # type: ignore[no-any-return]

    def _rotation(self, places: torch.Tensor) -> torch.Tensor | None:
        if not self.rotated:
            return None
        powers = torch.arange(0, self.rotated, 2, device=places.device, dtype=torch.float32) / self.rotated
        angles = (places.float()[:, None] / 10_000.0**powers).to(self.bias.weight.dtype)[:, None]
        return torch.complex(angles.cos(), angles.sin())


def _bucket(distance: torch.Tensor) -> torch.Tensor:
    """T5's buckets: one for each short distance, then wider and wider ones up to 128."""
    exact = _BUCKETS // 2
    far = torch.log(distance.clamp(min=1).float() / exact) / math.log(_MAX_DISTANCE / exact) * (_BUCKETS - exact)
    return torch.where(distance < exact, distance, (exact + far.long()).clamp(max=_BUCKETS - 1))


def run_layers(
    stream: torch.Tensor,
    parts: Sequence[Part],
    attention: nn.ModuleList,
    feed_forward: nn.ModuleList,
    *,
    read: bool,
    checkpointed: bool,
) -> tuple[torch.Tensor, list[list[KeysValues]]]:
    """Every layer in turn, over the stream of joined parts.

    Args:
        read: whether the stream is wanted, and not the keys and values alone.
        checkpointed: compute each layer anew in the backward pass.

    Returns the last part's stream `[R, L, C]`, if it is read, and in every layer each part's keys and values.
    """
    rotation = join_rotations(parts)
    found: list[list[KeysValues]] = []
    for number, (attend, feed) in enumerate(zip(attention, feed_forward, strict=True)):
        asked = 0
        if number + 1 == len(attention):  # nobody reads what the last layer would add to others
            asked = len(parts) - 1 if read else len(parts)
        given = (stream, rotation, parts, number, asked, attend, feed)
        stream, known = checkpoint(_layer, *given, use_reentrant=False) if checkpointed else _layer(*given)
        found.append(known)
    return stream, found


def _layer(
    stream: torch.Tensor,
    rotation: torch.Tensor | None,
    parts: Sequence[Part],
    number: int,
    asked: int,
    attend: nn.Module,
    feed: nn.Module,
) -> tuple[torch.Tensor, list[KeysValues]]:
    """One layer: the stream of the parts from number `asked` on, and all keys and values."""
    added, known = attend(stream, rotation, parts, number, asked)
    if added is not None:
        stream = (join(split(stream, parts)[asked:]) if asked else stream) + added
        stream = stream + feed(stream)
    return stream, known
