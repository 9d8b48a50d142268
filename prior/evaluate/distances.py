"""Distances between the distributions behind two sets of embeddings, with 95% intervals, in float64.

A distance is not a mean over rows, so its interval comes from balanced half-samples (McCarthy 1969, Rev. Int. Stat.
Inst. 37). Rows are dealt into 16 parts by image. Each distance is computed for one half of the parts and for the other;
the spread of the differences gives the interval. A bootstrap does not work here: it repeats rows, and the distance
between a row and its copy is 0. Where the distributions are equal, the intervals are wider than necessary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .metrics import NORMAL_QUANTILE, Interval

_PARTS = 16
"""Number of parts that rows are dealt into; a power of 2, for the Hadamard matrix."""
_HALVES = np.array([[(i & j).bit_count() % 2 == 0 for j in range(_PARTS)] for i in range(1, _PARTS)])
"""Parts in each of 15 halves, `[15, 16]` bool: rows of Sylvester's Hadamard matrix, in which all pairs are balanced."""
LEAST_GROUPS = 3 * _PARTS
"""Smallest number of images for which distances are computed: 3 per part."""
_MEDIAN_ROWS = 1000
"""Rows that the kernel's median distance is taken over, to bound the number of pairs."""
_COPY_DISTANCE = 1e-6
"""Distance below which two embeddings count as copies."""

_Kernel = Callable[[np.ndarray], np.ndarray]
"""Function of pairwise distances, applied to each."""


@dataclass(frozen=True)
class EmbeddingSet:
    """Embeddings of norm 1 that represent a distribution."""

    embeds: np.ndarray
    """Embeddings `[N, D]`."""
    groups: np.ndarray
    """Image of each embedding `[N]`; equal values are the same image, in this set and in the one it is compared to."""


def set_distances(predicted: EmbeddingSet, real: EmbeddingSet) -> dict[str, Interval]:
    """Return the distances between the distributions behind two sets; empty if either has fewer than 48 images.

    - `frechet_distance`: squared, between Gaussians with the moments of the sets (Dowson and Landau 1982, J.
      Multivariate Anal. 12), as in FID. It falls with N, so its interval holds for this N only. It is left out if
      there are fewer rows than twice the dimensions, because covariances of halves would be singular.
    - `energy_distance`: 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo 2013, J. Stat. Plan. Inference 143).
    - `mmd`: squared, with the kernel exp(-d^2 / 2 s^2), where s is the median distance between different real
      embeddings (Gretton et al. 2012, JMLR 13).

    The last two are unbiased over pairs of rows of different images, and may be below 0.
    """
    if min(len(np.unique(one.groups)) for one in (predicted, real)) < LEAST_GROUPS:
        return {}
    numbers = _number_groups(predicted.groups, real.groups)
    predicted_parts = _split_into_parts(predicted.embeds, numbers[: len(predicted.groups)])
    real_parts = _split_into_parts(real.embeds, numbers[len(predicted.groups) :])
    first = slice(_MEDIAN_ROWS)
    scale = _median_distance(EmbeddingSet(real.embeds[first], real.groups[first]))
    kernels: dict[str, _Kernel] = {
        "energy_distance": np.negative,
        "mmd": lambda distance: np.exp(-(distance**2) / (2 * scale**2)),
    }
    compared = ((predicted_parts, predicted_parts), (real_parts, real_parts), (predicted_parts, real_parts))
    terms = [_pair_sums(a, b, kernels) for a, b in compared]
    distances = {
        name: _with_interval(_PairDistance([(sums[name], counts) for sums, counts in terms])) for name in kernels
    }
    if min(len(predicted.embeds), len(real.embeds)) < 2 * real.embeds.shape[1]:
        return distances
    return {"frechet_distance": _with_interval(_FrechetDistance(predicted_parts, real_parts)), **distances}


def _number_groups(predicted: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Number the groups of the predicted rows, followed by those of the real rows; equal groups get equal numbers.

    Groups only in one set and groups in both get consecutive numbers, so that each kind is dealt evenly.
    """
    groups, inverse = np.unique(np.concatenate([predicted, real]), return_inverse=True)
    numbers = np.empty(len(groups), np.int64)
    kind = np.isin(groups, predicted) + 2 * np.isin(groups, real)
    numbers[np.argsort(kind, kind="stable")] = np.arange(len(groups))
    return np.asarray(numbers[inverse])


def _split_into_parts(embeds: np.ndarray, numbers: np.ndarray) -> list[EmbeddingSet]:
    """Deal rows `[N, D]` into 16 parts by the numbers `[N]` of their groups."""
    masks = (numbers % _PARTS == part for part in range(_PARTS))
    return [EmbeddingSet(embeds[mask], numbers[mask]) for mask in masks]


def _with_interval(distance: Callable[[np.ndarray], float]) -> Interval:
    """Compute a distance, given as a function of the parts to use (`[16]` bool), with its interval."""
    value = distance(np.ones(_PARTS, bool))
    differences = [distance(half) - distance(~half) for half in _HALVES]
    margin = NORMAL_QUANTILE * float(np.sqrt(np.mean(np.square(differences)))) / 2
    return Interval(value, value - margin, value + margin)


def _pairwise_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the distances between rows `[N, D]` and `[M, D]`: `[N, M]`."""
    squares = np.square(a).sum(-1)[:, None] + np.square(b).sum(-1) - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


def _median_distance(real: EmbeddingSet) -> float:
    """Return the median distance between different embeddings of different groups; 1 if there are none."""
    distances = _pairwise_distances(real.embeds, real.embeds)[real.groups[:, None] < real.groups]
    distances = distances[distances > _COPY_DISTANCE]
    return float(np.median(distances)) if len(distances) else 1.0


def _pair_sums(
    first: Sequence[EmbeddingSet], second: Sequence[EmbeddingSet], kernels: Mapping[str, _Kernel]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Sum each kernel over pairs of rows of different groups, and count the pairs: `[16, 16]`, part by part."""
    sums = {name: np.zeros((_PARTS, _PARTS)) for name in kernels}
    counts = np.zeros((_PARTS, _PARTS))
    for i in range(_PARTS):
        for j in range(_PARTS):
            distances = _pairwise_distances(first[i].embeds, second[j].embeds)
            if i == j:  # rows of one group are always in the same part
                distances = distances[first[i].groups[:, None] != second[j].groups]
            for name, kernel in kernels.items():
                sums[name][i, j] = kernel(distances).sum()
            counts[i, j] = distances.size
    return sums, counts


@dataclass(frozen=True)
class _PairDistance:
    """A distance that combines means of a kernel over pairs of rows."""

    terms: Sequence[tuple[np.ndarray, np.ndarray]]
    """Kernel sums and pair counts `[16, 16]`: predicted with predicted, real with real, predicted with real."""

    def __call__(self, chosen: np.ndarray) -> float:
        """Return the distance over the chosen parts (`[16]` bool)."""
        both = np.ix_(chosen, chosen)
        predicted, real, across = (sums[both].sum() / counts[both].sum() for sums, counts in self.terms)
        return float(predicted + real - 2 * across)


class _FrechetDistance:
    """The squared Frechet distance, from the moments of the parts."""

    def __init__(self, predicted: Sequence[EmbeddingSet], real: Sequence[EmbeddingSet]) -> None:
        # centred on the real mean, so that the sums of products lose no digits
        centre = np.mean([part.embeds.mean(axis=0) for part in real], axis=0)
        self._predicted = _Moments([part.embeds - centre for part in predicted])
        self._real = _Moments([part.embeds - centre for part in real])

    def __call__(self, chosen: np.ndarray) -> float:
        """Return the distance over the chosen parts (`[16]` bool)."""
        mean_a, covariance_a = self._predicted.mean_and_covariance(chosen)
        mean_b, covariance_b = self._real.mean_and_covariance(chosen)
        values, vectors = np.linalg.eigh(covariance_a)
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance_b @ root), 0)).sum()
        difference = np.square(mean_a - mean_b).sum()
        return float(difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * mixed)


class _Moments:
    """Row counts `[16]`, sums `[16, D]` and sums of outer products `[16, D, D]` of parts."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._counts = np.array([len(part) for part in parts])
        self._totals = np.stack([part.sum(axis=0) for part in parts])
        self._products = np.stack([part.T @ part for part in parts])

    def mean_and_covariance(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean `[D]` and covariance `[D, D]` of the rows in the chosen parts."""
        count = self._counts[chosen].sum()
        mean = self._totals[chosen].sum(axis=0) / count
        return mean, (self._products[chosen].sum(axis=0) - count * np.outer(mean, mean)) / (count - 1)
