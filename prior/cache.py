"""What a prior network keeps of its prefix: keys and values of texts, to be continued by suffixes.

Letters: B texts, K draws of one text, P positions, A width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .layers import KeysValues, Positions


@dataclass(frozen=True)
class PrefixCache:
    """Keys and values of the text in every layer, the null position first."""

    layers: list[KeysValues]
    positions: dict[tuple[int, int, int], Positions] = field(default_factory=dict)
    """What suffixes need to know of their places, by their lengths: the same in every step."""

    @property
    def texts(self) -> int:
        """B."""
        return self.layers[0].keys.shape[0]

    @property
    def tokens(self) -> int:
        """Positions that are cached, but for the null."""
        return self.layers[0].keys.shape[1] - 1

    def followed_by(self, other: PrefixCache) -> PrefixCache:
        """These positions, then the others; of the same texts, or these of one for all."""
        return PrefixCache([mine.append(its) for mine, its in zip(self.layers, other.layers, strict=True)])

    def stacked_with(self, other: PrefixCache) -> PrefixCache:
        """These texts, then the others, of the same length."""
        pairs = zip(self.layers, other.layers, strict=True)
        return PrefixCache(
            [KeysValues(*(torch.cat(parts) for parts in zip(mine, its, strict=False))) for mine, its in pairs]
        )

    def rows(self, first: int, end: int) -> PrefixCache:
        """Some of these texts, side by side."""
        return PrefixCache([KeysValues(*(part[first:end] for part in layer)) for layer in self.layers])

    def take(self, numbers: torch.Tensor) -> PrefixCache:
        """Texts by their numbers, any of them more than once."""
        return PrefixCache([KeysValues(*(part[numbers] for part in layer)) for layer in self.layers])

    def of_draws(self, drop_text: torch.Tensor, null: PrefixCache | None) -> PrefixCache:
        """For each of K draws of T texts the prefix that it sees, one text for each draw: B * K of them.

        Only expanded, chosen between and joined, so that gradients are sums in the same order every time.

        Args:
            drop_text: `[B, K]` bool: the first T rows are of these texts, of the others all draws are dropped.
            null: of dropped text, one for all or one for each text; None if nothing is dropped.
        """
        (all_rows, draws), rows = drop_text.shape, self.texts
        chosen = drop_text[:rows]
        mixed = bool(chosen.any())
        dropped = chosen[:, :, None, None].to(self.layers[0].keys.device)

        def of_part(text: torch.Tensor, none: torch.Tensor | None) -> torch.Tensor:
            own = text[:, None].expand(-1, draws, -1, -1)  # (T, K, P, A)
            if none is not None and mixed:
                own = torch.where(dropped, none[:, None], own)
            own = own.flatten(0, 1)
            if rows == all_rows:
                return own
            assert none is not None
            return torch.cat([own, none.expand((all_rows - rows) * draws, -1, -1)])

        nothing: list[KeysValues] | list[tuple[None, None]] = [(None, None)] * len(self.layers)
        pairs = zip(self.layers, null.layers if null is not None else nothing, strict=True)
        return PrefixCache([KeysValues(*map(of_part, mine, its)) for mine, its in pairs])

    def expand(self, texts: int) -> PrefixCache:
        """The one text of this cache, `texts` times."""
        return PrefixCache([KeysValues(*(part.expand(texts, -1, -1) for part in layer)) for layer in self.layers])
