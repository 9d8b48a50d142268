"""Metrics of predicted embeddings, as functions of arrays, in float64.

Two kinds: values of rows, which are averaged, and distances between sets of embeddings, which are means of nothing and
have intervals of their own. N captions, K draws for each, embeddings of D values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RECALL_AT = (1, 5, 10)
GROUPS = 20
"""Of the jackknife: more give a steadier interval, and each costs one Frechet distance."""
_T_QUANTILE = 2.0930
"""97.5% of Student's t with 19 degrees of freedom: the spread of 20 groups is itself an estimate."""
_MEDIAN_ROWS = 1000
_SAME = 1e-9
"""Cosines that differ by less are those of copies."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


def energy_score(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """E|X - y| - E|X - X'| / 2 of draws `[B, K, D]` against the truth `[B, D]` -> `[B]`; lower is better.

    The second term is the unbiased mean over pairs of different draws (Gneiting and Raftery 2007, JASA 102). One draw
    is taken for a point prediction, whose spread is 0.
    """
    error = np.linalg.norm(draws - truth[:, None], axis=-1).mean(axis=1)
    return np.asarray(error - diversity(draws) / 2)


def diversity(draws: np.ndarray) -> np.ndarray:
    """Mean distance between different draws `[B, K, D]` for one caption -> `[B]`; 0 of one draw."""
    count = draws.shape[1]
    total = np.zeros(len(draws))
    for first in range(count - 1):
        total += np.linalg.norm(draws[:, first + 1 :] - draws[:, first, None], axis=-1).sum(axis=1)
    return np.asarray(total / max(1, count * (count - 1) // 2))


def cosine(draws: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Mean cosine of draws `[B, K, D]` with `[B, D]`, all of norm 1 -> `[B]`."""
    return np.asarray(np.einsum("bkd,bd->bk", draws, others).mean(axis=1))


def rank(predicted: np.ndarray, truth: np.ndarray, gallery: np.ndarray, place: np.ndarray) -> np.ndarray:
    """How many rivals of the true image are nearer to the prediction, by cosine: `[B, D]`, `[B, D]` -> `[B]`.

    Rivals are the images of a gallery `[G, D]` but one: of a row that is in the gallery, at `place` of `[B]`, itself;
    of one that is not, whose place is -1, the last. So every row has G - 1. Copies of the true image do not count.
    """
    own = np.einsum("bd,bd->b", predicted, truth)
    nearer = predicted @ gallery.T > own[:, None] + _SAME
    nearer[np.arange(len(predicted)), place] = False
    return np.asarray(nearer.sum(axis=1))


def mean_intervals(values: Mapping[str, np.ndarray], samples: int, seed: int) -> dict[str, Estimate]:
    """Means of columns `[N]` with percentile bootstrap intervals (Efron 1979, Ann. Statist. 7), by name.

    All columns are resampled together: a resample is how often it has each row, `[N]`.
    """
    columns = np.stack(list(values.values()))  # (M, N)
    count = columns.shape[1]
    random = np.random.default_rng(seed)
    means = np.empty((samples, len(columns)))
    for sample in range(samples):
        times = np.bincount(random.integers(0, count, count), minlength=count)
        means[sample] = columns @ times.astype(np.float64) / count
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    middle = columns.mean(axis=1)
    return {name: Estimate(float(middle[i]), float(low[i]), float(high[i])) for i, name in enumerate(values)}


def set_distances(found: np.ndarray, real: np.ndarray) -> dict[str, Estimate]:
    """Distances between the distributions that two sets `[N, D]` are drawn from; row i of both is of one caption.

    - `frechet_distance`: squared, between the Gaussians of the sets' moments (Dowson and Landau 1982, J. Multivariate
      Anal. 12), as FID has it. It falls with N: its interval is of what it is at this N.
    - `energy_distance`: 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo 2013, J. Stat. Plan. Inference 143).
    - `mmd`: squared, of exp(-d^2 / 2 s^2), s being the median distance of real embeddings (Gretton et al. 2012, JMLR
      13).

    The last two are unbiased (and may be below 0), over pairs of different rows. Intervals are of a jackknife that
    leaves out one of 20 groups of rows at a time (Kott 2001, J. Off. Stat. 17): a bootstrap would draw rows twice,
    whose distance is 0.
    """
    parts = [slice(start, None, GROUPS) for start in range(GROUPS)]
    found_parts, real_parts = [found[part] for part in parts], [real[part] for part in parts]
    scale = float(np.median(_upper(_distances(real[:_MEDIAN_ROWS], real[:_MEDIAN_ROWS]))))
    sizes = np.array([len(part) for part in found_parts], np.float64)
    pairs = np.outer(sizes, sizes) - np.diag(sizes)
    kernels: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "energy_distance": np.negative,
        "mmd": lambda distance: np.exp(-(distance**2) / (2 * scale**2)),
    }
    sums = {name: np.zeros((GROUPS, GROUPS)) for name in kernels}
    for i in range(GROUPS):
        for j in range(i + 1):
            distances = (
                _distances(found_parts[i], found_parts[j]), _distances(real_parts[i], real_parts[j]),
                _distances(found_parts[i], real_parts[j]), _distances(real_parts[i], found_parts[j]),
            )  # fmt: skip
            for name, kernel in kernels.items():
                of_found, of_real, across, back = (kernel(distance) for distance in distances)
                similarity = of_found + of_real - across - back
                if i == j:
                    np.fill_diagonal(similarity, 0)
                sums[name][i, j] = sums[name][j, i] = similarity.sum()
    estimates = {name: _of_pairs(of_kernel, pairs) for name, of_kernel in sums.items()}
    return {"frechet_distance": _frechet_estimate(found_parts, real_parts), **estimates}


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`[N, D]`, `[M, D]` -> `[N, M]`."""
    squares = np.square(a).sum(-1)[:, None] + np.square(b).sum(-1) - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


def _upper(square: np.ndarray) -> np.ndarray:
    return np.asarray(square[np.triu_indices(len(square), 1)])


def _of_pairs(sums: np.ndarray, pairs: np.ndarray) -> Estimate:
    """A mean over pairs of rows, from sums and numbers of the pairs of each two groups."""
    without = [
        (sums.sum() - 2 * sums[group].sum() + sums[group, group])
        / (pairs.sum() - 2 * pairs[group].sum() + pairs[group, group])
        for group in range(GROUPS)
    ]
    return _jackknife(float(sums.sum() / pairs.sum()), without)


def _jackknife(value: float, without: Sequence[float]) -> Estimate:
    """The interval from the values that each group's absence gives."""
    spread = np.square(np.asarray(without) - np.mean(without)).sum() * (GROUPS - 1) / GROUPS
    half = _T_QUANTILE * float(np.sqrt(spread))
    return Estimate(value, value - half, value + half)


@dataclass(frozen=True)
class _Moments:
    """Of a set of embeddings: its size, sum `[D]` and sum of outer products `[D, D]`."""

    count: int
    total: np.ndarray
    products: np.ndarray

    @staticmethod
    def of(values: np.ndarray) -> _Moments:
        return _Moments(len(values), values.sum(axis=0), values.T @ values)

    def plus(self, other: _Moments, sign: int = 1) -> _Moments:
        return _Moments(
            self.count + sign * other.count,
            self.total + sign * other.total,
            self.products + sign * other.products,
        )

    def mean_and_covariance(self) -> tuple[np.ndarray, np.ndarray]:
        mean = self.total / self.count
        return mean, (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)


def _frechet_estimate(found_parts: Sequence[np.ndarray], real_parts: Sequence[np.ndarray]) -> Estimate:
    # about the real mean, so that the moments' sums lose no digits
    centre = np.mean([part.mean(axis=0) for part in real_parts], axis=0)
    found = [_Moments.of(part - centre) for part in found_parts]
    real = [_Moments.of(part - centre) for part in real_parts]
    all_found, all_real = found[0], real[0]
    for group in range(1, GROUPS):
        all_found, all_real = all_found.plus(found[group]), all_real.plus(real[group])
    without = [_frechet(all_found.plus(a, -1), all_real.plus(b, -1)) for a, b in zip(found, real, strict=True)]
    return _jackknife(_frechet(all_found, all_real), without)


def _frechet(a: _Moments, b: _Moments) -> float:
    (mean_a, covariance_a), (mean_b, covariance_b) = a.mean_and_covariance(), b.mean_and_covariance()
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance_b @ root), 0)).sum()
    difference = np.square(mean_a - mean_b).sum()
    return float(difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * mixed)
