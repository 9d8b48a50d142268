"""Comparison of evaluations: how each metric differs from the first evaluation, with 95% confidence intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...pipeline.errors import InputError
from .folder import read_metrics, read_rows, require_whole
from .metrics import Interval, mean_intervals

_RESAMPLES, _SEED = 1000, 0
"""Number of bootstrap resamples and seed for drawing them, used for differences that are computed row by row."""
_MUST_AGREE = {
    "rows": "evaluate.max_rows, or --limit,",
    "gallery": "evaluate.gallery_size",
    "distance_rows": "evaluate.distance_rows",
}
"""Counts in `metrics.json` that must be equal in all compared evaluations, mapped to the settings that limit them."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of one metric on one split: its value in each evaluation, and differences from the first one."""

    split: str
    metric: str
    values: list[Interval]
    """Metric value in each evaluation, in the order in which the evaluations were given."""
    differences: list[Interval]
    """Difference between each later evaluation and the first (later minus first)."""
    paired: list[bool]
    """For each difference, True if it was computed row by row, which requires that both evaluations used the same rows.

    In a row-by-row difference, the difficulty of each row cancels out, so the interval is narrower.
    """


def compare(evaluations: Sequence[str], predictor: str | None = None) -> list[Comparison]:
    """Compare the metrics of one predictor in two or more evaluations.

    Args:
        evaluations: folders written by `evaluate`.
        predictor: name of the predictor; None for the first predictor of each evaluation, which is the evaluated prior
            or the file of predictions that was evaluated instead.

    Raises:
        InputError: fewer than two evaluations are given, an evaluation is unfinished or its files have changed, the
            predictor is missing or was reported as broken, or the evaluations are not comparable. Comparable
            evaluations have at least one split in common. They also have the same embedding size, CLIP model, number of
            rows, number of predictions per caption, and gallery (images searched for recall).
    """
    if len(evaluations) < 2:
        raise InputError("compare needs at least two evaluations")
    for evaluation in evaluations:
        require_whole(evaluation)
    metrics = [read_metrics(evaluation) for evaluation in evaluations]
    shared = [split for split in metrics[0]["splits"] if all(split in one["splits"] for one in metrics)]
    if not shared:
        raise InputError(f"{' and '.join(evaluations)} have no split in common; set evaluate.splits alike")
    _require_one_space(evaluations, metrics)
    comparisons: list[Comparison] = []
    for split in shared:
        runs = [
            _Run.read(evaluation, split, one["splits"][split], predictor)
            for evaluation, one in zip(evaluations, metrics, strict=True)
        ]
        _require_comparable(split, evaluations, runs)
        comparisons += _compare_means(split, runs)
        comparisons += _compare_distances(split, runs)
    return comparisons


def _require_one_space(evaluations: Sequence[str], metrics: Sequence[dict[str, Any]]) -> None:
    """Raise InputError if the evaluations use embeddings of different sizes or from different CLIP models.

    If the CLIP model of an evaluation is unknown, only its embedding size is checked.
    """
    clips = [one["embeddings"]["clip"] for one in metrics]
    if len({clip for clip in clips if clip is not None}) > 1:
        names = [(clip or "unknown")[:12] for clip in clips]
        raise InputError(
            f"their embeddings are of other CLIPs ({_listed(evaluations, names)}, by the hash of the "
            "weights), so that their numbers are of other spaces; evaluate on embeddings of one CLIP"
        )
    spaces = [one["embeddings"].get("spaces") for one in metrics]
    if any(each != spaces[0] for each in spaces):
        raise InputError(
            f"their embeddings are of other sources or targets ({_listed(evaluations, spaces)}), so that their "
            "numbers are of other spaces; evaluate on embeddings of one pair of spaces"
        )
    dims = [one["embeddings"]["embed_dim"] for one in metrics]
    if len(set(dims)) > 1:
        raise InputError(
            f"their embeddings are of other sizes ({_listed(evaluations, dims)}), so that their numbers are of other "
            "spaces; evaluate on embeddings of one CLIP"
        )


def _require_comparable(split: str, evaluations: Sequence[str], runs: Sequence[_Run]) -> None:
    """Raise InputError if the evaluations differ in a way that makes their metrics on this split incomparable.

    The number of predictions per caption and the counts named in `_MUST_AGREE`, such as the number of rows, must be
    equal in all evaluations. Evaluations that use the same rows as the first one must also use its gallery (the images
    searched for recall).
    """
    for name, setting in _MUST_AGREE.items():
        sizes = [run.metrics[name] for run in runs]
        if len(set(sizes)) > 1:
            raise InputError(
                f"{name} of the {split} split differ ({_listed(evaluations, sizes)}), and what depends on them "
                f"cannot be compared; evaluate again with {setting} at most {min(sizes)}"
            )
    draws = [run.result["draws"] for run in runs]
    if len(set(draws)) > 1:
        raise InputError(
            f"draws a caption differ ({_listed(evaluations, draws)}); set evaluate.draws alike, or give as many "
            "predictions for each row"
        )
    galleries = {run.metrics["gallery_fingerprint"] for run in runs if np.array_equal(run.row_ids, runs[0].row_ids)}
    if len(galleries) > 1:  # covers only runs on the same rows, because other rows always have another gallery
        raise InputError(
            f"galleries of the {split} split are of the same size and of other images, and recall depends on them; "
            "evaluate again with evaluate.seed alike"
        )


def _listed(evaluations: Sequence[str], values: Sequence[object]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in zip(evaluations, values, strict=True))


@dataclass(frozen=True)
class _Run:
    """Results of one predictor (a prior, a baseline or a file of predictions) on one split of an evaluation."""

    metrics: dict[str, Any]
    """Section of `metrics.json` for the split."""
    result: dict[str, Any]
    """Entry of `metrics["predictors"]` for the predictor."""
    rows: dict[str, np.ndarray]
    """Values of each metric for the N evaluated rows, `[N]`, keyed by metric name and ordered by row id."""
    row_ids: np.ndarray
    """Row ids (hashes of the rows' content), `[N]`, ascending."""
    groups: np.ndarray
    """Group id of each row, `[N]`; rows with the same group id share an image."""

    @staticmethod
    def read(evaluation: str, split: str, metrics: dict[str, Any], predictor: str | None) -> _Run:
        """Read the results of one predictor on one split of an evaluation.

        Args:
            evaluation: evaluation folder.
            split: name of the split.
            metrics: section of `metrics.json` for the split.
            predictor: name of the predictor; None for the first predictor in `metrics`.

        Raises:
            InputError: the evaluation does not contain the predictor, or reports its predictions as broken (not finite,
                or the same for every caption).
        """
        results = {result["name"]: result for result in metrics["predictors"]}
        name = predictor or next(iter(results))
        if name not in results:
            raise InputError(f"{evaluation} has no predictor {name!r}; it has {', '.join(results)}")
        if "broken" in results[name]:
            raise InputError(f"{evaluation}: predictions of {name!r} are broken: {results[name]['broken']}")
        table = read_rows(evaluation, split).sort_by("row_id")
        ids, groups = (table.column(column).to_numpy() for column in ("row_id", "group_id"))
        rows = {metric: table.column(f"{name}/{metric}").to_numpy() for metric in results[name]["metrics"]}
        return _Run(metrics, results[name], rows, ids, groups)


def _compare_means(split: str, runs: list[_Run]) -> list[Comparison]:
    """Compare the metrics that are means over rows, and return one comparison per metric.

    If a later evaluation used the same rows as the first, the values of the two are subtracted row by row. Otherwise,
    the two means are treated as independent.
    """
    first = runs[0]
    differences: list[dict[str, Interval]] = []
    paired = [np.array_equal(run.row_ids, first.row_ids) for run in runs[1:]]
    for run, same_rows in zip(runs[1:], paired, strict=True):
        if same_rows:
            columns = {metric: run.rows[metric] - values for metric, values in first.rows.items()}
            differences.append(mean_intervals(columns, first.groups, _RESAMPLES, _SEED, are_differences=True))
        else:
            differences.append({m: _independent_difference(_mean(run, m), _mean(first, m)) for m in first.rows})
    return [
        Comparison(split, metric, [_mean(run, metric) for run in runs], [d[metric] for d in differences], paired)
        for metric in first.rows
    ]


def _compare_distances(split: str, runs: list[_Run]) -> list[Comparison]:
    """Compare the distances between the distributions of predicted and real images.

    Only distances that all evaluations contain are compared. An evaluation with too few distinct images contains no
    distances. The evaluations are treated as independent, so the intervals are wider than necessary if evaluations
    share rows.
    """
    comparisons = []
    for name in runs[0].result["distances"]:
        if any(name not in run.result["distances"] for run in runs):
            continue
        values = [Interval(**run.result["distances"][name]) for run in runs]
        differences = [_independent_difference(value, values[0]) for value in values[1:]]
        comparisons.append(Comparison(split, name, values, differences, [False] * len(differences)))
    return comparisons


def _mean(run: _Run, metric: str) -> Interval:
    return Interval(**run.result["metrics"][metric])


def _independent_difference(a: Interval, b: Interval) -> Interval:
    """Return the difference `a - b` of two independent estimates, with its 95% confidence interval.

    A margin is the distance from an estimate to one end of its interval. The two margins may differ, so they are
    computed separately. The lower margin of the difference is the square root of the sum of squares of the lower margin
    of `a` and the upper margin of `b`. The upper margin is computed in the same way from the upper margin of `a` and
    the lower margin of `b`.
    """
    value = a.value - b.value
    low = np.hypot(a.value - a.low, b.high - b.value)
    high = np.hypot(a.high - a.value, b.value - b.low)
    return Interval(value, float(value - low), float(value + high))


def to_json(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Convert comparisons to dictionaries that can be written as JSON."""
    return [dataclasses.asdict(comparison) for comparison in comparisons]
