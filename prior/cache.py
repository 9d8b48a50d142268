"""What a prior network keeps of its prefix: keys and values of texts, to be continued by suffixes.

Letters: B texts, K draws of one text, P positions, A width of a head.
"""

from __future__ import annotations

import functools
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

    def take(self, numbers: torch.Tensor) -> PrefixCache:
        """Texts by their numbers, any of them more than once."""
        return PrefixCache([KeysValues(*(part[numbers] for part in layer)) for layer in self.layers])

    def expand(self, texts: int) -> PrefixCache:
        """The one text of this cache, `texts` times."""
        return PrefixCache([KeysValues(*(part.expand(texts, -1, -1) for part in layer)) for layer in self.layers])


@dataclass(frozen=True)
class DrawnTexts:
    """Which prefix each of K draws of B texts sees, in a batch of prefixes that it is one row of.

    Only expanded, chosen between and joined, so that gradients are sums in the same order every time.
    """

    drop_text: torch.Tensor
    """`[B, K]` bool on the CPU: draws whose text is dropped."""
    texts: int
    """T: prefixes of the first texts, which come first; of the others all draws are dropped."""

    def __call__(self, layer: int, known: list[KeysValues]) -> KeysValues:
        """From T prefixes, then those of no text (none, one for all or one for each), `[B * K, P, A]`."""
        whole = known[0]
        for part in known[1:]:
            whole = whole.append(part)
        return KeysValues(self._of_draws(whole.keys), self._of_draws(whole.values))

    def _of_draws(self, prefixes: torch.Tensor) -> torch.Tensor:
        rows, draws = self.drop_text.shape
        text, null = prefixes[: self.texts], prefixes[self.texts :]
        own = text[:, None].expand(-1, draws, -1, -1)  # (T, K, P, A)
        if self._some_dropped:
            own = torch.where(self._dropped.to(text.device), null[:, None], own)
        own = own.flatten(0, 1)
        if self.texts == rows:
            return own
        return torch.cat([own, null.expand((rows - self.texts) * draws, -1, -1)])

    @functools.cached_property
    def _dropped(self) -> torch.Tensor:
        return self.drop_text[: self.texts, :, None, None]

    @functools.cached_property
    def _some_dropped(self) -> bool:
        return bool(self._dropped.any())
