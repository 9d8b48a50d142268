"""Evaluation: metrics of a prior and of baselines, under one evaluator, as means over rows with 95% intervals.

The headline is the energy score, E|X - y| - E|X - X'| / 2, with X and X' independent draws for a caption and y its true
image embedding (Gneiting and Raftery 2007, JASA 102). Lower is better, and only the true distribution is best.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..pipeline.config import ReadSettings
from ..pipeline.device import resolve
from ..pipeline.errors import InputError, SettingsError
from ..pipeline.read import EmbeddingBatch, EmbeddingDataset
from ..pipeline.shards import (
    Manifest,
    ShardCommit,
    check_stage,
    differing_files,
    fingerprint,
    open_stage,
    pending_shards,
    require_manifest,
)
from ..pipeline.stage import ProgressCallback, StagePlan, StageResult, free_bytes, no_progress
from ..pipeline.storage import Store
from .config import EvaluateSettings
from .load import load_prior
from .model import Prior
from .train import RECORD as PRIOR_RECORD
from .train import STAGE as TRAIN_STAGE

STAGE = "evaluate"
RECORD = "metrics"
METRICS_NAME = "metrics.json"

_FIRST_BLOCK_KEY = 2**63
"""Keys of the evaluation's noise, which no training step reaches."""

BLOCK_ROWS = 128
"""Rows drawn for at once. A constant, since the noise of a row depends on its block."""
RECALL_AT = (1, 5, 10)
_MEAN_SHIFT_ROWS = 100_000

Draw = Callable[[EmbeddingBatch, int], np.ndarray]
"""Takes a block of rows and its number, returns K predictions for each row: `[B, K, D]`, L2-normalised."""


def evaluate(
    prior: str = "data/prior",
    embeddings: str = "data/embeddings",
    evaluation: str = "data/evaluation",
    settings: EvaluateSettings | None = None,
    read: ReadSettings | None = None,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback = no_progress,
) -> StageResult:
    """Evaluate a prior and the baselines on rows it was not trained on, and write `metrics.json`.

    Args:
        read: how rows are split; the same as in training, which is the default.
        limit: use at most this many rows.

    Raises:
        InputError: the prior or the embeddings are missing, do not fit each other, or leave no rows to evaluate on.
    """
    start = time.monotonic()
    settings = _limited(resolve(settings or EvaluateSettings(), "evaluate"), limit)
    torch.set_num_threads(settings.threads)
    trained = require_manifest(Store(prior), TRAIN_STAGE)
    dataset = EmbeddingDataset(embeddings, read or ReadSettings(**trained.settings["read"]))
    store = Store(evaluation)
    inputs = {RECORD: _input(trained, dataset, settings)}
    with open_stage(store, evaluate_manifest(), overwrite=overwrite) as folder:
        done_now = 0
        if folder.pending(inputs):
            if bad := differing_files(Store(prior), trained.shards[PRIOR_RECORD]):
                raise InputError(f"{prior}/{bad[0]} differs from what was trained; restore it, or train again")
            metrics = compute_metrics(load_prior(prior, settings.device), dataset, settings, progress)
            folder.withdraw(inputs)
            commit = ShardCommit(store, RECORD, input=inputs[RECORD], settings=folder.manifest.settings_fingerprint)
            with commit.create(METRICS_NAME) as file:
                file.write((json.dumps(metrics, indent=1) + "\n").encode())
            done_now = metrics["rows"]
            folder.add(commit.commit(rows=done_now))
        rows = folder.manifest.rows
        progress(rows, rows, "")
        folder.finish()
        return StageResult(STAGE, store.url, rows, done_now, "rows", rows, time.monotonic() - start)


def plan_evaluate(
    prior: str,
    embeddings: str,
    evaluation: str,
    settings: EvaluateSettings,
    *,
    limit: int | None = None,
    overwrite: bool = False,
) -> StagePlan:
    """What `evaluate` would do, without doing it."""
    settings = _limited(resolve(settings, "evaluate"), limit)
    trained = require_manifest(Store(prior), TRAIN_STAGE)
    dataset = EmbeddingDataset(embeddings, ReadSettings(**trained.settings["read"]))
    store = Store(evaluation)
    found = check_stage(store, evaluate_manifest(), overwrite=overwrite)
    kept = found if found is not None and not overwrite else evaluate_manifest()
    rows = len(evaluated_rows(dataset, settings))
    finished = PRIOR_RECORD in trained.shards
    done = finished and not pending_shards(store, kept, {RECORD: _input(trained, dataset, settings)})
    pending = 0 if done else rows
    weights = trained.shards[PRIOR_RECORD].files["model.safetensors"].bytes / 4 if finished else 0
    flops = pending * settings.draws * settings.sample.steps * 3 * 2 * weights
    return StagePlan(STAGE, store.url, rows, pending, "rows", pending, 10_000, free_bytes(store), flops / 5e10)


def read_metrics(evaluation: str) -> dict[str, Any]:
    """The content of an evaluation's `metrics.json`."""
    store = Store(evaluation)
    require_manifest(store, STAGE)
    value: dict[str, Any] = store.read_json(METRICS_NAME)
    return value


def _limited(settings: EvaluateSettings, limit: int | None) -> EvaluateSettings:
    if limit is not None and limit < 2:
        raise SettingsError(f"--limit {limit}: an evaluation needs at least 2 rows")
    return settings if limit is None else settings.model_copy(update={"max_rows": min(limit, settings.max_rows)})


def evaluate_manifest() -> Manifest:
    """The manifest before any work. All that metrics depend on is their input: a change makes them anew."""
    return Manifest(STAGE, {}, input={})


def _input(trained: Manifest, dataset: EmbeddingDataset, settings: EvaluateSettings) -> str:
    if PRIOR_RECORD not in trained.shards:
        raise InputError("the prior's training has not ended; run `priorkit train` again, it goes on where it was")
    prior = trained.shards[PRIOR_RECORD].content()
    return fingerprint([prior, dataset.content_fingerprint, dataset.settings.identity(), settings.identity()])


def evaluated_rows(dataset: EmbeddingDataset, settings: EvaluateSettings) -> np.ndarray:
    """Row numbers that are evaluated on, in a seeded order, so that neighbours are unrelated: `[N]`."""
    rows = dataset.epoch_order(settings.split, settings.seed, 0)[: settings.max_rows]
    if len(rows) < 2:
        raise InputError(
            f"{dataset.store.url}: the {settings.split} split has {len(rows)} rows, at least 2 are needed; "
            f"raise read.{settings.split}_fraction and train again"
        )
    return rows


def compute_metrics(
    prior: Prior, dataset: EmbeddingDataset, settings: EvaluateSettings, progress: ProgressCallback = no_progress
) -> dict[str, Any]:
    """All metrics of the prior and the baselines, as `metrics.json` holds them."""
    if prior.config.clip.get("weights_sha256") not in (None, dataset.clip["weights_sha256"]):
        raise InputError(f"{dataset.store.url} was embedded by another CLIP than the prior was trained with")
    rows = evaluated_rows(dataset, settings)
    predictors = {
        "prior": prior_draws(prior, settings),
        "text embedding": lambda batch, block: batch.text_embed[:, None],
        "mean shift": mean_shift(dataset, settings),
        "random training image": random_training_image(dataset, settings),
    }
    gallery = dataset.take(rows)
    results = {}
    for done, (name, draw) in enumerate(predictors.items()):
        progress(done * len(rows), len(predictors) * len(rows), name)
        values = row_values(draw, dataset, rows, gallery, prior.token_states_used)
        results[name] = {metric: interval(column, settings) for metric, column in values.items()}
    baseline = np.einsum("nd,nd->n", gallery.text_embed, gallery.image_embed)
    return {
        "format_version": 1,
        "split": settings.split,
        "rows": len(rows),
        "draws": settings.draws,
        "gallery": len(rows),
        "sample": settings.sample.model_dump(mode="json"),
        "text_image_cosine": interval(baseline, settings),
        "predictors": results,
    }


def row_values(
    draw: Draw, dataset: EmbeddingDataset, rows: np.ndarray, gallery: EmbeddingBatch, max_text_len: int
) -> dict[str, np.ndarray]:
    """Every metric of one predictor for every row: name -> `[N]`."""
    parts: dict[str, list[np.ndarray]] = {}
    for block, start in enumerate(range(0, len(rows), BLOCK_ROWS)):
        chosen = slice(start, start + BLOCK_ROWS)
        batch = dataset.take(rows[chosen], max_text_len)
        draws = draw(batch, block).astype(np.float64)  # [B, K, D]
        if not np.isfinite(draws).all():
            raise InputError("the prior draws embeddings that are not finite; train again with a lower learning rate")
        unrelated = gallery.text_embed[(np.arange(start, start + len(batch.rows)) + 1) % len(rows)]
        values = {
            "energy_score": energy_score(draws, batch.image_embed),
            "cosine_to_image": np.einsum("bkd,bd->bk", draws, batch.image_embed).mean(axis=1),
            "cosine_to_text": np.einsum("bkd,bd->bk", draws, batch.text_embed).mean(axis=1),
            "cosine_to_unrelated_caption": np.einsum("bkd,bd->bk", draws, unrelated).mean(axis=1),
            **_recalls(draws, batch.image_embed, gallery.image_embed),
        }
        for name, column in values.items():
            parts.setdefault(name, []).append(column)
    return {name: np.concatenate(columns) for name, columns in parts.items()}


def energy_score(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The energy score of K draws `[B, K, D]` against the truth `[B, D]`: `[B]`.

    The second term is the unbiased mean over pairs of different draws. One draw is taken as a point prediction, whose
    spread is 0.
    """
    count = draws.shape[1]
    error = np.linalg.norm(draws - truth[:, None], axis=-1).mean(axis=1)
    if count == 1:
        return np.asarray(error)
    spread = np.zeros(len(draws))
    for shift in range(1, count):  # each shift pairs every draw with another one
        spread += np.linalg.norm(draws - np.roll(draws, shift, axis=1), axis=-1).sum(axis=1)
    return np.asarray(error - spread / (count * (count - 1)) / 2)


def _recalls(draws: np.ndarray, truth: np.ndarray, gallery: np.ndarray) -> dict[str, np.ndarray]:
    """Share of a row's draws whose true image is among the nearest of the gallery: name -> `[B]`."""
    similarity = draws @ gallery.T.astype(np.float64)  # [B, K, N]
    own = np.einsum("bkd,bd->bk", draws, truth)
    # copies of the true image, and float rounding, do not count against it
    rank = (similarity > own[..., None] + 1e-9).sum(axis=-1)  # [B, K]
    return {f"recall_at_{n}": (rank < n).mean(axis=1) for n in RECALL_AT}


def interval(values: np.ndarray, settings: EvaluateSettings) -> dict[str, float]:
    """Mean of per-row values `[N]` with its 95% percentile bootstrap interval (Efron 1979)."""
    random = np.random.default_rng([settings.seed, 0])
    means = np.array([_resampled_mean(values, random) for _ in range(settings.bootstrap_samples)])
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def _resampled_mean(values: np.ndarray, random: np.random.Generator) -> float:
    return float(values[random.integers(0, len(values), len(values))].mean())


def prior_draws(prior: Prior, settings: EvaluateSettings) -> Draw:
    """The prior as a predictor of K draws a row."""

    def draw(batch: EmbeddingBatch, block: int) -> np.ndarray:
        text_embed = torch.from_numpy(batch.text_embed)
        states = None if batch.token_states is None else torch.from_numpy(batch.token_states)
        noise = _block_noise(settings.seed, block, len(batch.rows), settings.draws, prior.config.embed_dim)
        return F.normalize(prior.draw(text_embed, states, settings.draws, settings.sample, noise), dim=-1).numpy()

    return draw


def _block_noise(seed: int, block: int, rows: int, draws: int, embed_dim: int) -> Iterator[torch.Tensor]:
    """Endless noise `[rows * K, D]`, cut from that of a full block: a row's does not depend on how many follow."""
    random = np.random.Generator(np.random.Philox(key=np.array([seed, _FIRST_BLOCK_KEY + block], np.uint64)))
    while True:
        noise = random.standard_normal((BLOCK_ROWS * draws, embed_dim), np.float32)
        yield torch.from_numpy(noise[: rows * draws])


def mean_shift(dataset: EmbeddingDataset, settings: EvaluateSettings) -> Draw:
    """The text embedding moved by the mean difference of image and text over training rows, as a point prediction."""
    batch = dataset.take(_training_rows(dataset, settings)[:_MEAN_SHIFT_ROWS])
    shift = (batch.image_embed - batch.text_embed).mean(axis=0, dtype=np.float64)

    def draw(batch: EmbeddingBatch, block: int) -> np.ndarray:
        moved = batch.text_embed + shift
        return np.asarray(moved / np.linalg.norm(moved, axis=-1, keepdims=True))[:, None]

    return draw


def random_training_image(dataset: EmbeddingDataset, settings: EvaluateSettings) -> Draw:
    """Image embeddings of K random training rows for each caption: the right distribution, blind to the text."""
    rows = _training_rows(dataset, settings)

    def draw(batch: EmbeddingBatch, block: int) -> np.ndarray:
        random = np.random.default_rng([settings.seed, 1, block])
        chosen = rows[random.integers(0, len(rows), (len(batch.rows), settings.draws))]
        embeds = dataset.take(chosen.reshape(-1)).image_embed
        return embeds.reshape(*chosen.shape, -1)

    return draw


def _training_rows(dataset: EmbeddingDataset, settings: EvaluateSettings) -> np.ndarray:
    return dataset.epoch_order("train", settings.seed, 0)
