"""The evaluate stage: metrics of a prior and of the baselines on the same rows, with 95% confidence intervals.

The main metric is the energy score, E|X - y| - E|X - X'| / 2 (Gneiting and Raftery 2007, JASA 102). X and X' are
independent draws for a caption, and y is the caption's true image embedding. Lower is better. The expected score is
lowest only if the draws follow the true distribution.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pyarrow.parquet as pq
import torch

from ...pipeline.compute.cluster import describe_cluster
from ...pipeline.compute.device import ASSUMED_FLOPS, describe_device, resolve, with_gpus
from ...pipeline.compute.settings import ComputeSettings
from ...pipeline.compute.stage import ProgressCallback, StagePlan, StageResult, free_bytes, no_progress
from ...pipeline.contract.commit import ShardCommit, check_stage, open_stage
from ...pipeline.contract.manifest import fingerprint, pending_shards
from ...pipeline.contract.storage import Store
from ...pipeline.errors import SettingsError
from ...pipeline.read.dataset import EmbeddingDataset
from ...pipeline.read.settings import ReadSettings
from ..model.train_manifest import recorded_files
from .evaluation import compute_metrics
from .folder import FORMAT_VERSION, METRICS_NAME, RECORD, STAGE, evaluate_manifest, rows_name
from .rows import EvaluatedRows
from .scoring import ScorerMaker, is_one_space, variants
from .settings import ONE_SPACE_BASELINES, EvaluateSettings
from .subject import PriorSource, Subject, find_subject


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
    """Evaluate a prior and the baselines on the same held-out rows, and write `metrics.json`.

    Args:
        prior: any prior that `load_prior` reads, or a `.npy` file of predictions. The file contains an array
            `[N, D]` or `[N, K, D]`: one or K predicted embeddings of size D for each of the N rows of the embeddings,
            in order.
        embeddings: folder of embedding shards.
        evaluation: folder to write.
        settings: splits, draws, baselines and other settings; None for the defaults.
        read: settings that assign rows to splits. None uses the settings that the prior was trained with, or the
            defaults if those are unknown.
        compute: worker settings; None to run in this process.
        config: configuration of a `.pth`, as for `load_prior`; `settings.weights` selects the weights in the `.pth`.
        function_version: dalle2-pytorch release for a `.pth`, as for `load_prior`.
        limit: maximum number of rows per split, in addition to `settings.max_rows`; None for no additional limit.
        overwrite: discard an existing evaluation and compute it again.
        progress: callback, called after each block of rows.

    Raises:
        FolderError: the evaluation folder contains unrelated files or the output of another stage, or another process
            is writing to it.
        InputError: the prior or the embeddings are missing or incompatible, or a split has too few rows.
        SettingsError: an option is missing or invalid, or the embeddings are split differently than in training, so
            that evaluated rows could be training rows.
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
    about = {"subject": subject.described(dataset), "embeddings": {"path": embeddings, **_identify(dataset)}}
    _require_baselines(dataset, settings)
    store = Store(evaluation)
    inputs = {RECORD: _input(subject, dataset, settings)}
    with open_stage(store, evaluate_manifest(), overwrite=overwrite) as folder:
        done_now = 0
        if folder.pending(inputs):
            subject.check(dataset, [variant.sample for variant in variants(settings)], settings.weights)
            maker = ScorerMaker(embeddings, subject.read, settings, subject.source, dataset.file_marks)
            computed = compute_metrics(
                dataset, settings, maker, compute, given=subject.is_predictions, progress=progress
            )
            folder.withdraw(inputs)
            commit = ShardCommit(store, RECORD, input=inputs[RECORD], settings=folder.manifest.settings_fingerprint)
            for split, table in computed.rows.items():
                with commit.create(rows_name(split)) as file:
                    pq.write_table(table, file)
            with commit.create(METRICS_NAME) as file:
                metrics = {"format_version": FORMAT_VERSION, **about, **computed.metrics}
                file.write((json.dumps(metrics, indent=1) + "\n").encode())
            done_now = sum(table.num_rows for table in computed.rows.values())
            folder.add(commit.commit(rows=done_now, threads=settings.threads))
        rows = folder.manifest.rows
        progress(rows, rows, "")
        folder.finish()
        seconds, cluster = time.monotonic() - start, describe_cluster(compute)
        return StageResult(
            STAGE, store.url, rows, done_now, "rows", rows, seconds,
            notes=[*dataset.notes, *_left_out(dataset)], device=device, cluster=cluster,
        )  # fmt: skip


def _left_out(dataset: EmbeddingDataset) -> list[str]:
    """Return a note about metrics that mean nothing for these embeddings and are therefore left out."""
    if is_one_space(dataset):
        return []
    return [
        "source and target are in different spaces: cosines to the source, and the baselines "
        f"{' and '.join(ONE_SPACE_BASELINES)}, mean nothing and are left out"
    ]


def _require_baselines(dataset: EmbeddingDataset, settings: EvaluateSettings) -> None:
    """Raise SettingsError if the recipe names a baseline that means nothing for these embeddings."""
    if is_one_space(dataset) or "baselines" not in settings.model_fields_set:
        return
    if unusable := [name for name in settings.baselines if name in ONE_SPACE_BASELINES]:
        raise SettingsError(
            f"evaluate.baselines: {unusable[0]!r} needs source and target in one space, and {dataset.store.url} has "
            "two; leave it out"
        )


def _identify(dataset: EmbeddingDataset) -> dict[str, Any]:
    """Return the `metrics.json` entries that identify the embeddings independently of the location of their folder.

    The entries are the content fingerprint, the hash of the CLIP model's weights (None if unknown), the embedding size
    and, if no CLIP made the embeddings, the names and sizes of the source and the target.
    """
    clip = dataset.clip_if_known.get("weights_sha256")
    spaces = {} if dataset.spaces is None else {"spaces": dataset.spaces}
    return {"content": dataset.content_fingerprint, "clip": clip, "embed_dim": dataset.embed_dim, **spaces}


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
    """Estimate the rows, disk space and time that `evaluate` would need with the same arguments, without running it."""
    settings = _limited(resolve(settings, "evaluate", compute), limit)
    subject = find_subject(PriorSource(prior, config, function_version), read)
    dataset = EmbeddingDataset(embeddings, subject.read, known_files=recorded_files(subject.trained))
    subject.training_rows(dataset)  # raises SettingsError if the splits would include training rows
    store = Store(evaluation)
    existing = check_stage(store, evaluate_manifest(), overwrite=overwrite)
    manifest = existing if existing is not None and not overwrite else evaluate_manifest()
    rows = sum(len(EvaluatedRows(dataset, split, settings).rows) for split in settings.splits)
    is_done = subject.content and not pending_shards(store, manifest, {RECORD: _input(subject, dataset, settings)})
    pending = 0 if is_done else rows
    steps = 0 if subject.is_predictions else sum(variant.sample.steps for variant in variants(settings))
    evaluations = pending * settings.draws * steps
    flops = evaluations * 3 * 2 * subject.parameters(settings.weights[0]) if evaluations else 0
    seconds = flops / ASSUMED_FLOPS[settings.device]
    return StagePlan(STAGE, store.url, rows, pending, "rows", pending, 100 * rows, free_bytes(store), seconds)


def _limited(settings: EvaluateSettings, limit: int | None) -> EvaluateSettings:
    """Return the settings with `max_rows` (rows per split) lowered to `limit`, if `limit` is not None and is smaller.

    Raises:
        SettingsError: `limit` is below 2.
    """
    if limit is not None and limit < 2:
        raise SettingsError(f"--limit {limit}: an evaluation needs at least 2 rows")
    return settings if limit is None else settings.model_copy(update={"max_rows": min(limit, settings.max_rows)})


def _input(subject: Subject, dataset: EmbeddingDataset, settings: EvaluateSettings) -> str:
    """Return a fingerprint of everything that affects the metrics: prior or predictions, embeddings and settings."""
    about = [FORMAT_VERSION, subject.kind, subject.content, dataset.content_fingerprint]
    return fingerprint([*about, dataset.settings.splits(), settings.identity()])
