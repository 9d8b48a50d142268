"""Distances between the distributions of two embedding sets, computed in float64, with 95% confidence intervals.

A distance is not a mean over rows, so its interval comes from balanced half-samples (McCarthy 1969, Rev. Int. Stat.
Inst. 37). The rows are divided into 16 parts, with all rows of an image in the same part. The parts are then split into
two halves in 15 balanced ways. Each distance is computed on both halves, and the differences between the halves
determine the width of the interval. A bootstrap is unsuitable because it repeats rows: the zero distances between a row
and its copies would bias the result. If the two distributions are equal, the intervals are wider than necessary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .metrics import NORMAL_QUANTILE, Interval

_PARTS = 16
"""Number of parts that the rows are divided into. Sylvester's Hadamard matrix requires a power of 2."""
_HALVES = np.array([[(i & j).bit_count() % 2 == 0 for j in range(_PARTS)] for i in range(1, _PARTS)])
"""Masks that select 8 of the 16 parts (disjoint subsets of the rows) for each half-sample, `[15, 16]` bool.

Each mask is a row of Sylvester's Hadamard matrix; the constant first row of this matrix is left out. The rows of the
matrix are orthogonal, so any two half-samples have 4 parts in common.
"""
LEAST_GROUPS = 3 * _PARTS
"""Minimum number of distinct images in each of the two sets (3 per part). With fewer, no distances are computed."""
_MEDIAN_ROWS = 1000
"""Maximum number of real embeddings used to compute the median distance, which is the scale of the MMD kernel.

The computation time is quadratic in this number.
"""
_COPY_DISTANCE = 1e-6
"""Maximum distance at which two image embeddings are treated as embeddings of copies of the same image."""

_Kernel = Callable[[np.ndarray], np.ndarray]
"""Kernel of a statistic such as MMD: a function that maps an array of pairwise distances to kernel values."""


@dataclass(frozen=True)
class EmbeddingSet:
    """Sample of embeddings from one distribution, such as the predictions or the real images of a split.

    All embeddings have norm 1.
    """

    embeds: np.ndarray
    """N embeddings of size D, `[N, D]`."""
    groups: np.ndarray
    """Group id of each embedding, `[N]`. Embeddings with equal ids share an image, even across sets."""


def set_distances(predicted: EmbeddingSet, real: EmbeddingSet) -> dict[str, Interval]:
    """Return the distances between the predicted and real distributions, with 95% confidence intervals, keyed by name.

    The dictionary is empty if either set has fewer than 48 distinct images. Below, X and X' are random predicted
    embeddings, and Y and Y' are random real embeddings.

    - `frechet_distance`: squared distance between Gaussians with the sets' means and covariances, as in FID (Dowson
      and Landau 1982, J. Multivariate Anal. 12). The estimate decreases as the number of rows N grows, so its interval
      is valid only for this N. This distance is omitted if either set has fewer than 2 D rows, where D is the embedding
      size, because the covariance of half the rows would be singular.
    - `energy_distance`: 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo 2013, J. Stat. Plan. Inference 143).
    - `mmd`: squared maximum mean discrepancy with the kernel exp(-d^2 / (2 s^2)), where d is the distance between
      two embeddings, and s is the median distance between embeddings of different real images (Gretton et al. 2012,
      JMLR 13).

    `energy_distance` and `mmd` use only pairs of rows with different images. Their estimates are therefore unbiased,
    and may be negative.
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
    """Number the groups of both sets consecutively from 0, so that a group has the same number in both sets.

    A group contains all rows that share an image. Groups that occur only in the predicted set are numbered first. They
    are followed by groups that occur only in the real set, and then by groups that occur in both. A row's part is its
    group number modulo 16, so each of these three kinds of groups is spread evenly over the parts.

    Args:
        predicted: group id of each predicted row, `[N]`.
        real: group id of each real row, `[M]`.

    Returns:
        Group numbers of the predicted rows, followed by those of the real rows, `[N + M]`.
    """
    groups, inverse = np.unique(np.concatenate([predicted, real]), return_inverse=True)
    numbers = np.empty(len(groups), np.int64)
    kind = np.isin(groups, predicted) + 2 * np.isin(groups, real)
    numbers[np.argsort(kind, kind="stable")] = np.arange(len(groups))
    return np.asarray(numbers[inverse])


def _split_into_parts(embeds: np.ndarray, numbers: np.ndarray) -> list[EmbeddingSet]:
    """Divide the rows of `embeds` into 16 parts. Rows that share an image are in the same part.

    Args:
        embeds: embeddings, `[N, D]`.
        numbers: group number of each row, `[N]`. The row's part is this number modulo 16.
    """
    masks = (numbers % _PARTS == part for part in range(_PARTS))
    return [EmbeddingSet(embeds[mask], numbers[mask]) for mask in masks]


def _with_interval(distance: Callable[[np.ndarray], float]) -> Interval:
    """Return the distance between two sets, computed from all rows, with a 95% confidence interval.

    The 16 parts of each set are split into two halves in 15 balanced ways. The width of the interval is derived from
    the differences between the distances on the two halves.

    Args:
        distance: function that returns the distance between the two sets. Its argument is a mask `[16]` bool, which
            selects the parts of each set to use.
    """
    value = distance(np.ones(_PARTS, bool))
    differences = [distance(half) - distance(~half) for half in _HALVES]
    margin = NORMAL_QUANTILE * float(np.sqrt(np.mean(np.square(differences)))) / 2
    return Interval(value, value - margin, value + margin)


def _pairwise_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Euclidean distances `[N, M]` between the rows of `a`, `[N, D]`, and the rows of `b`, `[M, D]`."""
    squares = np.square(a).sum(-1)[:, None] + np.square(b).sum(-1) - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


def _median_distance(real: EmbeddingSet) -> float:
    """Return the median distance between embeddings of different images; 1 if there are no such pairs.

    Pairs at a distance of at most `_COPY_DISTANCE` are ignored, because they are probably copies of the same image.
    """
    distances = _pairwise_distances(real.embeds, real.embeds)[real.groups[:, None] < real.groups]
    distances = distances[distances > _COPY_DISTANCE]
    return float(np.median(distances)) if len(distances) else 1.0


def _pair_sums(
    first: Sequence[EmbeddingSet], second: Sequence[EmbeddingSet], kernels: Mapping[str, _Kernel]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Sum the values of each kernel over pairs of rows, one from `first` and one from `second`.

    Pairs of rows that share an image are left out.

    Args:
        first: first set, divided into 16 parts.
        second: second set, divided into 16 parts.
        kernels: kernels by name.

    Returns:
        The sums, keyed by kernel name, and the numbers of pairs. All arrays are `[16, 16]`. Entry (i, j) covers the
        pairs with one row in part i of `first` and the other in part j of `second`.
    """
    sums = {name: np.zeros((_PARTS, _PARTS)) for name in kernels}
    counts = np.zeros((_PARTS, _PARTS))
    for i in range(_PARTS):
        for j in range(_PARTS):
            distances = _pairwise_distances(first[i].embeds, second[j].embeds)
            if i == j:  # rows of the same group are always in the same part
                distances = distances[first[i].groups[:, None] != second[j].groups]
            for name, kernel in kernels.items():
                sums[name][i, j] = kernel(distances).sum()
            counts[i, j] = distances.size
    return sums, counts


@dataclass(frozen=True)
class _PairDistance:
    """Energy distance or MMD between two sets, computed from the mean kernel values over pairs of rows."""

    terms: Sequence[tuple[np.ndarray, np.ndarray]]
    """Kernel sums and pair counts, `[16, 16]` each, for predicted-predicted, real-real and predicted-real pairs."""

    def __call__(self, chosen: np.ndarray) -> float:
        """Return the distance between the sets, using only the parts that the mask `chosen` (`[16]` bool) selects."""
        both = np.ix_(chosen, chosen)
        predicted, real, across = (sums[both].sum() / counts[both].sum() for sums, counts in self.terms)
        return float(predicted + real - 2 * across)


class _FrechetDistance:
    """Squared Frechet distance between two sets.

    The moments of each part are stored, so the distance can be computed quickly for any selection of parts.
    """

    def __init__(self, predicted: Sequence[EmbeddingSet], real: Sequence[EmbeddingSet]) -> None:
        # subtract the mean of the real embeddings, so that the sums of products do not lose precision
        centre = np.mean([part.embeds.mean(axis=0) for part in real], axis=0)
        self._predicted = _Moments([part.embeds - centre for part in predicted])
        self._real = _Moments([part.embeds - centre for part in real])

    def __call__(self, chosen: np.ndarray) -> float:
        """Return the distance between the sets, using only the parts that the mask `chosen` (`[16]` bool) selects."""
        mean_a, covariance_a = self._predicted.mean_and_covariance(chosen)
        mean_b, covariance_b = self._real.mean_and_covariance(chosen)
        values, vectors = np.linalg.eigh(covariance_a)
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance_b @ root), 0)).sum()
        difference = np.square(mean_a - mean_b).sum()
        return float(difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * mixed)


class _Moments:
    """Moments of each of the 16 parts of a set, from which means and covariances are computed.

    They are the row counts `[16]`, the sums of the rows `[16, D]` and the sums of their outer products `[16, D, D]`,
    where D is the embedding size.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._counts = np.array([len(part) for part in parts])
        self._totals = np.stack([part.sum(axis=0) for part in parts])
        self._products = np.stack([part.T @ part for part in parts])

    def mean_and_covariance(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean `[D]` and covariance `[D, D]` of the rows in the parts that the mask `chosen` selects.

        D is the embedding size.
        """
        count = self._counts[chosen].sum()
        mean = self._totals[chosen].sum(axis=0) / count
        return mean, (self._products[chosen].sum(axis=0) - count * np.outer(mean, mean)) / (count - 1)
