"""What runs through the layers side by side: parts, each with what is known of its places and of what precedes it.

Letters: B texts, L tokens of a text (side by side those of all its draws), P cached positions, H heads, A width of a
head; of parts R rows of L tokens, M tokens of all parts together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch


class KeysValues(NamedTuple):
    """Keys and values of cached positions, shared by all heads."""

    keys: torch.Tensor
    """`[B, P, A]`, rotated, and of norm 1 where attention is by cosine."""
    values: torch.Tensor
    """`[B, P, A]`."""

    def append(self, other: KeysValues) -> KeysValues:
        """These positions, then the others; of the same rows, or these of one row for all."""
        return KeysValues(_join(self.keys, other.keys), _join(self.values, other.values))


def _join(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    if len(before) != len(after):
        before = before.expand(len(after), -1, -1)
    return torch.cat([before, after], dim=1)


class Positions(NamedTuple):
    """What attention knows of the places of L tokens of a text."""

    bias: torch.Tensor
    """`[L * H, P + L]`, P being 1 at the beginning; -inf where a token must not look."""
    rotation: torch.Tensor | None
    """Complex numbers `[L, 1, rotated / 2]` of size 1, which pairs of coordinates are multiplied by."""


Before = Callable[[int, list[KeysValues]], KeysValues]
"""From the number of a layer and what earlier parts have there, null position included, what precedes a part."""


class Part(NamedTuple):
    """R rows of L tokens that look at the same: at what precedes them, and at those of their own row."""

    rows: int
    length: int
    positions: Positions
    before: Before | None
    """None at the beginning."""


def after_the_last(layer: int, known: list[KeysValues]) -> KeysValues:
    """What precedes a part that continues the one before it."""
    return known[-1]


def join(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tokens of parts, `[R, L, ...]` each, as one sequence `[1, M, ...]`; of one part as they are."""
    return values[0] if len(values) == 1 else torch.cat([value.flatten(0, 1) for value in values])[None]


def split(joined: torch.Tensor, parts: Sequence[Part]) -> list[torch.Tensor]:
    """What `join` joined."""
    if len(parts) == 1:
        return [joined]
    pieces = torch.split(joined[0], [part.rows * part.length for part in parts])
    each = zip(pieces, parts, strict=True)
    return [piece.view(part.rows, part.length, *piece.shape[1:]) for piece, part in each]


def join_rotations(parts: Sequence[Part]) -> torch.Tensor | None:
    """The rotations of what `join` joins."""
    rotations = [part.positions.rotation for part in parts]
    if len(parts) == 1 or rotations[0] is None:
        return rotations[0]
    pairs = zip(rotations, parts, strict=True)
    return torch.cat([rotation.repeat(part.rows, 1, 1) for rotation, part in pairs if rotation is not None])
