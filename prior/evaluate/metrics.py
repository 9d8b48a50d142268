"""Metrics of predicted embeddings, one value per row, and their means with 95% intervals, in float64.

Shapes use B rows, K draws per row, D values per embedding and G gallery images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RECALL_AT = (1, 5, 10)
"""Numbers of nearest images for which recall is computed."""
SHARES = tuple(f"recall_at_{count}" for count in RECALL_AT)
"""Metrics that are 0 or 1 for each row."""
NORMAL_QUANTILE = 1.9600
"""97.5% quantile of the standard normal distribution, for two-sided 95% intervals."""
_AGRESTI_COULL, _BONETT_PRICE = (0, 0, 1, 1), (-1, 1)
"""Values of the groups that are added for the interval of a share, and of a paired difference of shares."""
_COPY_TOLERANCE = 1e-9
"""Difference of cosines up to which two gallery images count as copies: float64 rounding is below 1e-15."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95% interval."""

    value: float
    """Mean or distance over all rows."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


def energy_score(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return E|X - y| - E|X - X'| / 2 of draws `[B, K, D]` against the truth `[B, D]`: `[B]`; lower is better.

    The second term is the unbiased mean over pairs of different draws (Gneiting and Raftery 2007, JASA 102). A single
    draw is treated as a point prediction, whose spread is 0.
    """
    error = np.linalg.norm(draws - truth[:, None], axis=-1).mean(axis=1)
    return np.asarray(error - diversity(draws) / 2)


def diversity(draws: np.ndarray) -> np.ndarray:
    """Return the mean distance between different draws `[B, K, D]` of a row: `[B]`; 0 for a single draw."""
    count = draws.shape[1]
    total = np.zeros(len(draws))
    for first in range(count - 1):
        total += np.linalg.norm(draws[:, first + 1 :] - draws[:, first, None], axis=-1).sum(axis=1)
    return np.asarray(total / max(1, count * (count - 1) // 2))


def cosine(draws: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the mean cosine of draws `[B, K, D]` with `[B, D]`, all of norm 1: `[B]`."""
    return np.asarray(np.einsum("bkd,bd->bk", draws, others).mean(axis=1))


def rank(predicted: np.ndarray, truth: np.ndarray, gallery: np.ndarray, gallery_index: np.ndarray) -> np.ndarray:
    """Count the rivals of the true image that are nearer to the prediction by cosine: `[B, D]`, `[B, D]` -> `[B]`.

    Every row has G - 1 rivals: the gallery `[G, D]` without one image. The image left out is the true image, at
    `gallery_index` `[B]`; where the gallery lacks the true image, the index is -1 and the last image is left out.
    Copies of the true image do not count.
    """
    true_cosine = np.einsum("bd,bd->b", predicted, truth)
    nearer = predicted @ gallery.T > true_cosine[:, None] + _COPY_TOLERANCE  # (B, G)
    nearer[np.arange(len(predicted)), gallery_index] = False
    return np.asarray(nearer.sum(axis=1))


def mean_intervals(
    values: Mapping[str, np.ndarray], groups: np.ndarray, resamples: int, seed: int, *, are_differences: bool = False
) -> dict[str, Interval]:
    """Return the means of named columns `[N]` with 95% intervals.

    Rows of one image are not independent. The bootstrap therefore resamples whole groups (cluster bootstrap; Field and
    Welsh 2007, J. R. Stat. Soc. B 69), all columns together, and takes percentiles (Efron 1979, Ann. Statist. 7).
    Percentile intervals are too narrow for `SHARES` near 0 or 1. These get a normal interval after a few groups of mean
    size are added (Agresti and Coull 1998, Am. Stat. 52; for differences Bonett and Price 2012, J. Educ. Behav.
    Stat. 37).

    Args:
        groups: image of each row `[N]`; equal values are the same image.
        resamples: number of bootstrap resamples.
        are_differences: the columns hold row-by-row differences of two evaluations.
    """
    columns = np.stack(list(values.values()))  # (M, N)
    group_numbers = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(group_numbers).astype(np.float64)  # (number of groups,)
    sums = np.stack([np.bincount(group_numbers, column) for column in columns])  # (M, number of groups)
    random = np.random.default_rng(seed)
    means = np.empty((resamples, len(columns)))
    for resample in range(resamples):
        times = np.bincount(random.integers(0, len(sizes), len(sizes)), minlength=len(sizes)).astype(np.float64)
        means[resample] = sums @ times / (sizes @ times)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    added = _BONETT_PRICE if are_differences else _AGRESTI_COULL
    intervals = {}
    for i, name in enumerate(values):
        ends = _share_interval(sums[i], sizes, added) if name in SHARES else (float(low[i]), float(high[i]))
        intervals[name] = Interval(float(columns[i].mean()), *ends)
    return intervals


def _share_interval(sums: np.ndarray, sizes: np.ndarray, added: Sequence[float]) -> tuple[float, float]:
    """Return the normal interval of a share, from the sums and sizes of its groups, after `added` groups join."""
    size = float(sizes.mean())
    sums, sizes = np.append(sums, np.multiply(added, size)), np.append(sizes, np.full(len(added), size))
    centre = float(sums.sum() / sizes.sum())
    half = NORMAL_QUANTILE * float(np.sqrt(np.square(sums - centre * sizes).sum()) / sizes.sum())
    return max(float(min(added)), centre - half), min(float(max(added)), centre + half)
