"""Per-row metrics of predicted embeddings, and their means with 95% confidence intervals, in float64.

In array shapes, B is the number of rows, K the number of draws (predicted embeddings) per row, D the embedding size,
and G the number of gallery images (images searched for recall).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RECALL_AT = (1, 5, 10)
"""Values of N for recall@N: the fraction of rows whose true image is among the N images nearest to the prediction."""
SHARES = tuple(f"recall_at_{count}" for count in RECALL_AT)
"""Names of the metrics whose value for each row is 0 or 1, so that their means are proportions."""
NORMAL_QUANTILE = 1.9600
"""97.5% quantile of the standard normal distribution, used for two-sided 95% confidence intervals."""
_AGRESTI_COULL, _BONETT_PRICE = (0, 0, 1, 1), (-1, 1)
"""Mean value of each artificial group of rows that `_share_interval` adds to the data.

`_AGRESTI_COULL` is for a proportion, and `_BONETT_PRICE` for a paired difference between two proportions.
"""
_COPY_TOLERANCE = 1e-9
"""Difference in cosine similarity above which a gallery image counts as nearer to a prediction than the true image.

Smaller differences are ignored, because the cosines of copies differ by rounding errors (below 1e-15 in float64).
"""


@dataclass(frozen=True)
class Interval:
    """Estimate of a quantity, with its 95% confidence interval."""

    value: float
    """Estimate over all rows: a mean, a distance, or a difference."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


def energy_score(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the energy score E|X - y| - E|X - X'| / 2 of each of B rows: `[B]`. Lower is better.

    E|X - X'| is estimated as the mean over pairs of different draws. This estimate is unbiased (Gneiting and Raftery
    2007, JASA 102). For a single draw, the estimate is set to 0.

    Args:
        draws: K predicted embeddings per row, from which X and X' are taken, `[B, K, D]`. D is the embedding size.
        truth: true embeddings y, `[B, D]`.
    """
    error = np.linalg.norm(draws - truth[:, None], axis=-1).mean(axis=1)
    return np.asarray(error - diversity(draws) / 2)


def diversity(draws: np.ndarray) -> np.ndarray:
    """Return the mean distance between two different predictions for the same row: `[B]`.

    If there is only one prediction per row, return zeros.

    Args:
        draws: K predicted embeddings per row, `[B, K, D]`.
    """
    count = draws.shape[1]
    total = np.zeros(len(draws))
    for first in range(count - 1):
        total += np.linalg.norm(draws[:, first + 1 :] - draws[:, first, None], axis=-1).sum(axis=1)
    return np.asarray(total / max(1, count * (count - 1) // 2))


def cosine(draws: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the mean cosine similarity between each row's predictions and its embedding in `others`: `[B]`.

    Args:
        draws: K predicted embeddings of norm 1 per row, `[B, K, D]`.
        others: one embedding of norm 1 per row, such as that of its true image, `[B, D]`.
    """
    return np.asarray(np.einsum("bkd,bd->bk", draws, others).mean(axis=1))


def rank(predicted: np.ndarray, truth: np.ndarray, gallery: np.ndarray, gallery_index: np.ndarray) -> np.ndarray:
    """Return, for each of B predictions, the number of gallery images that are nearer to it than its true image: `[B]`.

    The gallery is the set of G images that are searched for the true image to compute recall. An image is nearer if its
    cosine similarity to the prediction is higher by more than a rounding error. Copies of the true image are therefore
    not counted. Each true image is compared with G - 1 gallery images. If the gallery contains the true image, these
    are all other images; otherwise, the last gallery image is left out.

    Args:
        predicted: predictions of norm 1, `[B, D]`, where D is the embedding size.
        truth: embeddings of the true images, of norm 1, `[B, D]`.
        gallery: embeddings of the gallery images, of norm 1, `[G, D]`.
        gallery_index: index of the true image in the gallery, `[B]`; -1 if the gallery does not contain it.
    """
    true_cosine = np.einsum("bd,bd->b", predicted, truth)
    nearer = predicted @ gallery.T > true_cosine[:, None] + _COPY_TOLERANCE  # (B, G)
    nearer[np.arange(len(predicted)), gallery_index] = False
    return np.asarray(nearer.sum(axis=1))


def mean_intervals(
    values: Mapping[str, np.ndarray], groups: np.ndarray, resamples: int, seed: int, *, are_differences: bool = False
) -> dict[str, Interval]:
    """Return the mean of each metric over all rows, with its 95% confidence interval, keyed by metric name.

    Rows that share an image are not independent, so the bootstrap resamples whole groups (cluster bootstrap; Field and
    Welsh 2007, J. R. Stat. Soc. B 69). All metrics use the same resamples. The ends of an interval are percentiles of
    the resampled means (Efron 1979, Ann. Statist. 7).

    Percentile intervals of the metrics in `SHARES` (proportions) are too narrow if the mean is near 0 or 1. For these
    metrics, a few artificial groups of average size are added, and a normal-approximation interval is computed (Agresti
    and Coull 1998, Am. Stat. 52; for differences, Bonett and Price 2012, J. Educ. Behav. Stat. 37).

    Args:
        values: values of each metric, `[N]` with one value per row, keyed by metric name.
        groups: group id of each row, `[N]`; rows with the same group id share an image.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.
        are_differences: True if the values are row-by-row differences between two evaluations.
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
    """Return the 95% confidence interval of a proportion, or of a difference between two proportions.

    Artificial groups of rows are added first, which improves the interval for proportions near 0 or 1. The interval
    then uses the normal approximation.

    Args:
        sums: sum of the values in each group of rows that share an image.
        sizes: number of rows in each group.
        added: mean value of each artificial group. The size of an artificial group is the mean group size.

    Returns:
        The lower and upper end of the interval, limited to the range between the lowest and highest value in `added`.
    """
    size = float(sizes.mean())
    sums, sizes = np.append(sums, np.multiply(added, size)), np.append(sizes, np.full(len(added), size))
    centre = float(sums.sum() / sizes.sum())
    half = NORMAL_QUANTILE * float(np.sqrt(np.square(sums - centre * sizes).sum()) / sizes.sum())
    return max(float(min(added)), centre - half), min(float(max(added)), centre + half)
