"""Evaluations side by side: how much each differs from the first, and with which certainty."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...pipeline.errors import InputError
from .folder import read_metrics, read_rows, require_whole
from .metrics import Estimate, mean_intervals

_SAMPLES, _SEED = 1000, 0
"""Of the bootstrap of differences."""
_MUST_AGREE = {
    "rows": "evaluate.max_rows, or --limit,",
    "gallery": "evaluate.gallery_size",
    "distance_rows": "evaluate.distance_rows",
}
"""What distances and recall depend on, and the setting that makes it the same."""


@dataclass(frozen=True)
class Comparison:
    """One metric of several evaluations."""

    split: str
    metric: str
    values: list[Estimate]
    """Of each evaluation."""
    differences: list[Estimate]
    """To the first, of each after it."""
    paired: list[bool]
    """Whether a difference is of the same rows, so that what is hard for both cancels."""


def compare(evaluations: Sequence[str], predictor: str | None = None) -> list[Comparison]:
    """Compare two or more evaluations by what they found of a predictor.

    Args:
        evaluations: folders that `evaluate` wrote.
        predictor: its name; None for the first of each, which is what was evaluated.

    Raises:
        InputError: there are fewer than two, they are of unequal size, of other CLIPs or galleries, or have no
            split in common.
    """
    if len(evaluations) < 2:
        raise InputError("compare needs at least two evaluations")
    for evaluation in evaluations:
        require_whole(evaluation)
    found = [read_metrics(evaluation) for evaluation in evaluations]
    shared = [split for split in found[0]["splits"] if all(split in metrics["splits"] for metrics in found)]
    if not shared:
        raise InputError(f"{' and '.join(evaluations)} have no split in common; set evaluate.splits alike")
    clips = [metrics["embeddings"]["clip"] for metrics in found]
    if len({clip for clip in clips if clip is not None}) > 1:
        named = [(clip or "unknown")[:12] for clip in clips]
        raise InputError(
            f"their embeddings are of other CLIPs ({_listed(evaluations, named)}, by the hash of the "
            "weights), so that their numbers are of other spaces; evaluate on embeddings of one CLIP"
        )
    dims = [metrics["embeddings"]["embed_dim"] for metrics in found]
    if len(set(dims)) > 1:
        raise InputError(
            f"their embeddings are of other sizes ({_listed(evaluations, dims)}), so that their numbers are of other "
            "spaces; evaluate on embeddings of one CLIP"
        )
    comparisons: list[Comparison] = []
    for split in shared:
        runs = [
            _Run.read(evaluation, split, metrics["splits"][split], predictor)
            for evaluation, metrics in zip(evaluations, found, strict=True)
        ]
        for name, setting in _MUST_AGREE.items():
            sizes = [run.found[name] for run in runs]
            if len(set(sizes)) > 1:
                raise InputError(
                    f"{name} of the {split} split differ ({_listed(evaluations, sizes)}), and what depends on them "
                    f"cannot be compared; evaluate again with {setting} at most {min(sizes)}"
                )
        _refuse_unlike(split, evaluations, runs)
        comparisons += _compare_means(split, runs)
        comparisons += _compare_distances(split, runs)
    return comparisons


def _refuse_unlike(split: str, evaluations: Sequence[str], runs: Sequence[_Run]) -> None:
    draws = [run.result["draws"] for run in runs]
    if len(set(draws)) > 1:
        raise InputError(
            f"draws a caption differ ({_listed(evaluations, draws)}); set evaluate.draws alike, or give as many "
            "predictions for each row"
        )
    galleries = {run.found["gallery_fingerprint"] for run in runs if np.array_equal(run.row_ids, runs[0].row_ids)}
    if len(galleries) > 1:  # of other rows the galleries cannot but differ
        raise InputError(
            f"galleries of the {split} split are of the same size and of other images, and recall depends on them; "
            "evaluate again with evaluate.seed alike"
        )


def _listed(evaluations: Sequence[str], values: Sequence[object]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in zip(evaluations, values, strict=True))


@dataclass(frozen=True)
class _Run:
    """What one evaluation found of a predictor on a split."""

    found: dict[str, Any]
    """All that it found on the split."""
    result: dict[str, Any]
    rows: dict[str, np.ndarray]
    """`[N]` of each metric, in the order of row ids."""
    row_ids: np.ndarray
    groups: np.ndarray
    """`[N]`: equal ones are of one image."""

    @staticmethod
    def read(evaluation: str, split: str, found: dict[str, Any], predictor: str | None) -> _Run:
        by_name = {result["name"]: result for result in found["predictors"]}
        name = predictor or next(iter(by_name))
        if name not in by_name:
            raise InputError(f"{evaluation} has no predictor {name!r}; it has {', '.join(by_name)}")
        if "broken" in by_name[name]:
            raise InputError(f"{evaluation}: predictions of {name!r} are broken: {by_name[name]['broken']}")
        table = read_rows(evaluation, split).sort_by("row_id")
        ids, groups = (table.column(column).to_numpy() for column in ("row_id", "group_id"))
        rows = {metric: table.column(f"{name}/{metric}").to_numpy() for metric in by_name[name]["metrics"]}
        return _Run(found, by_name[name], rows, ids, groups)


def _compare_means(split: str, runs: list[_Run]) -> list[Comparison]:
    first = runs[0]
    differences: list[dict[str, Estimate]] = []
    paired = [np.array_equal(run.row_ids, first.row_ids) for run in runs[1:]]
    for run, same in zip(runs[1:], paired, strict=True):
        if same:
            columns = {metric: run.rows[metric] - values for metric, values in first.rows.items()}
            differences.append(mean_intervals(columns, first.groups, _SAMPLES, _SEED, of_differences=True))
        else:
            differences.append({m: _difference(_estimate(run, m), _estimate(first, m)) for m in first.rows})
    return [
        Comparison(split, metric, [_estimate(run, metric) for run in runs], [d[metric] for d in differences], paired)
        for metric in first.rows
    ]


def _compare_distances(split: str, runs: list[_Run]) -> list[Comparison]:
    """As of evaluations that know nothing of each other, which is wide where they have rows in common.

    Of distances that all have: of fewer than 48 images there are none.
    """
    comparisons = []
    for name in runs[0].result["distances"]:
        if any(name not in run.result["distances"] for run in runs):
            continue
        values = [Estimate(**run.result["distances"][name]) for run in runs]
        differences = [_difference(value, values[0]) for value in values[1:]]
        comparisons.append(Comparison(split, name, values, differences, [False] * len(differences)))
    return comparisons


def _estimate(run: _Run, metric: str) -> Estimate:
    return Estimate(**run.result["metrics"][metric])


def _difference(a: Estimate, b: Estimate) -> Estimate:
    """`a - b` of independent estimates: the squares of the halves of their intervals add up."""
    value = a.value - b.value
    low = np.hypot(a.value - a.low, b.high - b.value)
    high = np.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, float(value - low), float(value + high))


def to_json(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Plain values."""
    return [dataclasses.asdict(comparison) for comparison in comparisons]
