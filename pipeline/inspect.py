"""What is in a stage's folder, and is it sound: bytes against records, embeddings against their norm."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import InputError
from .read import EmbeddingDataset
from .shards import Manifest, differing_files, read_manifest
from .stage import ProgressCallback, no_progress
from .storage import Store
from .webdataset import list_image_shards, read_samples

_UNIT_TOLERANCE = 2e-3
"""How far from 1 the norm of a stored float16 unit vector may be: its rounding is at most 5e-4."""
_BLOCK_ROWS = 4096


@dataclass
class Inspection:
    """What was found in a folder."""

    folder: str
    stage: str
    shards: int
    rows: int
    bytes: int
    counts: dict[str, int] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """What is damaged, by shard and row; empty for a sound folder."""


def inspect_folder(path: str, progress: ProgressCallback = no_progress) -> Inspection:
    """Inspect the folder of any stage, ours or of img2dataset and clip-retrieval.

    Raises:
        InputError: nothing is there that could be inspected.
    """
    store = Store(path)
    manifest = read_manifest(store)
    if manifest is None:
        return _inspect_foreign(store)
    found = Inspection(
        folder=store.url,
        stage=manifest.stage,
        shards=len(manifest.shards),
        rows=manifest.rows,
        bytes=sum(entry.bytes for record in manifest.shards.values() for entry in record.files.values()),
        counts=manifest.counts(),
        about=manifest.about,
        settings=manifest.settings,
    )
    for done, (name, record) in enumerate(sorted(manifest.shards.items())):
        progress(done, len(manifest.shards), name)
        for file in differing_files(store, record):
            state = "is missing" if store.size(file) is None else "differs from what was committed"
            found.problems.append(f"shard {name}: {file} {state}")
    progress(len(manifest.shards), len(manifest.shards), "")
    if manifest.stage == "embed" and not found.problems and manifest.rows:
        try:
            found.problems += _unsound_embeddings(path, manifest)
        except InputError as error:
            found.problems.append(str(error))
    return found


def _unsound_embeddings(path: str, manifest: Manifest) -> Iterator[str]:
    if not (manifest.settings.get("image", True) and manifest.settings.get("text", True)):
        yield from _unsound_arrays(Store(path), manifest)
        return
    dataset = EmbeddingDataset(path)
    names = [name for name in sorted(manifest.shards) for _ in range(manifest.shards[name].rows)]
    first = {name: names.index(name) for name in manifest.shards if manifest.shards[name].rows}
    for start in range(0, dataset.count, _BLOCK_ROWS):
        rows = np.arange(start, min(start + _BLOCK_ROWS, dataset.count))
        batch = dataset.take(rows)
        for kind, embeds in (("image", batch.image_embed), ("text", batch.text_embed)):
            norms = np.linalg.norm(embeds, axis=-1)
            for row in rows[~(np.abs(norms - 1) <= _UNIT_TOLERANCE)]:
                name, norm = names[row], norms[row - start]
                yield f"shard {name}, row {row - first[name]}: {kind} embedding has norm {norm:.4g}, not 1"


def _unsound_arrays(store: Store, manifest: Manifest) -> Iterator[str]:
    """As for a dataset, of a folder that holds no pairs: images or captions alone."""
    planned = manifest.input.get("shards", 0)
    if len(manifest.shards) < planned:
        yield f"holds {len(manifest.shards):,} of {planned:,} shards; run `priorkit embed` again"
    for name, record in sorted(manifest.shards.items()):
        for kind, folder in (("image", "img_emb"), ("text", "text_emb")):
            file = f"{folder}/{folder}_{name}.npy"
            if file not in record.files:
                continue
            with store.open(file) as opened:
                embeds = np.load(io.BytesIO(opened.read()), allow_pickle=False)
            if len(embeds) != record.rows:
                yield f"{file} has {len(embeds)} rows, its record says {record.rows}"
            for row, norm in enumerate(np.linalg.norm(embeds.astype(np.float32), axis=-1)):
                if not abs(norm - 1) <= _UNIT_TOLERANCE:
                    yield f"shard {name}, row {row}: {kind} embedding has norm {norm:.4g}, not 1"


def _inspect_foreign(store: Store) -> Inspection:
    names = store.names()
    if any(name.endswith(".tar") for name in names):
        shards = list_image_shards(store)
        found = Inspection(store.url, "images without a manifest", len(shards), sum(s.samples for s in shards), 0)
        for shard in shards:
            try:
                read = sum(sample.image is not None for sample in read_samples(store, shard))
            except InputError as error:
                found.problems.append(str(error))
                continue
            if read != shard.samples:
                found.problems.append(f"shard {shard.name}: {read} images, its parquet says {shard.samples}")
    elif any(name.endswith(".npy") for name in names):
        found = _foreign_embeddings(store)
    else:
        raise InputError(f"{store.url}: no manifest, image shards (*.tar) or embeddings (*.npy) to inspect here")
    found.bytes = sum(store.size(name) or 0 for name in names)
    return found


def _foreign_embeddings(store: Store) -> Inspection:
    """A folder of clip-retrieval or LAION, as embedding-reader finds and describes its files."""
    from embedding_reader.numpy_reader import NumpyReader

    counts = {}
    for kind in ("img_emb", "text_emb"):
        if store.names(kind):
            try:
                reader = NumpyReader(f"{store.url}/{kind}")
            except (ValueError, AttributeError) as error:
                raise InputError(f"{store.url}/{kind}: a file is no embedding array ({error})") from error
            counts[kind] = {
                name.rpartition("/")[2]: int(n)
                for name, n in zip(reader.headers.filename, reader.headers["count"], strict=True)
            }
    kinds = list(counts)
    if not kinds:
        raise InputError(f"{store.url}: embeddings are expected in img_emb/ and text_emb/")
    shards = counts[kinds[0]]
    found = Inspection(store.url, "embeddings without a manifest", len(shards), sum(shards.values()), 0)
    if len(kinds) == 2:
        texts = {name.replace("text_emb", "img_emb"): n for name, n in counts["text_emb"].items()}
        for name in sorted(set(shards) | set(texts)):
            if shards.get(name) != texts.get(name):
                found.problems.append(f"{name}: {shards.get(name, 0)} image and {texts.get(name, 0)} text embeddings")
    return found
