"""Computation of an evaluation's metrics. Workers score blocks of rows, and the scores are summarised per predictor."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ...pipeline.compute.parallel import Worker, map_shards
from ...pipeline.compute.settings import ComputeSettings
from ...pipeline.compute.stage import ProgressCallback, no_progress
from ...pipeline.read.dataset import EmbeddingDataset, Split
from .baselines import known_baselines
from .distances import EmbeddingSet, set_distances
from .metrics import Interval, mean_intervals
from .predictors import as_units
from .rows import BLOCK_ROWS, EvaluatedRows
from .scoring import GIVEN, BlockScores, ScoreTask, Variant, is_one_space, variants
from .settings import EvaluateSettings

_SAME_FOR_ALL = 1e-6
"""Range (maximum minus minimum over all captions) below which a coordinate of the predictions counts as constant.

If every coordinate is constant, the predictions do not depend on the caption, and the predictor is reported as broken.
"""


@dataclass(frozen=True)
class Evaluation:
    """Result of `compute_metrics`: summary metrics and per-row metrics of all predictors, including the baselines."""

    metrics: dict[str, Any]
    """Content of `metrics.json`, without the keys that `evaluate` adds: `format_version`, `subject`, `embeddings`."""
    rows: dict[Split, pa.Table]
    """Per-row metrics for each split; columns `row_id`, `group_id` and `<predictor>/<metric>`."""


def compute_metrics(
    dataset: EmbeddingDataset,
    settings: EvaluateSettings,
    make_scorer: Callable[[], Worker[ScoreTask, BlockScores]],
    compute: ComputeSettings | None = None,
    *,
    given: bool = False,
    progress: ProgressCallback = no_progress,
) -> Evaluation:
    """Compute all metrics for the baselines and for either a prior or predictions from a file.

    Args:
        dataset: embeddings.
        settings: settings with `auto` values already resolved; must equal the settings of the scorers that
            `make_scorer` creates.
        make_scorer: function that each worker calls to create its scorer.
        compute: worker settings; None to score in this process.
        given: True to evaluate predictions from a file instead of a prior.
        progress: callback, called after each block of rows.
    """
    results: dict[Split, SplitScores] = {
        split: SplitScores(dataset, split, settings, given=given) for split in settings.splits
    }
    training = _image_set(dataset, dataset.content_order("train", settings.seed)[: settings.distance_rows])
    tasks = [task for split in results.values() for task in split.tasks()]
    # close explicitly: otherwise, after an exception, the worker and its threads would run until the interpreter exits
    with contextlib.closing(map_shards(make_scorer, tasks, compute or ComputeSettings())) as scored:
        for done, scores in enumerate(scored):
            progress(done * BLOCK_ROWS, len(tasks) * BLOCK_ROWS, scores.task.name)
            results[scores.task.split].add(scores)
    metrics = {split: result.metrics(training) for split, result in results.items()}
    tables: dict[Split, pa.Table] = {split: result.table() for split, result in results.items()}
    return Evaluation({"seed": settings.seed, "read": dataset.settings.splits(), "splits": metrics}, tables)


class SplitScores:
    """Scores of all predictors on one split, and losses of the prior on this split.

    Blocks of rows can be added in any order.

    Args:
        dataset: embeddings.
        split: name of the split.
        settings: settings with `auto` values already resolved.
        given: True to evaluate predictions from a file instead of a prior.
    """

    def __init__(self, dataset: EmbeddingDataset, split: Split, settings: EvaluateSettings, *, given: bool) -> None:
        self._split, self._settings = split, settings
        self._rows = EvaluatedRows(dataset, split, settings)
        self._real = _image_set(dataset, self._rows.rows[: settings.distance_rows])
        self._variants: Mapping[str, Variant] = {} if given else {way.name: way for way in variants(settings)}
        usable = known_baselines(is_one_space(dataset))
        baselines = [name for name in settings.baselines if name in usable]
        names = [*([GIVEN] if given else self._variants), *baselines]
        self._predictors = {name: PredictorScores(self._rows, self._real, settings) for name in names}
        self._losses: dict[str, LossScores] = {}
        if not given:
            self._losses = {name: LossScores(self._rows, settings) for name in settings.weights}

    def tasks(self) -> Iterator[ScoreTask]:
        """Yield the tasks that score predictions, followed by the tasks that compute losses.

        Each scoring task covers one predictor and one block of rows. Each loss task covers one of the prior's sets of
        weights (for example, `ema` or `online`) and one block of rows.
        """
        for is_loss, names in ((False, self._predictors), (True, self._losses)):
            for name in names:
                for block in range(self._rows.blocks):
                    yield ScoreTask(self._split, name, block, is_loss=is_loss)

    def add(self, scores: BlockScores) -> None:
        """Add the scores or losses of a block to the results of the predictor or weights named in `scores.task`."""
        if scores.task.is_loss:
            self._losses[scores.task.name].add(scores)
        else:
            self._predictors[scores.task.name].add(scores)

    def metrics(self, training: EmbeddingSet) -> dict[str, Any]:
        """Return the section of `metrics.json` for the split. Call this only after all blocks have been added.

        Args:
            training: embeddings of training images. The section includes the distances between the distribution of
                these images and the distribution of the split's images. A predictor cannot be expected to reach lower
                distances than these.
        """
        rows, real = self._rows, self._real
        return {
            "rows": len(rows.rows),
            "rows_fingerprint": hashlib.sha256(rows.ids.tobytes()).hexdigest(),
            "gallery": len(rows.gallery),
            "gallery_fingerprint": hashlib.sha256(rows.groups[rows.gallery].tobytes()).hexdigest(),
            "distance_rows": len(real.embeds),
            "real_against_real": _to_json(_distance_floor(training, real)),
            "real_against_real_rows": min(len(training.embeds), len(real.embeds)),
            "predictors": [
                {"name": name, "draws": scores.draws, **_sampling(self._variants.get(name)), **scores.summary}
                for name, scores in self._predictors.items()
            ],
            "losses": {name: scores.summary for name, scores in self._losses.items()},
        }

    def table(self) -> pa.Table:
        """Return the table of per-row metrics. It has no columns for predictors that were reported as broken."""
        columns = {
            f"{name}/{metric}": values
            for name, scores in self._predictors.items()
            for metric, values in scores.columns.items()
        }
        return pa.table({"row_id": self._rows.ids, "group_id": self._rows.groups, **columns})


class PredictorScores:
    """Scores of one predictor on a split, summarised once all blocks of evaluated rows have been added."""

    def __init__(self, rows: EvaluatedRows, real: EmbeddingSet, settings: EvaluateSettings) -> None:
        self._rows, self._real, self._settings = rows, real, settings
        self._missing = rows.blocks
        self._first_draws: dict[int, np.ndarray] = {}
        self._broken: dict[int, str] = {}
        self.draws = 0
        """Number of predicted embeddings per row."""
        self.columns: dict[str, np.ndarray] = {}
        """Values of each metric for the N evaluated rows, `[N]`, by metric name; empty if the predictor is broken."""
        self.summary: dict[str, Any] = {}
        """Means of the per-row metrics, and distances between distributions, with 95% confidence intervals.

        If the predictions are broken (not finite, or the same for every caption), the dictionary contains only the key
        `broken`, whose value is the reason. It is empty until all blocks of evaluated rows have been added.
        """

    def add(self, scores: BlockScores) -> None:
        """Add the predictor's scores for one block of rows. When all blocks have been added, compute the summary."""
        block = scores.task.block
        self.draws = scores.draws
        _fill(self.columns, self._rows, scores)
        self._first_draws[block] = scores.first_draws
        if scores.broken is not None:
            self._broken[block] = scores.broken
        self._missing -= 1
        if self._missing == 0:
            self.summary = self._summarise()
            self._first_draws = {}

    def _summarise(self) -> dict[str, Any]:
        broken = self._broken[min(self._broken)] if self._broken else None
        if broken is None:
            first_draws = np.concatenate([self._first_draws[block] for block in sorted(self._first_draws)])
            if np.ptp(first_draws, axis=0).max() < _SAME_FOR_ALL:
                broken = "the same for every caption"
        if broken is not None:
            self.columns = {}
            return {"broken": broken}
        settings = self._settings
        means = mean_intervals(self.columns, self._rows.groups, settings.bootstrap_samples, settings.seed)
        distances = set_distances(EmbeddingSet(first_draws, self._real.groups), self._real)
        return {"metrics": _to_json(means), "distances": _to_json(distances)}


class LossScores:
    """Losses on a split for one of the prior's sets of weights, such as `ema`.

    The losses are summarised once all blocks of evaluated rows have been added.
    """

    def __init__(self, rows: EvaluatedRows, settings: EvaluateSettings) -> None:
        self._rows, self._settings = rows, settings
        self._missing = rows.blocks
        self._columns: dict[str, np.ndarray] = {}
        self._broken: str | None = None
        self.summary: dict[str, Any] = {}
        """Mean loss overall and per timestep bin, with 95% confidence intervals.

        If any loss is not finite, or the prior has no loss, the dictionary contains only the key `broken`, whose value
        is the reason. It is empty until all blocks of evaluated rows have been added.
        """

    def add(self, scores: BlockScores) -> None:
        """Add the losses of one block of rows. When all blocks have been added, compute the summary."""
        _fill(self._columns, self._rows, scores)
        self._broken = scores.broken
        self._missing -= 1
        if self._missing == 0:
            self.summary = self._summarise()

    def _summarise(self) -> dict[str, Any]:
        if self._broken is not None:
            return {"broken": self._broken}
        overall = np.mean(list(self._columns.values()), axis=0)
        if not np.isfinite(overall).all():
            return {"broken": "not finite"}
        columns = {"overall": overall, **self._columns}
        settings = self._settings
        return _to_json(mean_intervals(columns, self._rows.groups, settings.bootstrap_samples, settings.seed))


def _fill(columns: dict[str, np.ndarray], rows: EvaluatedRows, scores: BlockScores) -> None:
    """Copy the per-row values of a block into `columns`, at the positions of the block's rows.

    `columns` has an array `[N]` for each metric, with one value per evaluated row. Missing arrays are created and
    filled with NaN.
    """
    chosen = rows.block(scores.task.block)
    for name, values in scores.values.items():
        columns.setdefault(name, np.full(len(rows.rows), np.nan))[chosen] = values


def _image_set(dataset: EmbeddingDataset, rows: np.ndarray) -> EmbeddingSet:
    """Read the image embeddings of the given rows, and scale them to norm 1."""
    return EmbeddingSet(as_units(dataset.take(rows).image_embed), dataset.group_ids[rows])


def _distance_floor(training: EmbeddingSet, real: EmbeddingSet) -> dict[str, Interval]:
    """Return the distances between the distribution of training images and the distribution of a split's real images.

    Even a perfect predictor cannot be expected to reach lower distances. The number of training images used is
    limited to the number of real images. If there are fewer training images than real images, `frechet_distance` is
    left out, because it depends on the number of images.
    """
    count = len(real.embeds)
    distances = set_distances(EmbeddingSet(training.embeds[:count], training.groups[:count]), real)
    if len(training.embeds) < count:
        # this distance depends on the number of rows, so it cannot be compared with the predictors' distances
        distances.pop("frechet_distance", None)
    return distances


def _sampling(variant: Variant | None) -> dict[str, Any]:
    """Return the `metrics.json` entries for a predictor's weights and sampling settings: `weights` and `sample`.

    Return an empty dictionary if `variant` is None, as it is for baselines and for predictions from a file.
    """
    return {} if variant is None else {"weights": variant.weights, "sample": variant.sample.model_dump(mode="json")}


def _to_json(values: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: dataclasses.asdict(value) for name, value in values.items()}
