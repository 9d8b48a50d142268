"""Evaluation: metrics of a prior and of baselines, under one evaluator, with 95% intervals.

The headline is the energy score, E|X - y| - E|X - X'| / 2, with X and X' independent draws for a caption and y its true
image embedding (Gneiting and Raftery 2007, JASA 102). Lower is better, and only the true distribution is best.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ...pipeline.compute.cluster import describe_cluster
from ...pipeline.compute.device import ASSUMED_FLOPS, describe_device, resolve, with_gpus
from ...pipeline.compute.parallel import Worker, map_shards
from ...pipeline.compute.settings import ComputeSettings
from ...pipeline.compute.stage import ProgressCallback, StagePlan, StageResult, free_bytes, no_progress
from ...pipeline.contract.commit import ShardCommit, check_stage, open_stage
from ...pipeline.contract.manifest import fingerprint, pending_shards
from ...pipeline.contract.storage import Store
from ...pipeline.errors import SettingsError
from ...pipeline.read.dataset import EmbeddingDataset, Split
from ...pipeline.read.settings import ReadSettings
from ..model.train_manifest import recorded_files
from .distances import EmbeddingSet, set_distances
from .folder import FORMAT_VERSION, METRICS_NAME, RECORD, STAGE, evaluate_manifest, rows_name
from .metrics import Estimate, mean_intervals
from .predictors import as_units
from .rows import BLOCK_ROWS, EvaluatedRows
from .scoring import GIVEN, BlockScores, ScorerMaker, ScoreTask, Variant, variants
from .settings import EvaluateSettings
from .subject import PriorSource, Subject, find_subject

_ALL_EQUAL = 1e-6
"""Of a coordinate over all captions: a range below it is no prediction."""


def evaluate(
    prior: str = "data/prior",
    embeddings: str = "data/embeddings",
    evaluation: str = "data/evaluation",
    settings: EvaluateSettings | None = None,
    read: ReadSettings | None = None,
    compute: ComputeSettings | None = None,
    *,
    config: str | None = None,
    function_version: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback = no_progress,
) -> StageResult:
    """Evaluate a prior and the baselines on rows it was not trained on, and write `metrics.json`.

    Args:
        prior: one that was trained here, or any that `load_prior` reads; or a `.npy` of predictions `[rows, D]` or
            `[rows, K, D]` for all rows of the embeddings, in order.
        read: how rows are split; the default is the way of the prior's training, where that is known.
        config: of a checkpoint, as for `load_prior`; `settings.weights` says which of its weights.
        function_version: of a checkpoint, as for `load_prior`.
        limit: use at most this many rows of each split.

    Raises:
        InputError: the prior or the embeddings are missing, do not fit each other, or leave no rows to evaluate on.
        SettingsError: an option is missing or wrong, or other splits would mix in rows that it was trained on.
    """
    start = time.monotonic()
    wanted, compute = settings or EvaluateSettings(), compute or ComputeSettings()
    settings = _limited(resolve(wanted, "evaluate", compute), limit)
    device = describe_device(wanted, settings, compute)
    compute = with_gpus(compute, wanted)
    torch.set_num_threads(settings.threads)
    subject = find_subject(PriorSource(prior, config, function_version), read)
    subject.require_finished()
    dataset = EmbeddingDataset(
        embeddings,
        subject.read,
        known_files=recorded_files(subject.trained),
        tell=lambda note: progress(0, None, note),
    )
    about = {"subject": subject.described(dataset), "embeddings": {"path": embeddings, **_described(dataset)}}
    store = Store(evaluation)
    inputs = {RECORD: _input(subject, dataset, settings)}
    with open_stage(store, evaluate_manifest(), overwrite=overwrite) as folder:
        done_now = 0
        if folder.pending(inputs):
            subject.check(dataset, [way.sample for way in variants(settings)], settings.weights)
            maker = ScorerMaker(embeddings, subject.read, settings, subject.source, dataset.file_marks)
            evaluation_found = compute_metrics(
                dataset, settings, maker, compute, given=subject.is_predictions, progress=progress
            )
            folder.withdraw(inputs)
            commit = ShardCommit(store, RECORD, input=inputs[RECORD], settings=folder.manifest.settings_fingerprint)
            for split, table in evaluation_found.rows.items():
                with commit.create(rows_name(split)) as file:
                    pq.write_table(table, file)
            with commit.create(METRICS_NAME) as file:
                metrics = {"format_version": FORMAT_VERSION, **about, **evaluation_found.metrics}
                file.write((json.dumps(metrics, indent=1) + "\n").encode())
            done_now = sum(table.num_rows for table in evaluation_found.rows.values())
            folder.add(commit.commit(rows=done_now, threads=settings.threads))
        rows = folder.manifest.rows
        progress(rows, rows, "")
        folder.finish()
        seconds, cluster = time.monotonic() - start, describe_cluster(compute)
        return StageResult(
            STAGE, store.url, rows, done_now, "rows", rows, seconds, notes=dataset.notes, device=device, cluster=cluster
        )


@dataclass(frozen=True)
class Evaluation:
    """What was found."""

    metrics: dict[str, Any]
    """As `metrics.json` holds it, but for what was evaluated."""
    rows: dict[Split, pa.Table]
    """The metrics of each row, by split; columns `row_id` and `group_id`, and one of each predictor's metrics."""


def compute_metrics(
    dataset: EmbeddingDataset,
    settings: EvaluateSettings,
    make_scorer: Callable[[], Worker[ScoreTask, BlockScores]],
    compute: ComputeSettings | None = None,
    *,
    given: bool = False,
    progress: ProgressCallback = no_progress,
) -> Evaluation:
    """All metrics of a prior, or of given predictions, and of the baselines.

    Args:
        settings: resolved ones, for which `make_scorer` makes its scorers too.
        given: there are predictions in place of a prior.
    """
    evaluated: dict[Split, EvaluatedRows] = {
        split: EvaluatedRows(dataset, split, settings) for split in settings.splits
    }
    known = _images(dataset, dataset.content_order("train", settings.seed)[: settings.distance_rows])
    real = {split: _images(dataset, rows.rows[: settings.distance_rows]) for split, rows in evaluated.items()}
    ways = {} if given else {variant.name: variant for variant in variants(settings)}
    predictors = [*([GIVEN] if given else ways), *settings.baselines]
    with_losses = () if given else settings.weights
    tasks = [
        ScoreTask(split, name, block, is_loss=is_loss)
        for split, rows in evaluated.items()
        for is_loss, names in ((False, predictors), (True, with_losses))
        for name in names
        for block in range(rows.blocks)
    ]
    gathered: dict[tuple[Split, str, bool], _Gathered] = {}
    summaries: dict[tuple[Split, str, bool], dict[str, Any]] = {}
    draws: dict[tuple[Split, str, bool], int] = {}
    for done, scores in enumerate(map_shards(make_scorer, tasks, compute or ComputeSettings())):
        task = scores.task
        progress(done * BLOCK_ROWS, len(tasks) * BLOCK_ROWS, task.name)
        rows, key = evaluated[task.split], (task.split, task.name, task.is_loss)
        found, draws[key] = gathered.setdefault(key, _Gathered(rows.groups)), scores.draws
        if found.add(rows.block(task.block), scores):
            summaries[key] = found.losses(settings) if task.is_loss else found.summary(real[task.split], settings)
    metrics: dict[str, Any] = {}
    tables: dict[Split, pa.Table] = {}
    for split, rows in evaluated.items():
        metrics[split] = {
            "rows": len(rows.rows),
            "rows_fingerprint": hashlib.sha256(rows.ids.tobytes()).hexdigest(),
            "gallery": len(rows.gallery),
            "gallery_fingerprint": hashlib.sha256(rows.groups[rows.gallery].tobytes()).hexdigest(),
            "distance_rows": len(real[split].embeds),
            "real_against_real": _estimates(_floor(known, real[split])),
            "real_against_real_rows": min(len(known.embeds), len(real[split].embeds)),
            "predictors": [
                {"name": name, "draws": draws[split, name, False], **_drawn(ways.get(name))}
                | summaries[split, name, False]
                for name in predictors
            ],
            "losses": {name: summaries[split, name, True] for name in with_losses},
        }
        columns = {
            f"{name}/{metric}": values
            for name in predictors
            for metric, values in gathered[split, name, False].columns.items()
        }
        tables[split] = pa.table({"row_id": rows.ids, "group_id": rows.groups, **columns})
    return Evaluation({"seed": settings.seed, "read": dataset.settings.splits(), "splits": metrics}, tables)


def _described(dataset: EmbeddingDataset) -> dict[str, Any]:
    """What names embeddings, wherever they are."""
    clip = dataset.clip_if_known.get("weights_sha256")
    return {"content": dataset.content_fingerprint, "clip": clip, "embed_dim": dataset.embed_dim}


def _drawn(way: Variant | None) -> dict[str, Any]:
    """How a prior was drawn from; nothing of other predictors."""
    return {} if way is None else {"weights": way.weights, "sample": way.sample.model_dump(mode="json")}


class _Gathered:
    """The scores of one predictor for the rows of a split, whose images `[N]` are named by `groups`."""

    def __init__(self, groups: np.ndarray) -> None:
        self._groups, self._missing = groups, len(groups)
        self._first_draws: dict[int, np.ndarray] = {}
        self._broken: dict[int, str] = {}
        self.columns: dict[str, np.ndarray] = {}

    def add(self, chosen: slice, scores: BlockScores) -> bool:
        """Take in a block; True if it was the last that was missing."""
        if scores.broken is not None:
            self._broken[chosen.start] = scores.broken
        for name, values in scores.values.items():
            self.columns.setdefault(name, np.full(len(self._groups), np.nan))[chosen] = values
        self._first_draws[chosen.start] = scores.first_draws
        self._missing -= chosen.stop - chosen.start
        return self._missing == 0

    def summary(self, real: EmbeddingSet, settings: EvaluateSettings) -> dict[str, Any]:
        """Means with intervals, and distances to the real images of the first rows; or what is wrong."""
        broken = next((self._broken[start] for start in sorted(self._broken)), None)
        if broken is None:
            first_draws = np.concatenate([self._first_draws[start] for start in sorted(self._first_draws)])
            if np.ptp(first_draws, axis=0).max() < _ALL_EQUAL:
                broken = "the same for every caption"
        self._first_draws = {}
        if broken is not None:
            self.columns = {}
            return {"broken": broken}
        means = mean_intervals(self.columns, self._groups, settings.bootstrap_samples, settings.seed)
        distances = set_distances(EmbeddingSet(first_draws, real.groups), real)
        return {"metrics": _estimates(means), "distances": _estimates(distances)}

    def losses(self, settings: EvaluateSettings) -> dict[str, Any]:
        """The mean loss over all timesteps, and in each part of them."""
        overall = np.mean(list(self.columns.values()), axis=0)
        if not np.isfinite(overall).all():
            return {"broken": "not finite"}
        columns = {"overall": overall, **self.columns}
        means = mean_intervals(columns, self._groups, settings.bootstrap_samples, settings.seed)
        return _estimates(means)


def _images(dataset: EmbeddingDataset, rows: np.ndarray) -> EmbeddingSet:
    return EmbeddingSet(as_units(dataset.take(rows).image_embed), dataset.group_ids[rows])


def _floor(known: EmbeddingSet, real: EmbeddingSet) -> dict[str, Estimate]:
    """Distances between training images and the real ones: what is left between sets of one distribution."""
    count = len(real.embeds)
    found = set_distances(EmbeddingSet(known.embeds[:count], known.groups[:count]), real)
    if len(known.embeds) < count:
        found.pop("frechet_distance", None)  # which depends on the number of rows
    return found


def _estimates(values: dict[str, Estimate]) -> dict[str, dict[str, float]]:
    return {name: dataclasses.asdict(value) for name, value in values.items()}


def plan_evaluate(
    prior: str,
    embeddings: str,
    evaluation: str,
    settings: EvaluateSettings,
    read: ReadSettings | None = None,
    compute: ComputeSettings | None = None,
    *,
    config: str | None = None,
    function_version: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
) -> StagePlan:
    """What `evaluate` would do, without doing it."""
    settings = _limited(resolve(settings, "evaluate", compute), limit)
    subject = find_subject(PriorSource(prior, config, function_version), read)
    dataset = EmbeddingDataset(embeddings, subject.read, known_files=recorded_files(subject.trained))
    subject.training_rows(dataset)  # refuses splits that would mix
    store = Store(evaluation)
    found = check_stage(store, evaluate_manifest(), overwrite=overwrite)
    kept = found if found is not None and not overwrite else evaluate_manifest()
    rows = sum(len(EvaluatedRows(dataset, split, settings).rows) for split in settings.splits)
    is_done = subject.content and not pending_shards(store, kept, {RECORD: _input(subject, dataset, settings)})
    pending = 0 if is_done else rows
    steps = 0 if subject.is_predictions else sum(variant.sample.steps for variant in variants(settings))
    evaluations = pending * settings.draws * steps
    flops = evaluations * 3 * 2 * subject.parameters(settings.weights[0]) if evaluations else 0
    seconds = flops / ASSUMED_FLOPS[settings.device]
    return StagePlan(STAGE, store.url, rows, pending, "rows", pending, 100 * rows, free_bytes(store), seconds)


def _limited(settings: EvaluateSettings, limit: int | None) -> EvaluateSettings:
    if limit is not None and limit < 2:
        raise SettingsError(f"--limit {limit}: an evaluation needs at least 2 rows")
    return settings if limit is None else settings.model_copy(update={"max_rows": min(limit, settings.max_rows)})


def _input(subject: Subject, dataset: EmbeddingDataset, settings: EvaluateSettings) -> str:
    about = [FORMAT_VERSION, subject.kind, subject.content, dataset.content_fingerprint]
    return fingerprint([*about, dataset.settings.splits(), settings.identity()])
