"""Comparison of evaluations: differences of all metrics to the first evaluation, with 95% intervals."""

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
"""Number of bootstrap resamples of paired differences, and their seed."""
_MUST_AGREE = {
    "rows": "evaluate.max_rows, or --limit,",
    "gallery": "evaluate.gallery_size",
    "distance_rows": "evaluate.distance_rows",
}
"""Sizes on which distances and recall depend, with the setting that makes them equal."""


@dataclass(frozen=True)
class Comparison:
    """One metric of several evaluations."""

    split: str
    metric: str
    values: list[Interval]
    """Value in each evaluation."""
    differences: list[Interval]
    """Difference of each later evaluation to the first."""
    paired: list[bool]
    """True for each difference over the same rows, in which the difficulty of rows cancels."""


def compare(evaluations: Sequence[str], predictor: str | None = None) -> list[Comparison]:
    """Compare the metrics of one predictor in two or more evaluations.

    Args:
        evaluations: folders that `evaluate` wrote.
        predictor: name of the predictor; None for the first of each evaluation, which is its subject.

    Raises:
        InputError: there are fewer than two evaluations, they differ in size, CLIP or gallery, or they have no split
            in common.
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
    """Raise InputError unless all evaluations are on embeddings of one CLIP."""
    clips = [one["embeddings"]["clip"] for one in metrics]
    if len({clip for clip in clips if clip is not None}) > 1:
        names = [(clip or "unknown")[:12] for clip in clips]
        raise InputError(
            f"their embeddings are of other CLIPs ({_listed(evaluations, names)}, by the hash of the "
            "weights), so that their numbers are of other spaces; evaluate on embeddings of one CLIP"
        )
    dims = [one["embeddings"]["embed_dim"] for one in metrics]
    if len(set(dims)) > 1:
        raise InputError(
            f"their embeddings are of other sizes ({_listed(evaluations, dims)}), so that their numbers are of other "
            "spaces; evaluate on embeddings of one CLIP"
        )


def _require_comparable(split: str, evaluations: Sequence[str], runs: Sequence[_Run]) -> None:
    """Raise InputError unless sizes, draws and galleries of a split agree."""
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
    if len(galleries) > 1:  # galleries of different rows always differ, and are allowed
        raise InputError(
            f"galleries of the {split} split are of the same size and of other images, and recall depends on them; "
            "evaluate again with evaluate.seed alike"
        )


def _listed(evaluations: Sequence[str], values: Sequence[object]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in zip(evaluations, values, strict=True))


@dataclass(frozen=True)
class _Run:
    """Results of one predictor on one split of an evaluation."""

    metrics: dict[str, Any]
    """The split's part of `metrics.json`."""
    result: dict[str, Any]
    """The predictor's part of `metrics`."""
    rows: dict[str, np.ndarray]
    """Values `[N]` of each metric, in the order of row ids."""
    row_ids: np.ndarray
    """Row ids `[N]`, ascending."""
    groups: np.ndarray
    """Image of each row `[N]`; equal values are the same image."""

    @staticmethod
    def read(evaluation: str, split: str, metrics: dict[str, Any], predictor: str | None) -> _Run:
        """Read the rows of a split; InputError if the predictor is missing or broken."""
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
    """Compare metrics that are means over rows, row by row where the rows are the same."""
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
    """Compare the distances that all evaluations have; small evaluations have none.

    The evaluations are treated as independent, which makes intervals wide if they share rows.
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
    """Return `a - b` of independent values; the squared half-widths of their intervals add up."""
    value = a.value - b.value
    low = np.hypot(a.value - a.low, b.high - b.value)
    high = np.hypot(a.high - a.value, b.value - b.low)
    return Interval(value, float(value - low), float(value + high))


def to_json(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return comparisons as plain dictionaries."""
    return [dataclasses.asdict(comparison) for comparison in comparisons]
