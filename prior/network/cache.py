"""Cache of attention keys and values for encoded texts.

The cache is shared by all sampling steps, and by all draws (noisy image embeddings) of a text.

Dimensions: B rows (texts, or draws after `KeysValues.repeat_for`), K draws per text, P positions, A head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from .interface import DrawnTexts
from .positions import Positions


class KeysValues(NamedTuple):
    """Attention keys and values of one layer, for B rows of P consecutive positions.

    All query heads share the same keys and values (multi-query attention).
    """

    keys: torch.Tensor
    """Keys after rotary embedding, `[B, P, A]`: one vector of width A (the head width) per row and position.

    They are L2-normalised if the layer uses cosine attention.
    """
    values: torch.Tensor
    """Values `[B, P, A]`: one vector of width A (the head width) per row and position."""

    def append(self, other: KeysValues) -> KeysValues:
        """Return keys and values for the positions of `self` followed by the positions of `other`.

        If `self` has a single row, that row precedes each row of `other`. Otherwise, the two must have the same number
        of rows.
        """
        return KeysValues(_join(self.keys, other.keys), _join(self.values, other.values))

    def repeat_for(self, draws: DrawnTexts) -> KeysValues:
        """Return the keys and values of the text that each draw uses, with one row per draw.

        A draw is one noisy image embedding, whose tokens attend to the tokens of one text. `self` has one row per
        encoded text, `[texts, P, A]` (P positions, head width A). The result has one row per draw, `[N, P, A]`
        (N draws in total).

        Args:
            draws: mapping from each draw to the text that it uses.
        """
        return KeysValues(_repeat(self.keys, draws), _repeat(self.values, draws))


def _join(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    if len(before) != len(after):
        before = before.expand(len(after), -1, -1)
    return torch.cat([before, after], dim=1)


def _repeat(prefixes: torch.Tensor, draws: DrawnTexts) -> torch.Tensor:
    # the gradients of expand and cat are summed in a fixed order; those of indexing are not
    separate = prefixes[: draws.texts, None].expand(-1, draws.draws, -1, -1).flatten(0, 1)  # (texts * K, P, A)
    if draws.texts == draws.rows:
        return separate
    shared = prefixes[draws.texts :].expand((draws.rows - draws.texts) * draws.draws, -1, -1)
    return torch.cat([separate, shared])


@dataclass(frozen=True)
class PrefixCache:
    """Attention keys and values of B encoded texts in every layer.

    The first position is the null position: a learned key and value that every token can attend to.
    """

    layers: list[KeysValues]
    """Keys and values, one entry per layer."""
    positions: dict[tuple[int, int, int], Positions] = field(default_factory=dict)
    """Position encodings of the tokens that follow the text (timestep, noisy image and query).

    They are the same in every sampling step, so they are computed once. The dictionary keys are the arguments
    `(shared, draws, tokens)` of `PositionEncoding.forward`.
    """

    @property
    def texts(self) -> int:
        """Number of texts, B."""
        return self.layers[0].keys.shape[0]

    @property
    def tokens(self) -> int:
        """Number of cached positions, excluding the null position."""
        return self.layers[0].keys.shape[1] - 1

    def take(self, indices: torch.Tensor) -> PrefixCache:
        """Return a cache with the texts at the given indices. An index may be repeated."""
        return PrefixCache([KeysValues(keys[indices], values[indices]) for keys, values in self.layers])

    def expand(self, texts: int) -> PrefixCache:
        """Return a cache in which the single text of this cache is repeated `texts` times, without copying data.

        Call this only if the cache contains exactly one text.
        """
        return PrefixCache([KeysValues(*(part.expand(texts, -1, -1) for part in layer)) for layer in self.layers])

    def stacked_with(self, other: PrefixCache) -> PrefixCache:
        """Return a cache with the texts of this cache followed by those of `other`.

        Both caches must have the same number of positions.
        """
        pairs = zip(self.layers, other.layers, strict=True)
        return PrefixCache([KeysValues(torch.cat([a.keys, b.keys]), torch.cat([a.values, b.values])) for a, b in pairs])
