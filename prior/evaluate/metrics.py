"""Metrics of predicted embeddings that are values of rows, and their means with intervals, in float64.

N captions, K draws for each, embeddings of D values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RECALL_AT = (1, 5, 10)
SHARES = tuple(f"recall_at_{count}" for count in RECALL_AT)
"""Metrics that are 0 or 1 for each row."""
NORMAL_QUANTILE = 1.9600
"""97.5% of the normal distribution."""
_AGRESTI_COULL, _BONETT_PRICE = (0, 0, 1, 1), (-1, 1)
"""Groups that are added for the interval of a share, and of a difference of shares of the same rows."""
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

    Rivals are the images of a gallery `[G, D]` but one: of a row whose image is there, at `place` of `[B]`, that;
    of one whose image is not, with a place of -1, the last. So every row has G - 1. Copies of the true image do not
    count.
    """
    own = np.einsum("bd,bd->b", predicted, truth)
    nearer = predicted @ gallery.T > own[:, None] + _SAME
    nearer[np.arange(len(predicted)), place] = False
    return np.asarray(nearer.sum(axis=1))


def mean_intervals(
    values: Mapping[str, np.ndarray], groups: np.ndarray, samples: int, seed: int, *, of_differences: bool = False
) -> dict[str, Estimate]:
    """Means of columns `[N]` with 95% intervals, by name.

    Rows of a group are not independent: whole groups are resampled (the cluster bootstrap; Field and Welsh 2007, J. R.
    Stat. Soc. B 69), all columns together, and the interval is that of percentiles (Efron 1979, Ann. Statist. 7). Of
    `SHARES`, where few rows are 0 or few are 1, that is too narrow: theirs is the normal one after groups of the mean
    size have been added (Agresti and Coull 1998, Am. Stat. 52; of differences Bonett and Price 2012, J. Educ. Behav.
    Stat. 37).

    Args:
        groups: `[N]`: equal ones are of one image.
        of_differences: columns hold the differences of two evaluations, row by row.
    """
    columns = np.stack(list(values.values()))  # (M, N)
    number = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(number).astype(np.float64)  # (G,)
    sums = np.stack([np.bincount(number, column) for column in columns])  # (M, G)
    random = np.random.default_rng(seed)
    means = np.empty((samples, len(columns)))
    for sample in range(samples):
        times = np.bincount(random.integers(0, len(sizes), len(sizes)), minlength=len(sizes)).astype(np.float64)
        means[sample] = sums @ times / (sizes @ times)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    added = _BONETT_PRICE if of_differences else _AGRESTI_COULL
    found = {}
    for i, name in enumerate(values):
        ends = _share_interval(sums[i], sizes, added) if name in SHARES else (float(low[i]), float(high[i]))
        found[name] = Estimate(float(columns[i].mean()), *ends)
    return found


def _share_interval(sums: np.ndarray, sizes: np.ndarray, added: Sequence[float]) -> tuple[float, float]:
    """Of the sums and sizes of groups `[G]`."""
    size = float(sizes.mean())
    sums, sizes = np.append(sums, np.multiply(added, size)), np.append(sizes, np.full(len(added), size))
    centre = float(sums.sum() / sizes.sum())
    half = NORMAL_QUANTILE * float(np.sqrt(np.square(sums - centre * sizes).sum()) / sizes.sum())
    return max(float(min(added)), centre - half), min(float(max(added)), centre + half)
