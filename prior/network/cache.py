"""Cached keys and values of texts, which every step and draw of a sampler shares.

Letters: B texts or rows, K draws of a row, P positions, A width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from .interface import DrawnTexts
from .positions import Positions


class KeysValues(NamedTuple):
    """Keys and values of consecutive positions in one layer, shared by all heads."""

    keys: torch.Tensor
    """`[B, P, A]`, rotated; with norm 1 if attention is by cosine."""
    values: torch.Tensor
    """`[B, P, A]`."""

    def append(self, other: KeysValues) -> KeysValues:
        """Append positions of the same rows; a single row is repeated for all rows of `other`."""
        return KeysValues(_join(self.keys, other.keys), _join(self.values, other.values))

    def repeat_for(self, draws: DrawnTexts) -> KeysValues:
        """Repeat the prefixes of texts for the draws that see them: `[texts, P, A]` -> `[B * K, P, A]`."""
        return KeysValues(_repeat(self.keys, draws), _repeat(self.values, draws))


def _join(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    if len(before) != len(after):
        before = before.expand(len(after), -1, -1)
    return torch.cat([before, after], dim=1)


def _repeat(prefixes: torch.Tensor, draws: DrawnTexts) -> torch.Tensor:
    # expand and cat, not indexing: their gradients are sums in the same order every time
    separate = prefixes[: draws.texts, None].expand(-1, draws.draws, -1, -1).flatten(0, 1)  # (texts * K, P, A)
    if draws.texts == draws.rows:
        return separate
    shared = prefixes[draws.texts :].expand((draws.rows - draws.texts) * draws.draws, -1, -1)
    return torch.cat([separate, shared])


@dataclass(frozen=True)
class PrefixCache:
    """Keys and values of B texts in every layer; the null position comes first."""

    layers: list[KeysValues]
    """Keys and values of each layer."""
    positions: dict[tuple[int, int, int], Positions] = field(default_factory=dict)
    """Positions of suffixes by their lengths, computed in the first step and reused in the others."""

    @property
    def texts(self) -> int:
        """Number of texts, B."""
        return self.layers[0].keys.shape[0]

    @property
    def tokens(self) -> int:
        """Number of cached positions, without the null position."""
        return self.layers[0].keys.shape[1] - 1

    def take(self, indices: torch.Tensor) -> PrefixCache:
        """Select texts by index; an index may occur several times."""
        return PrefixCache([KeysValues(keys[indices], values[indices]) for keys, values in self.layers])

    def expand(self, texts: int) -> PrefixCache:
        """Repeat the only text `texts` times, without a copy."""
        return PrefixCache([KeysValues(*(part.expand(texts, -1, -1) for part in layer)) for layer in self.layers])

    def stacked_with(self, other: PrefixCache) -> PrefixCache:
        """Append the texts of another cache of the same length."""
        pairs = zip(self.layers, other.layers, strict=True)
        return PrefixCache([KeysValues(torch.cat([a.keys, b.keys]), torch.cat([a.values, b.values])) for a, b in pairs])
