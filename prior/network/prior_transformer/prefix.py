"""Attention keys and values of encoded texts, and the attention masks of a `PriorTransformer`.

Dimensions: B texts, K draws (noisy image embeddings) per text, H heads, P positions of a text, L later tokens, A head
width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..interface import DrawnTexts


class KeysValues(NamedTuple):
    """Attention keys and values of one layer, for B rows of P positions. Each head has its own."""

    keys: torch.Tensor
    """`[B, H, P, A]`"""
    values: torch.Tensor
    """`[B, H, P, A]`"""

    def append(self, other: KeysValues) -> KeysValues:
        """Return keys and values for the positions of `self`, followed by the positions of `other`."""
        return KeysValues(*(torch.cat(pair, dim=2) for pair in zip(self, other, strict=True)))

    def repeat_for(self, draws: DrawnTexts) -> KeysValues:
        """Return the keys and values of the text that each of the N draws uses, `[N, H, P, A]`."""
        return KeysValues(*(repeat_texts(part, draws) for part in self))


def repeat_texts(texts: torch.Tensor, draws: DrawnTexts) -> torch.Tensor:
    """Return one row per draw, `[N, ...]`: the row of `texts` for the text that the draw uses."""
    # the gradients of expand and cat are summed in a fixed order; those of indexing are not
    rest = texts.shape[1:]
    separate = texts[: draws.texts, None].expand(-1, draws.draws, *rest).flatten(0, 1)
    if draws.texts == draws.rows:
        return separate
    return torch.cat([separate, texts[draws.texts :].expand((draws.rows - draws.texts) * draws.draws, *rest)])


@dataclass(frozen=True)
class TextPrefix:
    """Attention keys and values of B encoded texts in every layer.

    A text takes as many positions as the longest text of the batch. Padding is masked.
    """

    layers: list[KeysValues]
    """Keys and values, one entry per layer."""
    mask: torch.Tensor
    """Attention bias of each position, `[B, P]`: 0, or -inf for padding."""
    masks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    """Attention bias of the tokens that follow the texts, by the arguments `(shared, draws)` of `suffix_mask`.

    It is the same in every sampling step, so it is computed once.
    """

    @property
    def texts(self) -> int:
        """Number of texts, B."""
        return len(self.mask)

    def take(self, indices: torch.Tensor) -> TextPrefix:
        """Return a prefix with the texts at the given indices. An index may be repeated."""
        layers = [KeysValues(keys[indices], values[indices]) for keys, values in self.layers]
        return TextPrefix(layers, self.mask[indices])

    def expand(self, texts: int) -> TextPrefix:
        """Return a prefix in which the single text of this prefix is repeated, without copying data."""
        layers = [KeysValues(*(part.expand(texts, -1, -1, -1) for part in layer)) for layer in self.layers]
        return TextPrefix(layers, self.mask.expand(texts, -1))

    def stacked_with(self, other: TextPrefix) -> TextPrefix:
        """Return a prefix with the texts of this prefix followed by those of `other`, padded to the longer of both."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        one, two = self._padded(length), other._padded(length)
        layers = [
            KeysValues(torch.cat([a.keys, b.keys]), torch.cat([a.values, b.values]))
            for a, b in zip(one.layers, two.layers, strict=True)
        ]
        return TextPrefix(layers, torch.cat([one.mask, two.mask]))

    def _padded(self, length: int) -> TextPrefix:
        more = length - self.mask.shape[1]
        if more == 0:
            return self
        layers = [KeysValues(*(F.pad(part, (0, 0, 0, more)) for part in layer)) for layer in self.layers]
        return TextPrefix(layers, F.pad(self.mask, (0, more), value=-math.inf))

    def suffix_mask(self, shared: int, draws: int, tokens: int) -> torch.Tensor:
        """Return the attention bias of the tokens that follow each text, `[B, 1, L, P + L]`, computed once.

        See the function `suffix_mask` for the layout of the L tokens.
        """
        if (shared, draws) not in self.masks:
            self.masks[shared, draws] = suffix_mask(self.mask, shared, draws, tokens)
        return self.masks[shared, draws]


def padding_mask(given: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the attention bias of positions, of the shape of the bool tensor `given`: 0 if given, -inf for padding."""
    return torch.zeros(given.shape, dtype=dtype, device=given.device).masked_fill(~given, -math.inf)


def prefix_mask(mask: torch.Tensor) -> torch.Tensor:
    """Return the causal attention bias within B texts, `[B, 1, P, P]`, for the bias `mask` of their positions `[B, P]`.

    A position also attends to itself if it is padding, so that no row of the result is -inf everywhere.
    """
    length = mask.shape[1]
    order = torch.arange(length, device=mask.device)
    causal = torch.where(order > order[:, None], -math.inf, 0.0).to(mask.dtype)  # (P, P)
    bias = causal + mask[:, None, :]
    return torch.where(torch.eye(length, dtype=torch.bool, device=mask.device), 0.0, bias)[:, None]


def suffix_mask(mask: torch.Tensor, shared: int, draws: int, tokens: int) -> torch.Tensor:
    """Return the attention bias of the L tokens that follow each of B texts, `[B, 1, L, P + L]`.

    The tokens that all draws of a text share come first, followed by the tokens of each draw, so
    L = shared + draws * tokens. A draw attends to the text and to the shared tokens, but not to other draws.

    Args:
        mask: attention bias of the positions of each text, `[B, P]`.
        shared: number of tokens that all draws share.
        draws: number of draws (noisy image embeddings) per text.
        tokens: number of tokens per draw.
    """
    index = torch.arange(shared + draws * tokens, device=mask.device)
    draw = torch.where(index < shared, -1, (index - shared) // tokens)
    seen = (index <= index[:, None]) & ((draw == draw[:, None]) | (draw == -1))  # (L, L)
    local = padding_mask(seen, mask.dtype)
    rows, length = len(mask), len(index)
    before = mask[:, None].expand(-1, length, -1)
    return torch.cat([before, local.expand(rows, -1, -1)], dim=2)[:, None]
