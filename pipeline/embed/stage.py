"""Embed stage: plans, runs and resumes the embedding of images and captions.

The output has the file layout of clip-retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from ..clip.encoder import check_clip, clip_cost, clip_location, clip_source, load_encoder
from ..clip.identity import clip_difference, is_same_clip
from ..compute.device import describe_device, resolve, with_gpus
from ..compute.settings import ComputeSettings
from ..compute.stage import (
    ProgressCallback,
    StagePlan,
    StageResult,
    TimeBasis,
    free_bytes,
    no_progress,
    require_space,
    require_success,
    run_shards,
)
from ..contract.arrow.parquet import open_parquet
from ..contract.commit import StageFolder, check_stage, open_stage
from ..contract.empty_inputs import FILE_NAME as EMPTY_INPUTS_NAME
from ..contract.file_marks import Tell
from ..contract.manifest import Manifest, ShardRecord, embedding_shard_name, fingerprint, pending_shards, read_manifest
from ..contract.storage import Store
from ..contract.tar_samples import NOT_TOGETHER, NOT_TOGETHER_FIX
from ..errors import FolderError, InputError
from .clip_retrieval import check_settings
from .clip_retrieval_package import require_package
from .empty_inputs import store_empty_inputs
from .engines import EmbedTask
from .estimate import SHARD_BYTES, Measured, estimate_bytes, estimate_seconds, measure
from .input_marks import RecordedInputs
from .inputs import InputShard, list_input_shards, open_input
from .settings import EmbedSettings
from .worker import EmbedWorker, failures_name

STAGE = "embed"


def embed(
    images: str = "data/images",
    embeddings: str = "data/embeddings",
    settings: EmbedSettings | None = None,
    *,
    compute: ComputeSettings | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback = no_progress,
) -> StageResult:
    """Embed images and captions with a CLIP model. Complete shards are not embedded again.

    Args:
        images: folder of tars, such as `download` or img2dataset write, folder of image and caption files, or folder of
            Parquet tables with captions or encoded images. It can also be one tar, one table, or a pattern that names
            several of them, such as `train-{0000..0012}.tar`.
        embeddings: output folder for the embedding shards.
        settings: embed settings; None for the defaults.
        compute: compute settings, such as the backend; None for the defaults.
        limit: number of samples to embed, starting with the first; None for all.
        overwrite: True to discard the content of the embeddings folder and start again.
        progress: callback that receives progress updates.

    Returns:
        Result of the stage, with sample counts per outcome.

    Raises:
        InputError: the input contains no samples, no sample could be embedded, or the CLIP model cannot
            be loaded.
        FolderError: the embeddings folder was made by another stage, with other settings or from other images, or the
            disk does not have enough free space.
    """
    wanted, compute = settings or EmbedSettings(), compute or ComputeSettings()
    settings = resolve(wanted, "embed", compute)
    device = describe_device(wanted, settings, compute)
    compute = with_gpus(compute, wanted)
    source, store = open_input(images), Store(embeddings)
    manifest = embed_manifest(settings, None if overwrite else store)
    existing = check_stage(store, manifest, overwrite=overwrite)
    earlier = None if overwrite else existing
    tasks, recorded = plan_tasks(images, settings, limit, earlier, store, lambda note: progress(0, None, note))
    if store.is_local:
        known = earlier or manifest
        require_space(_plan(store, settings, known, tasks, measure(store, known)))
    manifest.input = {"shards": len(tasks)}
    inputs = {task.name: task.input for task in tasks}
    with open_stage(store, manifest, overwrite=overwrite) as folder:
        if overwrite:
            store.remove(EMPTY_INPUTS_NAME)
        pending = folder.pending(inputs)
        if pending:
            # with Ray, only workers use a GPU; the driver may not have one
            on_cpu = {"device": "cpu"} if compute.backend == "ray" else {}
            _record_clip(folder, settings.model_copy(update=on_cpu))
        recorded.record_again(store, set(inputs).difference(pending))
        result = run_shards(
            folder,
            lambda pending: (task for task in tasks if task.name in set(pending)),
            inputs,
            partial(EmbedWorker, source, store, settings, folder.manifest),
            compute,
            progress,
            device,
        )
        notes = store_empty_inputs(folder, settings, compute, required=bool(pending))
        read = [folder.manifest.shards[task.name].input for task in tasks]  # known only once all shards have been read
        folder.manifest.input["sha256"] = fingerprint(read)
        folder.describe()
    processed = sum(folder.manifest.shards[task.name].input_samples for task in tasks)
    result = replace(_compare_counts(result, tasks, processed), notes=[*_notes(result.counts, recorded.moved), *notes])
    diagnosis = "" if result.counts.get("success") else _first_failure(store, folder.manifest, result.counts)
    require_success(result, "an embedding", diagnosis)
    return result


def _compare_counts(result: StageResult, tasks: list[EmbedTask], processed: int) -> StageResult:
    """Check that the shards of the output account for every input sample.

    The check is skipped if an input shard is damaged, because the records then leave out some of its samples.

    Args:
        result: result of the stage.
        tasks: tasks of all shards.
        processed: number of samples that the records of the shards account for, including those that failed.

    Returns:
        The result, with the number of input samples added to its statistics as `input_samples`.

    Raises:
        InputError: fewer samples were processed than the input has, and no input shard is damaged.
    """
    samples = sum(task.shard.samples if task.limit is None else task.limit for task in tasks)
    if processed < samples and "damaged_shard" not in result.counts:
        raise InputError(
            f"{result.folder} accounts for {processed:,} of the {samples:,} samples of its input; was the input "
            "changed while it was read? Embed it again with --overwrite"
        )
    return replace(result, statistics={"input_samples": samples})


def _notes(counts: Mapping[str, int], moved: Sequence[str]) -> list[str]:
    """Return remarks about the input: tars that are not sorted, and shards that are made from other files than before.

    Args:
        counts: number of rows with each outcome.
        moved: names of the embedding shards that were made from other files.
    """
    notes = []
    if number := counts.get(NOT_TOGETHER):
        notes.append(f"{number:,} samples: {NOT_TOGETHER_FIX}")
    if moved:
        notes.append(
            f"{len(moved):,} shards, from {moved[0]} on, had been made from other files and were embedded again: "
            "inputs are numbered in the order of their names, so that a new one moves those after it"
        )
    return notes


def _first_failure(store: Store, manifest: Manifest, counts: Mapping[str, int]) -> str:
    """Return the key and the error of the first sample that failed for the most frequent reason, as text.

    If the tars are not sorted, this is the reason, although most samples then fail because they lack a caption.

    The text is part of the error message that is shown if no sample could be embedded. It is empty if there are no
    samples.
    """
    most = NOT_TOGETHER if NOT_TOGETHER in counts else max(counts, key=lambda outcome: counts[outcome], default="")
    for name, record in sorted(manifest.shards.items()):
        if record.counts.get(most):
            with store.open(failures_name(name)) as file:
                failures = open_parquet(file).read(use_threads=False).to_pylist()
            first = next(row for row in failures if row["error"].partition(":")[0] == most)
            return f"sample {first['key']!r}: {first['error']}"
    return ""


def embed_manifest(settings: EmbedSettings, store: Store | None) -> Manifest:
    """Return a new manifest for an embeddings folder. It contains the settings, but no shards yet.

    In the manifest's settings, the paths of local CLIP files are replaced by hashes of the files.

    Args:
        settings: embed settings, with `device` and `threads` resolved to actual values.
        store: embeddings folder to resume; None for a new folder. If the manifest in this folder has another name for
            the same CLIP model, that name is used, so that the folder can be resumed.

    Raises:
        SettingsError: the engine is `clip-retrieval`, which does not support one of the settings.
        InputError: a local CLIP file or folder is missing.
        PriorkitError: the engine is `clip-retrieval`, which is not installed.
    """
    if settings.engine == "clip-retrieval":
        check_settings(settings)
        require_package()
    source, earlier = clip_source(settings.clip), None if store is None else read_manifest(store)
    if earlier is not None and earlier.stage == STAGE and source != earlier.settings.get("clip"):
        known = earlier.about.get("clip", {})
        if isinstance(known, dict) and is_same_clip(known, {}, settings.clip):
            source = earlier.settings["clip"]
    return Manifest(STAGE, {**settings.identity(), "clip": source}, input={})


def plan_embed(
    images: str,
    embeddings: str,
    settings: EmbedSettings,
    *,
    compute: ComputeSettings | None = None,
    limit: int | None = None,
    overwrite: bool = False,
) -> StagePlan:
    """Return the numbers of shards and samples that `embed` would process, and estimates of the time and disk space.

    Nothing is embedded or written. See `embed` for the arguments.
    """
    compute = compute or ComputeSettings()
    settings = resolve(settings, "embed", compute)
    store = Store(embeddings)
    manifest = embed_manifest(settings, None if overwrite else store)
    existing = check_stage(store, manifest, overwrite=overwrite)
    earlier = None if overwrite else existing
    tasks, _ = plan_tasks(images, settings, limit, earlier, store)
    measured = measure(store, earlier or manifest)
    plan = _plan(store, settings, earlier or manifest, tasks, measured)
    if not plan.pending_units:
        return plan
    notes: list[str] = []
    if measured is None:
        check_clip(settings.clip)  # the estimate passes over models that do not exist
        cost = clip_cost(settings.clip)
        seconds = estimate_seconds(settings, cost)
        if cost is None:
            notes = [
                f"the time is estimated for a ViT-L/14, because the size of embed.clip.model={settings.clip.model} is "
                "not known before it is loaded"
            ]
    else:
        seconds = measured.seconds_per_sample
    basis: TimeBasis = "estimate" if measured is None else "measured"
    return replace(plan, seconds=plan.pending_rows * seconds / compute.workers, time_basis=basis, notes=notes)


def _plan(
    store: Store, settings: EmbedSettings, manifest: Manifest, tasks: list[EmbedTask], measured: Measured | None
) -> StagePlan:
    """Return the plan for the tasks that are not complete, without an estimate of the time."""
    names = pending_shards(store, manifest, {task.name: task.input for task in tasks})
    pending = [task for task in tasks if task.name in names]
    rows = sum(task.shard.samples if task.limit is None else task.limit for task in pending)
    if measured is None:
        bytes_needed = rows * estimate_bytes(settings) + len(pending) * SHARD_BYTES
    else:
        bytes_needed = rows * measured.bytes_per_sample
    return StagePlan(
        stage=STAGE,
        folder=store.url,
        units=len(tasks),
        pending_units=len(pending),
        unit="shards",
        pending_rows=rows,
        bytes_needed=int(bytes_needed),
        bytes_free=free_bytes(store),
        seconds=0.0,
    )


def plan_tasks(
    images: str, settings: EmbedSettings, limit: int | None, earlier: Manifest | None, folder: Store, tell: Tell = None
) -> tuple[list[EmbedTask], RecordedInputs]:
    """Return one task per input shard, and the current file marks (size, modification time and hash) of source files.

    With a limit, a task may include only the first samples of its shard. Samples beyond the limit are included only if
    they have already been embedded. Shards that lie entirely beyond the limit are included up to, but not including,
    the first one that has not been embedded.

    Args:
        images: folder or file to embed.
        settings: embed settings, with `device` and `threads` resolved to actual values.
        limit: number of samples to embed, starting with the first; None for all.
        earlier: manifest of the embeddings folder; None for a new folder.
        folder: embeddings folder.
        tell: callback that receives progress messages while files are hashed; None for no messages.

    Raises:
        FolderError: the embeddings folder contains a shard that the input does not have.
    """
    done = earlier.shards if earlier is not None else {}
    shards = list_input_shards(images, settings)
    orphans = set(done) - {embedding_shard_name(int(shard.name)) for shard in shards}
    if orphans:
        raise FolderError(
            f"{folder.url} holds shard {min(orphans)}, for which {images} has no input; "
            "name the folder it was made from, or another folder to write to"
        )
    inputs = RecordedInputs(open_input(images), folder, shards, done, tell)
    tasks: list[EmbedTask] = []
    left = limit
    for shard in shards:
        embedded = _embedded_samples(done.get(embedding_shard_name(int(shard.name))), shard, inputs)
        if left == 0 and embedded is None:
            break
        samples = shard.samples if left is None else max(embedded or 0, min(left, shard.samples))
        first = samples if samples < shard.samples else None
        tasks.append(EmbedTask(shard, inputs.fingerprint(shard, first), first))
        left = None if left is None else max(0, left - shard.samples)
    return tasks, inputs


def _embedded_samples(record: ShardRecord | None, shard: InputShard, inputs: RecordedInputs) -> int | None:
    """Return the number of samples of a shard that have already been processed, including those that failed.

    Return None if the shard has no record, or if its input has changed since the record was made.

    Args:
        record: record of the finished embedding shard; None if there is none.
        shard: input shard.
        inputs: current file marks (size, modification time and hash) of the source files.
    """
    if record is None:
        return None
    if record.input == inputs.fingerprint(shard, None):
        return shard.samples
    samples = record.input_samples
    return samples if record.input == inputs.fingerprint(shard, samples) else None


def _record_clip(folder: StageFolder, settings: EmbedSettings) -> None:
    """Record the identity of the CLIP model, which includes a hash of its weights, in the manifest.

    If the folder already has shards, first check that they were embedded with the same CLIP model.

    Raises:
        FolderError: the folder was made with a different CLIP model.
    """
    identity = load_encoder(settings.encoder_settings()).identity
    known = folder.manifest.about.get("clip")
    if known is not None and folder.manifest.shards:
        if differing := clip_difference(known, identity, strict=True):
            raise FolderError(
                f"{folder.store.url} was made with another CLIP ({differing}); "
                "name another folder, or use --overwrite to discard what is there"
            )
        identity = known  # the same CLIP model, possibly under another name
    # the location of the weights does not affect the embeddings, so it is not part of the identity
    folder.describe(clip=identity, clip_settings=clip_location(settings.clip))
