"""Embed: image shards -> embedding shards in clip-retrieval's layout, one for one, every sample accounted for."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from .clip import clip_location, clip_source, load_encoder
from .config import ComputeSettings, EmbedSettings
from .device import resolve
from .errors import FolderError, InputError
from .shards import (
    READ_BLOCK_ROWS,
    Manifest,
    ShardCommit,
    ShardRecord,
    StageFolder,
    check_stage,
    difference,
    embedding_shard_name,
    fingerprint,
    open_stage,
    pending_shards,
)
from .stage import ProgressCallback, StagePlan, StageResult, free_bytes, no_progress, require_success, run_shards
from .storage import Store
from .urls import EMBED_COLUMNS
from .webdataset import ImageShard, Sample, list_image_shards, read_samples, read_shard_table

STAGE = "embed"

_FAILURES = pa.schema([("key", pa.string()), ("error", pa.string())])

_LEFT_BEHIND = ("status", "error_message", "caption", *EMBED_COLUMNS)
"""Columns of the image shard that every embedded row has the same, or that are written in their own place."""

_ASSUMED_PAIRS_PER_SECOND = {"cpu": 8.0, "cuda": 1000.0}
"""For the estimate of `--dry-run`: ViT-B/32 in float32 on 2 cores, and on one GPU."""
_ASSUMED_DIM = 768
_ASSUMED_TOKENS = 16


@dataclass(frozen=True)
class EmbedTask:
    """One image shard to embed."""

    shard: ImageShard
    input: str
    """Fingerprint of what is embedded: the shard, or its first samples."""
    limit: int | None
    """Embed only the first samples of the shard, this many."""

    @property
    def name(self) -> str:
        return embedding_shard_name(int(self.shard.name))


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
    """Embed the images and captions of a folder of webdataset shards, or what is missing of them.

    Args:
        images: folder that `download` or img2dataset wrote.
        embeddings: folder of the embedding shards.
        limit: only the first samples, this many.
        overwrite: discard what the folder holds and embed anew.

    Raises:
        InputError: there are no images, or the CLIP cannot be loaded.
        FolderError: the folder holds other work, other settings, or embeddings of other images.
    """
    settings = resolve(settings or EmbedSettings(), "embed")
    source, store = Store(images), Store(embeddings)
    manifest = embed_manifest(settings)
    found = check_stage(store, manifest, overwrite=overwrite)
    tasks = plan_tasks(source, limit, None if overwrite else found, embeddings)
    manifest.input = {"shards": len(tasks), "sha256": fingerprint([task.input for task in tasks])}
    inputs = {task.name: task.input for task in tasks}
    with open_stage(store, manifest, overwrite=overwrite) as folder:
        if folder.pending(inputs):
            _record_clip(folder, settings)
        result = run_shards(
            folder,
            lambda pending: (task for task in tasks if task.name in set(pending)),
            inputs,
            partial(EmbedWorker, source, store, settings, folder.manifest),
            compute or ComputeSettings(),
            progress,
        )
    require_success(result, "an embedding")
    return result


def embed_manifest(settings: EmbedSettings) -> Manifest:
    """The manifest of resolved settings before any work: paths of the CLIP are replaced by hashes."""
    return Manifest(STAGE, {**settings.identity(), "clip": clip_source(settings.clip)}, input={})


def plan_embed(
    images: str, embeddings: str, settings: EmbedSettings, *, limit: int | None = None, overwrite: bool = False
) -> StagePlan:
    """What `embed` would do, without doing it."""
    settings = resolve(settings, "embed")
    store = Store(embeddings)
    manifest = embed_manifest(settings)
    found = check_stage(store, manifest, overwrite=overwrite)
    kept = None if overwrite else found
    tasks = plan_tasks(Store(images), limit, kept, embeddings)
    names = pending_shards(store, kept or manifest, {task.name: task.input for task in tasks})
    pending = [task for task in tasks if task.name in names]
    rows = sum(task.shard.samples if task.limit is None else task.limit for task in pending)
    values = 2 + (_ASSUMED_TOKENS if settings.token_states else 0)
    return StagePlan(
        stage=STAGE,
        folder=store.url,
        units=len(tasks),
        pending_units=len(pending),
        unit="shards",
        pending_rows=rows,
        bytes_needed=rows * values * _ASSUMED_DIM * 2,
        bytes_free=free_bytes(store),
        seconds=rows / _ASSUMED_PAIRS_PER_SECOND[settings.device],
    )


def plan_tasks(source: Store, limit: int | None, found: Manifest | None, folder: str) -> list[EmbedTask]:
    """A task for each image shard, up to `limit` samples in all; what a folder holds beyond that is kept.

    Raises:
        FolderError: the folder holds embeddings of a shard that the images do not have.
    """
    done = found.shards if found is not None else {}
    shards = list_image_shards(source)
    orphans = set(done) - {embedding_shard_name(int(shard.name)) for shard in shards}
    if orphans:
        raise FolderError(
            f"{folder} holds shard {min(orphans)}, for which {source.url} has no images; "
            "name the folder it was made from, or another folder to write to"
        )
    tasks: list[EmbedTask] = []
    left = limit
    for shard in shards:
        held = _samples_held(done.get(embedding_shard_name(int(shard.name))), shard)
        if left == 0 and held is None:
            break
        samples = shard.samples if left is None else max(held or 0, min(left, shard.samples))
        if samples < shard.samples:
            tasks.append(EmbedTask(shard, fingerprint([shard.fingerprint, samples]), samples))
        else:
            tasks.append(EmbedTask(shard, shard.fingerprint, None))
        left = None if left is None else max(0, left - shard.samples)
    return tasks


def _samples_held(record: ShardRecord | None, shard: ImageShard) -> int | None:
    """How many samples of an image shard a record covers, the failed ones included; None if it is of other data."""
    if record is None:
        return None
    if record.input == shard.fingerprint:
        return shard.samples
    samples = sum(record.counts.values())
    return samples if record.input == fingerprint([shard.fingerprint, samples]) else None


def _record_clip(folder: StageFolder, settings: EmbedSettings) -> None:
    """Put the CLIP into the manifest, or hold it against the one that is there."""
    identity = load_encoder(settings).identity
    known = folder.manifest.about.get("clip")
    if known is not None and known != identity and folder.manifest.shards:
        raise FolderError(
            f"{folder.store.url} was made with another CLIP ({difference(known, identity)}); "
            "name another folder, or use --overwrite to discard what is there"
        )
    # where the weights are may change without changing a byte, so it stands beside the identity
    folder.describe(clip=identity, clip_settings=clip_location(settings.clip))


@dataclass
class _Embedded:
    """What has come of a shard so far."""

    keys: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    image_embeds: list[torch.Tensor] = field(default_factory=list)
    text_embeds: list[torch.Tensor] = field(default_factory=list)
    token_states: list[torch.Tensor] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Key and reason of each sample that gave no row."""


@dataclass(frozen=True)
class _Pair:
    key: str
    caption: str
    pixels: torch.Tensor


class EmbedWorker:
    """Embeds one shard after the other in this process, with one model."""

    def __init__(self, source: Store, store: Store, settings: EmbedSettings, manifest: Manifest) -> None:
        self._source = source
        self._store = store
        self._settings = settings
        self._settings_fingerprint = manifest.settings_fingerprint
        self._encoder = load_encoder(settings)
        if self._encoder.identity != manifest.about["clip"]:
            raise InputError(f"the CLIP {settings.clip.model} has other weights on this worker than on the driver")

    def __call__(self, task: EmbedTask) -> ShardRecord:
        start = time.time()
        done = _Embedded()
        for batch in self._batches(task, done):
            self._encode(batch, done)
        commit = ShardCommit(self._store, task.name, input=task.input, settings=self._settings_fingerprint)
        rows = self._write(task, done, commit)
        seconds = time.time() - start
        rate = {"rows": rows, "seconds": seconds, "samples_per_second": rows / seconds if seconds else None}
        commit.write_log(f"stats/stats_{task.name}.json", rate)
        reasons = collections.Counter(reason.partition(":")[0] for _, reason in done.failures)
        return commit.commit(rows=rows, counts={"success": rows, **reasons})

    def _batches(self, task: EmbedTask, done: _Embedded) -> Iterator[list[_Pair]]:
        """Batches of decoded pairs; the next one is decoded while the model works on this one."""
        held: list[_Pair] = []
        size = self._settings.batch_size
        ahead: collections.deque[tuple[Sample, Future[_Pair]]] = collections.deque()
        samples = read_samples(self._source, task.shard)
        with ThreadPoolExecutor(self._settings.decode_threads) as threads:
            taken = 0
            exhausted = False
            while ahead or not exhausted:
                while len(ahead) < 2 * size and not exhausted:
                    sample = next(samples, None) if task.limit is None or taken < task.limit else None
                    if sample is None:
                        exhausted = True
                    else:
                        taken += 1
                        ahead.append((sample, threads.submit(self._decode, sample)))
                if not ahead:
                    break
                sample, future = ahead.popleft()
                try:
                    held.append(future.result())
                except _BadSample as error:
                    done.failures.append((sample.key, str(error)))
                if len(held) == size:
                    yield held
                    held = []
            if held:
                yield held

    def _decode(self, sample: Sample) -> _Pair:
        if sample.image is None:
            raise _BadSample("missing_image")
        if sample.caption is None:
            raise _BadSample("missing_caption")
        try:
            caption = sample.caption.decode()
        except UnicodeDecodeError as error:
            raise _BadSample(f"caption_not_utf8: {error}") from None
        try:
            return _Pair(sample.key, caption, self._encoder.decode(sample.image))
        except Exception as error:  # a decoder raises anything on hostile bytes; the sample is named, never lost
            raise _BadSample(f"image_decode: {str(error)[:200]}") from None

    def _encode(self, batch: list[_Pair], done: _Embedded) -> None:
        image_embed = self._encoder.encode_images(torch.stack([pair.pixels for pair in batch]))
        text = self._encoder.encode_texts([pair.caption for pair in batch], self._settings.token_states)
        sound = torch.isfinite(image_embed.norm(dim=-1)) & torch.isfinite(text.text_embed.norm(dim=-1))
        if not sound.all():
            bad = batch[int(torch.nonzero(~sound)[0])].key
            raise InputError(
                f"the CLIP gives NaN or infinity for sample {bad}; try embed.dtype=float32 or other weights"
            )
        done.keys += [pair.key for pair in batch]
        done.captions += [pair.caption for pair in batch]
        done.image_embeds.append(image_embed)
        done.text_embeds.append(text.text_embed)
        if text.token_states is not None:
            done.token_states.append(text.token_states.half())
            done.lengths += text.lengths

    def _write(self, task: EmbedTask, done: _Embedded, commit: ShardCommit) -> int:
        dim = self._encoder.identity["embed_dim"]
        norms = {}
        for kind, parts in (("img", done.image_embeds), ("text", done.text_embeds)):
            embeds = torch.cat(parts) if parts else torch.empty(0, dim)  # [N, D]
            norm = embeds.norm(dim=-1, keepdim=True)
            norms[kind] = norm[:, 0].numpy()
            _save(commit, f"{kind}_emb/{kind}_emb_{task.name}.npy", (embeds / norm).half().numpy())
        if self._settings.token_states:
            width = self._encoder.identity["token_width"]
            states = torch.cat(done.token_states) if done.token_states else torch.empty(0, width).half()
            offsets = np.concatenate([[0], np.cumsum(done.lengths, dtype=np.int64)]).astype(np.int64)
            _save(commit, f"token_states/token_states_{task.name}.npy", states.numpy())
            _save(commit, f"token_states/offsets_{task.name}.npy", offsets)
        metadata = self._metadata(task, done).append_column("image_norm", pa.array(norms["img"]))
        metadata = metadata.append_column("text_norm", pa.array(norms["text"]))
        with commit.create(f"metadata/metadata_{task.name}.parquet") as file:
            pq.write_table(metadata, file, row_group_size=READ_BLOCK_ROWS)
        failures = [{"key": key, "error": reason} for key, reason in done.failures]
        with commit.create(f"failures/failures_{task.name}.parquet") as file:
            pq.write_table(pa.Table.from_pylist(failures, _FAILURES), file)
        return len(done.keys)

    def _metadata(self, task: EmbedTask, done: _Embedded) -> pa.Table:
        """clip-retrieval's columns, then the key and whatever the image shard knows of the row, joined by key."""
        columns = {"image_path": pa.array(done.keys, pa.string()), "caption": pa.array(done.captions, pa.string())}
        table = read_shard_table(self._source, task.shard)
        if table is None:
            return pa.table({**columns, "key": columns["image_path"]})
        position = {key: row for row, key in enumerate(table.column("key").to_pylist())}
        missing = [key for key in done.keys if key not in position]
        if missing:
            raise InputError(
                f"{self._source.url}/{task.shard.table_name} has no row for key {missing[0]!r} of "
                f"{task.shard.tar_name}; download that shard again"
            )
        rows = table.take(pa.array([position[key] for key in done.keys], pa.int64()))
        carried = {name: rows.column(name) for name in rows.schema.names if name not in _LEFT_BEHIND}
        return pa.table({**carried, **columns}).select([*columns, *(name for name in carried if name not in columns)])


class _BadSample(Exception):
    """A sample that gives no row; the message is the reason."""


def _save(commit: ShardCommit, name: str, values: np.ndarray) -> None:
    with commit.create(name) as file:
        np.save(file, values)
