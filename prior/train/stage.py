"""Train stage: plan, start and resume training, in this process or on Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...pipeline.clip.settings import ClipSettings
from ...pipeline.compute.cluster import describe_cluster
from ...pipeline.compute.device import describe_device, with_gpus
from ...pipeline.compute.settings import ComputeSettings
from ...pipeline.compute.speed import estimate_flops
from ...pipeline.compute.stage import ProgressCallback, StagePlan, StageResult, TimeBasis, free_bytes, no_progress
from ...pipeline.contract.commit import open_stage
from ...pipeline.contract.manifest import Manifest, read_manifest
from ...pipeline.contract.storage import Store
from ...pipeline.errors import InputError, Interrupted
from ...pipeline.read.dataset import EmbeddingDataset
from ...pipeline.read.settings import ReadSettings
from ..interchange.adapter_file import ADAPTER_NAME
from ..model.config import build_network
from ..model.folder import CONFIG_NAME, WEIGHTS_NAME, clear_states, load_state
from ..model.train_manifest import RECORD, STAGE, recorded_files
from .job import TrainJob, make_job, resolve_training, resolved_identity
from .loop import run_loop
from .output import STATS_NAME, read_seconds_per_step
from .progress import LocalWatch, Outcome
from .resume import check_training, record_changes, refuse_other_embeddings, surplus_note
from .settings import TrainSettings

if TYPE_CHECKING:
    from ...pipeline.clip.cost import ClipCost  # takes seconds to import

_CAPTION_TOKENS = 16
"""Number of tokens per caption assumed for the time estimate, typical of a caption of a dozen words."""


def train(
    embeddings: str = "data/embeddings",
    prior: str = "data/prior",
    settings: TrainSettings | None = None,
    read: ReadSettings | None = None,
    compute: ComputeSettings | None = None,
    *,
    clip: ClipSettings | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback = no_progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> StageResult:
    """Train a prior on a folder of embeddings, or resume from the newest checkpoint.

    Args:
        embeddings: embeddings folder, written by `embed` or clip-retrieval, or published by LAION.
        prior: folder to write the prior to.
        settings: training settings; None uses the defaults.
        read: settings for reading and splitting the embeddings; None uses the defaults.
        compute: backend, number of workers and resources per worker; None uses the defaults. On Ray, every worker must
            be able to access the embeddings folder and the prior folder.
        clip: CLIP model that produced the embeddings; used only if the embeddings folder does not name a CLIP model.
        limit: total number of steps after which to write a checkpoint and stop. The same call without `limit` resumes
            from this checkpoint. None trains to the last step.
        overwrite: discard the content of the prior folder and start again.
        progress: called with the number of completed steps, the total number of steps and a text for the progress bar.
        should_stop: called repeatedly during training. When it returns True, training writes a checkpoint and stops.

    Raises:
        InputError: the embeddings are missing or damaged, or lack data that the settings need.
        SettingsError: settings contradict each other, or a tracker is not installed.
        FolderError: the prior folder contains other files, or a prior trained with other settings or embeddings.
        Interrupted: `should_stop` returned True.
    """
    start = time.monotonic()
    compute = compute or ComputeSettings()
    store, wanted = Store(prior), settings or TrainSettings()
    recorded = read_manifest(store)
    dataset = EmbeddingDataset(
        embeddings, read, known_files=recorded_files(recorded), tell=lambda note: progress(0, None, note)
    )
    job = make_job(dataset, store, wanted, compute, clip, limit)
    device = describe_device(wanted, job.settings, compute)
    compute = with_gpus(compute, wanted)
    manifest, rows = job.manifest(), len(dataset.rows("train"))
    if rows == 0:
        raise InputError(f"{dataset.store.url}: no row is left to train on; lower the fractions in `read`")
    if wanted.patience is not None and not len(dataset.rows("validation")):
        raise InputError(
            f"train.patience={wanted.patience}: no row of {dataset.store.url} is in the validation split; raise "
            "read.validation_fraction, or leave patience out"
        )
    if not overwrite:
        refuse_other_embeddings(store, recorded, manifest, dataset)
    recorded = check_training(store, manifest, job.settings, overwrite=overwrite)
    steps, done_now = job.settings.steps, 0
    notes = dataset.notes
    surplus = None if overwrite else surplus_note(store, recorded, steps)
    with open_stage(store, manifest, overwrite=overwrite) as folder:
        if overwrite:
            clear_states(store)
            # the prior may remain from an interrupted run that extended it
            for name in (CONFIG_NAME, WEIGHTS_NAME, ADAPTER_NAME, STATS_NAME):
                store.remove(name)
        if surplus is not None:
            notes = [*notes, surplus]
        elif folder.pending({RECORD: job.record_input}):
            job = record_changes(folder, job)
            folder.withdraw([RECORD])
            outcome = _run(job, dataset, compute, progress, should_stop)
            if outcome.stopped:
                raise Interrupted(
                    f"stopped after step {outcome.step:,} of {steps:,}; the same command resumes from there"
                )
            if outcome.record is not None:
                folder.add(outcome.record)
            done_now, notes = outcome.step - outcome.first_step, outcome.notes
        else:
            progress(steps, steps, "")
        folder.finish()
        seconds, cluster = time.monotonic() - start, describe_cluster(compute)
        return StageResult(
            STAGE, store.url, steps, done_now, "steps", rows, seconds,
            notes=[*job.notes, *notes], device=device, cluster=cluster,
        )  # fmt: skip


def _run(
    job: TrainJob,
    dataset: EmbeddingDataset,
    compute: ComputeSettings,
    progress: ProgressCallback,
    should_stop: Callable[[], bool],
) -> Outcome:
    """Run the training loop in this process or on Ray, depending on `compute.backend`."""
    if compute.backend == "ray":
        from .on_ray import train_on_ray

        return train_on_ray(job, compute, progress, should_stop)
    return run_loop(job, dataset, LocalWatch(job.settings.steps, progress, should_stop))


def plan_train(
    embeddings: str,
    prior: str,
    settings: TrainSettings,
    read: ReadSettings,
    compute: ComputeSettings | None = None,
    *,
    clip: ClipSettings | None = None,
    overwrite: bool = False,
) -> StagePlan:
    """Estimate the steps, disk space and time that `train` would need with the same arguments, without training.

    If the prior folder contains an unfinished training run and `overwrite` is False, the time covers only the remaining
    steps, and is computed from the time that the completed steps took. For a finished prior, no disk space or time is
    needed.
    """
    compute = compute or ComputeSettings()
    store = Store(prior)
    recorded = read_manifest(store)
    is_new = recorded is None or overwrite  # a new run has no recorded hashes to compare the embeddings with
    dataset = EmbeddingDataset(embeddings, read, known_files=recorded_files(recorded), hash_files=not is_new)
    job = make_job(dataset, store, settings, compute, clip)
    settings, manifest = job.settings, job.manifest()
    if not overwrite:
        refuse_other_embeddings(store, recorded, manifest, dataset)
    recorded = check_training(store, manifest, settings, overwrite=overwrite)
    left, measured = settings.steps, None
    if recorded is not None and not overwrite:
        state = load_state(store, manifest.settings_fingerprint)
        record = recorded.shards.get(RECORD)
        is_done = record is not None and record.input == job.record_input
        is_done |= surplus_note(store, recorded, settings.steps) is not None
        left = 0 if is_done else settings.steps - (state.step if state else 0)
        measured = read_seconds_per_step(store, job.fingerprint) if state else None
    weights = sum(value.numel() for value in build_network(job.config).parameters())
    notes: list[str] = []
    if measured is None:
        cost = _clip_cost(job)
        seconds = _estimate_step(job, weights, cost)
        if left and cost is None and settings.text_condition == "online":
            notes = [
                f"the time does not include the text tower of the CLIP {job.config.clip_settings.get('model')}, whose "
                "size is not known before it is loaded"
            ]
    else:
        seconds = measured
    basis: TimeBasis = "estimate" if measured is None else "measured"
    return StagePlan(
        stage=STAGE,
        folder=store.url,
        units=settings.steps,
        pending_units=left,
        unit="steps",
        pending_rows=left * settings.batch_size,
        # float32: prior and best weights; per checkpoint, network, averaged weights and two Adam moments
        bytes_needed=weights * 4 * (2 + 4 * settings.keep_checkpoints) if left else 0,
        bytes_free=free_bytes(store),
        seconds=left * seconds / compute.workers if left else 0.0,
        time_basis=basis,
        notes=notes,
    )


def _clip_cost(job: TrainJob) -> ClipCost | None:
    """Return the operations of the CLIP model that encodes captions during training.

    Return None if they are unknown, or if training encodes no captions.
    """
    if job.settings.text_condition != "online":
        return None
    from ...pipeline.clip.encoder import clip_cost  # takes seconds to import

    return clip_cost(ClipSettings(**job.config.clip_settings))


def _estimate_step(job: TrainJob, weights: int, cost: ClipCost | None) -> float:
    """Return the estimated time of a training step in one worker, in seconds.

    Validation runs, checkpoints and reading are left out.

    Args:
        weights: number of weights of the network.
        cost: operations of the CLIP model that encodes captions during training; None if they are left out.
    """
    settings, network = job.settings, job.settings.network
    passes = 6 * network.evaluations + 2 * settings.activation_checkpointing  # 2 forward, 4 backward
    flops = passes * weights * (network.text_tokens + settings.noise_draws * network.draw_tokens)
    if cost is not None:
        flops += cost.flops_of_caption(_CAPTION_TOKENS)
    return settings.batch_size * flops / estimate_flops(settings.device, settings.dtype, settings.threads)


def check_prior_folder(
    prior: str, settings: TrainSettings, read: ReadSettings, compute: ComputeSettings, *, overwrite: bool = False
) -> None:
    """Check that training can start or resume in a prior folder, without opening the embeddings or the initial prior.

    If the folder contains a training run, the embeddings and the initial prior are assumed to be the same as in that
    run.

    Raises:
        FolderError: the folder contains unrelated files or the result of another stage, or its training run cannot be
            resumed with these settings.
    """
    store = Store(prior)
    manifest = read_manifest(store)
    resolved = resolve_training(settings, compute)
    identity = resolved_identity(resolved, read)
    # the embeddings, their CLIP model and the initial prior are not known yet, so assume that they are unchanged
    known = {} if manifest is None else manifest.settings
    identity = {**{name: value for name, value in known.items() if name not in identity}, **identity}
    if settings.init_from is not None and "train" in known:
        identity["train"] = {
            **identity["train"],
            **{part: known["train"].get(part) for part in ("network", "diffusion")},
        }
    check_training(store, Manifest(STAGE, identity, input={}), settings, overwrite=overwrite)
