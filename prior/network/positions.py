"""Position encoding: a learned relative bias that includes the causal mask, and rotary embedding.

Dimensions: L tokens per text (all draws of the text concatenated), P cached positions, H heads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from .function_version import DOT_PRODUCT_BIAS

_BUCKETS = 32
"""Number of distance buckets, as in T5."""
_MAX_DISTANCE = 128
"""Distance, in tokens, at which T5's logarithmic buckets end. All longer distances fall into the last bucket."""
_ROTARY_WIDTH = 32
"""Maximum number of coordinates per head that rotary embedding rotates, as in DALLE2-pytorch."""


class Positions(NamedTuple):
    """Attention bias, including the causal mask, and rotary embedding for the L tokens of a text."""

    bias: torch.Tensor
    """Bias added to attention logits; -inf for positions that a token must not attend to.

    The shape is `[L * H, P + L]`, with one row per query (L tokens with H heads each) and one column per key. The keys
    are P cached positions, including the null position, and then the L tokens.
    """
    rotation: torch.Tensor | None
    """Rotary embedding: complex numbers of absolute value 1; None if the network uses no rotary embedding.

    The shape is `[L, 1, R / 2]` for L tokens and R rotated coordinates per query or key. The coordinates are grouped
    into pairs. Each pair is treated as a complex number and multiplied by one of these values.
    """


class PositionEncoding(nn.Module):
    """Position encoding of the prior network: a learned attention bias, and rotary embedding if `rotary` is true.

    The bias depends on the attention head and on the distance between query and key, grouped into 32 buckets as in T5
    (Raffel et al. 2019, arXiv 1910.10683). The null position (a learned key and value without a token) counts as a key
    before the first token. To reproduce DALLE2-pytorch releases with dot-product attention, the bias is multiplied by
    128. Rotary embedding (Su et al. 2021, arXiv 2104.09864) rotates up to 32 coordinates of each query and key.
    """

    def __init__(self, heads: int, head_width: int, *, rotary: bool, cosine: bool) -> None:
        super().__init__()
        self.bias = nn.Embedding(_BUCKETS, heads)
        self.bias_scale = 1.0 if cosine else DOT_PRODUCT_BIAS
        self.rotated = min(_ROTARY_WIDTH, head_width) if rotary else 0

    def forward(self, cached: int, shared: int, draws: int, tokens: int) -> Positions:
        """Return the attention bias and rotary embedding of the L tokens that follow the cached tokens.

        The shared tokens come first, followed by the tokens of each draw, so L = shared + draws * tokens. A draw
        attends to the shared tokens, but not to the tokens of other draws.

        Args:
            cached: number of cached tokens, excluding the null position.
            shared: number of tokens that all draws share.
            draws: number of draws (noisy image embeddings) per text.
            tokens: number of tokens per draw.
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
        """Return the attention bias for each pair of a query and a key, without the causal mask.

        Args:
            places: positions of the L query tokens, `[L]`, counted from 0 at the first token of the sequence.
            keys: positions of the keys, `[P + L]`: P cached positions, then the L tokens. They are counted from 0 at
                the null position, so a token's position as a key is one higher than its position as a query.

        Returns:
            The bias, `[L, P + L, H]`, with one value per head (H heads).
        """
        return self.bias(_bucket((places[:, None] - keys).clamp(min=0))) * self.bias_scale  # type: ignore[no-any-return]

    def _rotation(self, places: torch.Tensor) -> torch.Tensor | None:
        if not self.rotated:
            return None
        powers = torch.arange(0, self.rotated, 2, device=places.device, dtype=torch.float32) / self.rotated
        angles = (places.float()[:, None] / 10_000.0**powers).to(self.bias.weight.dtype)[:, None]
        return torch.complex(angles.cos(), angles.sin())


def _bucket(distance: torch.Tensor) -> torch.Tensor:
    """Return T5's bucket number for each distance between a query and a key.

    Each distance below 16 has its own bucket. Distances from 16 to 128 fall into logarithmically spaced buckets. All
    longer distances share the last bucket.
    """
    exact = _BUCKETS // 2
    far = torch.log(distance.clamp(min=1).float() / exact) / math.log(_MAX_DISTANCE / exact) * (_BUCKETS - exact)
    return torch.where(distance < exact, distance, (exact + far.long()).clamp(max=_BUCKETS - 1))
