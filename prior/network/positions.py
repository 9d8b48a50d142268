"""Position encoding: a learned relative bias with the causal mask, and rotary embedding.

Letters: L tokens of a text (those of all its draws side by side), P cached positions, H heads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from .function_version import DOT_PRODUCT_BIAS

_BUCKETS = 32
"""Number of buckets of distances; T5's."""
_MAX_DISTANCE = 128
"""Distance in tokens from which all distances share the last bucket; T5's."""
_ROTARY_WIDTH = 32
"""Largest number of coordinates of a head that are rotated; DALLE2-pytorch's."""


class Positions(NamedTuple):
    """Bias, mask and rotation of the L tokens of a text."""

    bias: torch.Tensor
    """`[L * H, P + L]`, where P counts the null position; -inf where a token must not look."""
    rotation: torch.Tensor | None
    """Complex numbers `[L, 1, rotated / 2]` of size 1, by which pairs of coordinates are multiplied."""


class PositionEncoding(nn.Module):
    """A learned bias per head and bucket of distances, and rotary embedding.

    The bias is T5's (Raffel et al. 2019, arXiv 1910.10683); the null position counts as a token before the first.
    Releases with dot-product attention multiply the bias by 128. Rotary embedding (Su et al. 2021, arXiv 2104.09864)
    rotates the first 32 coordinates of queries and keys.
    """

    def __init__(self, heads: int, head_width: int, *, rotary: bool, cosine: bool) -> None:
        super().__init__()
        self.bias = nn.Embedding(_BUCKETS, heads)
        self.bias_scale = 1.0 if cosine else DOT_PRODUCT_BIAS
        self.rotated = min(_ROTARY_WIDTH, head_width) if rotary else 0

    def forward(self, cached: int, shared: int, draws: int, tokens: int) -> Positions:
        """Return the positions of the L = shared + draws * tokens tokens that follow `cached` ones.

        The shared tokens come first. The tokens of each draw follow them, and do not see those of other draws.
        """
        device = self.bias.weight.device
        index = torch.arange(shared + draws * tokens, device=device)
        draw = torch.where(index < shared, -1, (index - shared) // tokens)
        places = cached + torch.where(index < shared, index, shared + (index - shared) % tokens)
        keys = torch.cat([torch.arange(cached + 1, device=device), places + 1])
        seen = (places <= places[:, None]) & ((draw == draw[:, None]) | (draw == -1))  # (L, L)
        seen = torch.cat([seen.new_ones(len(places), cached + 1), seen], dim=1)  # (L, P + L)
        bias = self._bias(places, keys).masked_fill(~seen[..., None], -math.inf)
        return Positions(bias.transpose(1, 2).flatten(0, 1), self._rotation(places))

    def _bias(self, places: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Return the bias `[L, keys, H]` of tokens at `places`; key 0 is the null position, key 1 the first token."""
        return self.bias(_bucket((places[:, None] - keys).clamp(min=0))) * self.bias_scale  # type: ignore[no-any-return]

    def _rotation(self, places: torch.Tensor) -> torch.Tensor | None:
        if not self.rotated:
            return None
        powers = torch.arange(0, self.rotated, 2, device=places.device, dtype=torch.float32) / self.rotated
        angles = (places.float()[:, None] / 10_000.0**powers).to(self.bias.weight.dtype)[:, None]
        return torch.complex(angles.cos(), angles.sin())


def _bucket(distance: torch.Tensor) -> torch.Tensor:
    """Map distances to T5's buckets: one for each distance below 16, then logarithmic ones up to 128."""
    exact = _BUCKETS // 2
    far = torch.log(distance.clamp(min=1).float() / exact) / math.log(_MAX_DISTANCE / exact) * (_BUCKETS - exact)
    return torch.where(distance < exact, distance, (exact + far.long()).clamp(max=_BUCKETS - 1))
