"""What a prior network keeps of its prefix: keys and values of texts, to be continued by suffixes.

Letters: B texts, K draws of one text, P positions, A width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .parts import KeysValues, Positions


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

    def __call__(self, layer: int, known: list[KeysValues]) -> KeysValues:
        """What precedes a part that continues these texts; see `parts.Before`."""
        return self.layers[layer]

    def followed_by(self, other: PrefixCache) -> PrefixCache:
        """These positions, then the others; of the same texts, or these of one for all."""
        return PrefixCache([mine.append(its) for mine, its in zip(self.layers, other.layers, strict=True)])

    def stacked_with(self, other: PrefixCache) -> PrefixCache:
        """These texts, then the others, of the same length."""
        pairs = zip(self.layers, other.layers, strict=True)
        return PrefixCache(
            [KeysValues(*(torch.cat(parts) for parts in zip(mine, its, strict=False))) for mine, its in pairs]
        )

    def take(self, numbers: torch.Tensor) -> PrefixCache:
        """Texts by their numbers, any of them more than once."""
        return PrefixCache([KeysValues(*(part[numbers] for part in layer)) for layer in self.layers])

    def expand(self, texts: int) -> PrefixCache:
        """The one text of this cache, `texts` times."""
        return PrefixCache([KeysValues(*(part.expand(texts, -1, -1) for part in layer)) for layer in self.layers])


@dataclass(frozen=True)
class DrawnTexts:
    """Which prefix each of K draws of B rows sees: that of its row's text, or the one of no text.

    Only expanded and joined, so that gradients are sums in the same order every time.
    """

    rows: int
    """B."""
    draws: int
    """K."""
    texts: int
    """T: the first rows have a prefix each; what follows is the prefix of all others."""

    def __call__(self, layer: int, known: list[KeysValues]) -> KeysValues:
        """From T prefixes, and one more where T is less than B, `[B * K, P, A]`."""
        whole = known[0]
        for part in known[1:]:
            whole = whole.append(part)
        return KeysValues(self._of_draws(whole.keys), self._of_draws(whole.values))

    def _of_draws(self, prefixes: torch.Tensor) -> torch.Tensor:
        own = prefixes[: self.texts, None].expand(-1, self.draws, -1, -1).flatten(0, 1)  # (T * K, P, A)
        if self.texts == self.rows:
            return own
        return torch.cat([own, prefixes[self.texts :].expand((self.rows - self.texts) * self.draws, -1, -1)])
