"""Distances between the distributions that two sets of embeddings are drawn from, with intervals, in float64.

They are means over no rows, so their intervals are of half-samples: rows are dealt into 16 parts by their image, each
distance is taken between halves of the parts and between the other halves, and how much the two differ says how much
the distance of all rows would (balanced half-samples; McCarthy 1969, Rev. Int. Stat. Inst. 37). A bootstrap would draw
rows twice, whose distance is 0. Of equal distributions, where distances are smallest, the intervals are wider than need
be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .metrics import NORMAL_QUANTILE, Estimate

_PARTS = 16
_HALVES = np.array([[(i & j).bit_count() % 2 == 0 for j in range(_PARTS)] for i in range(1, _PARTS)])
"""`[15, 16]` bool: the parts in each half, of Sylvester's Hadamard matrix, so that any two parts share one in two."""
LEAST_GROUPS = 3 * _PARTS
"""Images that distances can be taken over."""
_MEDIAN_ROWS = 1000
_SAME = 1e-6
"""Distances below it are those of copies."""

_Kernel = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class EmbeddingSet:
    """Embeddings of norm 1 that stand for a distribution."""

    embeds: np.ndarray
    """`[N, D]`."""
    groups: np.ndarray
    """`[N]`: equal ones are of one image, in one set or in both that are compared."""


def set_distances(found: EmbeddingSet, real: EmbeddingSet) -> dict[str, Estimate]:
    """Distances between the distributions that two sets are drawn from; none of fewer than 48 images in either.

    - `frechet_distance`: squared, between the Gaussians of the sets' moments (Dowson and Landau 1982, J. Multivariate
      Anal. 12), as FID has it. It falls with N: its interval is of what it is at this N. None where there are fewer
      rows than twice the dimensions, since covariances of halves would be singular.
    - `energy_distance`: 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo 2013, J. Stat. Plan. Inference 143).
    - `mmd`: squared, of exp(-d^2 / 2 s^2), s being the median distance of real embeddings that differ (Gretton et al.
      2012, JMLR 13).

    The last two are unbiased (and may be below 0), over pairs of rows of different groups.
    """
    if min(len(np.unique(one.groups)) for one in (found, real)) < LEAST_GROUPS:
        return {}
    number = _dealt(found.groups, real.groups)
    found_parts = _parts(found.embeds, number[: len(found.groups)])
    real_parts = _parts(real.embeds, number[len(found.groups) :])
    first = slice(_MEDIAN_ROWS)
    scale = _median_distance(EmbeddingSet(real.embeds[first], real.groups[first]))
    kernels: dict[str, _Kernel] = {
        "energy_distance": np.negative,
        "mmd": lambda distance: np.exp(-(distance**2) / (2 * scale**2)),
    }
    terms = [_pairs(a, b, kernels) for a, b in ((found_parts,) * 2, (real_parts,) * 2, (found_parts, real_parts))]
    distances = {name: _estimate(_PairDistance([(sums[name], counts) for sums, counts in terms])) for name in kernels}
    if min(len(found.embeds), len(real.embeds)) < 2 * real.embeds.shape[1]:
        return distances
    return {"frechet_distance": _estimate(_FrechetDistance(found_parts, real_parts)), **distances}


def _dealt(found: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Numbers of groups, for those of found rows and then those of real ones; the same for equal ones.

    Groups that both have, and those that only one has, are numbered in runs of their own, so that each is dealt evenly.
    """
    groups, place = np.unique(np.concatenate([found, real]), return_inverse=True)
    number = np.empty(len(groups), np.int64)
    number[np.argsort(np.isin(groups, found) + 2 * np.isin(groups, real), kind="stable")] = np.arange(len(groups))
    return np.asarray(number[place])


def _parts(embeds: np.ndarray, number: np.ndarray) -> list[EmbeddingSet]:
    return [EmbeddingSet(embeds[chosen], number[chosen]) for chosen in (number % _PARTS == p for p in range(_PARTS))]


def _estimate(distance: Callable[[np.ndarray], float]) -> Estimate:
    """A distance, as a function of which parts are taken (`[16]` bool), with its interval."""
    value = distance(np.ones(_PARTS, bool))
    differences = [distance(half) - distance(~half) for half in _HALVES]
    reach = NORMAL_QUANTILE * float(np.sqrt(np.mean(np.square(differences)))) / 2
    return Estimate(value, value - reach, value + reach)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`[N, D]`, `[M, D]` -> `[N, M]`."""
    squares = np.square(a).sum(-1)[:, None] + np.square(b).sum(-1) - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


def _median_distance(real: EmbeddingSet) -> float:
    """Between embeddings of different groups that differ; 1 where none do."""
    distances = _distances(real.embeds, real.embeds)[real.groups[:, None] < real.groups]
    distances = distances[distances > _SAME]
    return float(np.median(distances)) if len(distances) else 1.0


def _pairs(
    first: Sequence[EmbeddingSet], second: Sequence[EmbeddingSet], kernels: Mapping[str, _Kernel]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Sums of kernels of distances, by name, and numbers of pairs of different groups: `[16, 16]` of part and part."""
    sums = {name: np.zeros((_PARTS, _PARTS)) for name in kernels}
    counts = np.zeros((_PARTS, _PARTS))
    for i in range(_PARTS):
        for j in range(_PARTS):
            distances = _distances(first[i].embeds, second[j].embeds)
            if i == j:  # nowhere else are rows of one group
                distances = distances[first[i].groups[:, None] != second[j].groups]
            for name, kernel in kernels.items():
                sums[name][i, j] = kernel(distances).sum()
            counts[i, j] = distances.size
    return sums, counts


@dataclass(frozen=True)
class _PairDistance:
    """A distance that is made of means over pairs of rows."""

    terms: Sequence[tuple[np.ndarray, np.ndarray]]
    """Sums and numbers of pairs, `[16, 16]`: of found rows, of real ones, and of the one with the other."""

    def __call__(self, kept: np.ndarray) -> float:
        both = np.ix_(kept, kept)
        found, real, across = (sums[both].sum() / counts[both].sum() for sums, counts in self.terms)
        return float(found + real - 2 * across)


class _FrechetDistance:
    """The Frechet distance, from the moments of parts."""

    def __init__(self, found: Sequence[EmbeddingSet], real: Sequence[EmbeddingSet]) -> None:
        # about the real mean, so that the moments' sums lose no digits
        centre = np.mean([part.embeds.mean(axis=0) for part in real], axis=0)
        self._found, self._real = (_Moments([part.embeds - centre for part in parts]) for parts in (found, real))

    def __call__(self, kept: np.ndarray) -> float:
        (mean_a, covariance_a), (mean_b, covariance_b) = self._found.of(kept), self._real.of(kept)
        values, vectors = np.linalg.eigh(covariance_a)
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance_b @ root), 0)).sum()
        difference = np.square(mean_a - mean_b).sum()
        return float(difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * mixed)


class _Moments:
    """Numbers of rows `[16]`, sums `[16, D]` and sums of outer products `[16, D, D]` of parts."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._counts = np.array([len(part) for part in parts])
        self._totals = np.stack([part.sum(axis=0) for part in parts])
        self._products = np.stack([part.T @ part for part in parts])

    def of(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean `[D]` and covariance `[D, D]` of the rows of some parts."""
        count = self._counts[kept].sum()
        mean = self._totals[kept].sum(axis=0) / count
        return mean, (self._products[kept].sum(axis=0) - count * np.outer(mean, mean)) / (count - 1)
