"""Inspects folders of embeddings: ours by their records, those of clip-retrieval and LAION by the numbers of files."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import Any

from ..compute.stage import ProgressCallback
from ..contract.embedding_files import group_files, missing_kinds, recorded_files
from ..contract.manifest import Manifest, ShardRecord
from ..contract.storage import TEMPORARY_SUFFIX, Store
from ..contract.vectors.arrays import FileHeader, read_header
from ..contract.vectors.embeddings import first_files, folder_notes, shard_faults
from ..contract.vectors.rules import WORDS
from ..errors import InputError
from .findings import Inspection, Tell
from .metadata import MetadataInspector, inspect_failures
from .vectors import ShardParts, VectorInspector

_FOLDERS = ("img_emb", "text_emb", "metadata", "token_states", "failures")
_FOREIGN_KINDS = ("img_emb", "text_emb", "metadata")
FOREIGN_STAGE = "embeddings without a manifest"


class _FolderInspector:
    """Vectors, metadata and token states of one shard after the other, and then of the folder."""

    def __init__(self, store: Store, found: Inspection, embed_dim: int | None, dim_of: str, *, ours: bool) -> None:
        self.vectors = VectorInspector(store, found, found.rows, embed_dim, dim_of)
        self.metadata = MetadataInspector(store, found, ours=ours)
        self._names: list[str] = []
        self._first_rows: list[int] = []

    def inspect(self, shard: ShardParts) -> None:
        self._names.append(shard.name)
        self._first_rows.append(shard.first_row)
        self.vectors.inspect(shard)
        if "metadata" in shard.files:
            self.metadata.inspect(shard)
        if "offsets" in shard.files:
            self.metadata.inspect_token_states(shard)

    def finish(self) -> None:
        self.vectors.finish(self._place)
        self.metadata.finish(self._place)

    def _place(self, row: int) -> str:
        at = bisect.bisect_right(self._first_rows, row) - 1
        return f"shard {self._names[at]}, row {row - self._first_rows[at]}"


class RecordedEmbeddings:
    """Inspects the shards that `embed` has recorded, one after the other."""

    def __init__(self, store: Store, found: Inspection, manifest: Manifest) -> None:
        self._store, self._found, self._manifest = store, found, manifest
        self._kinds = ["metadata", *_arrays_of(manifest.settings)]
        clip: Any = manifest.about.get("clip")
        embed_dim = clip.get("embed_dim") if isinstance(clip, Mapping) else None
        self._folder = _FolderInspector(store, found, embed_dim, "the manifest", ours=True)
        self._first_row = 0
        if clip is None:
            found.problem("manifest.json does not say which CLIP made the embeddings; run `priorkit embed` again")

    def inspect(self, record: ShardRecord, differing: list[str]) -> None:
        """Inspect one shard. What is wrong inside a file of `differing` is but noted: the file is known as damaged."""
        found, files = self._found, recorded_files(record)
        for kind in self._kinds:
            if kind not in files:
                found.problem(f"shard {record.name}: its record has no file of {kind}")
        there = {kind: name for kind, name in files.items() if self._store.size(name) is not None}
        tell: dict[str, Tell] = {kind: found.note if files[kind] in differing else found.problem for kind in there}
        parts = ShardParts(record.name, self._first_row, record.rows, "its record", there, tell)
        self._folder.inspect(parts)
        self._first_row += record.rows
        failures = f"failures/failures_{record.name}.parquet"
        if failures in record.files and failures not in differing:
            failed = sum(record.counts.values()) - record.counts.get("success", 0)
            inspect_failures(self._store, found, failures, record.name, failed, found.problem)

    def finish(self) -> None:
        """Look for shards that are missing and files that nobody has recorded, and end the statistics."""
        found, manifest = self._found, self._manifest
        planned = manifest.input.get("shards", 0)
        if len(manifest.shards) < planned:
            found.problem(
                f"holds {len(manifest.shards):,} of {planned:,} shards: `priorkit embed` is still running or was "
                "killed; run it again"
            )
        recorded = {name for record in manifest.shards.values() for name in record.files}
        for folder in _FOLDERS:
            for name in self._store.names(folder):
                if name.endswith(TEMPORARY_SUFFIX):
                    found.note(f"{name} was left by a writer that was killed; the next run removes it")
                elif name not in recorded:
                    found.problem(f"{name} is in no record: run `priorkit embed` again, or remove it if it is not its")
        self._folder.finish()


def _arrays_of(settings: Mapping[str, Any]) -> list[str]:
    """Kinds of arrays that `embed` writes with these settings."""
    kinds = [kind for kind, word in WORDS.items() if settings.get(word, True)]
    return [*kinds, "token_states", "offsets"] if settings.get("token_states", False) else kinds


def inspect_foreign_embeddings(store: Store, names: list[str], progress: ProgressCallback) -> Inspection | None:
    """Inspect a folder of clip-retrieval or LAION; None where no file looks like one of theirs."""
    found = Inspection(store.url, FOREIGN_STAGE, 0, 0, 0)
    groups = group_files(names, store.url, found.problem)
    if not groups:
        return None
    kinds = {kind for files in groups.values() for kind in files}
    for kind in sorted({*WORDS, "metadata"} - kinds):
        needs = "text embeddings computed while training" if kind == "text_emb" else f"files of {kind}"
        found.note(f"the folder has no {kind}: it can be inspected, but a prior needs {needs}")
    headers = _readable_headers(store, found, groups)
    first = first_files(groups.values(), headers)
    shards = []
    for files in groups.values():
        for fault in missing_kinds(files, sorted(kinds), store.url):
            found.problem(fault)
        parts = _foreign_parts(store, found, files, headers, first)
        if parts is not None:
            shards.append(parts)
            found.rows += parts.rows
    for note in folder_notes(groups, headers):
        found.note(note)
    if shards and not found.rows:
        found.problem("the folder holds no rows; embed it again")
    found.shards = len(groups)
    folder = _FolderInspector(store, found, None, "", ours=False)
    for done, parts in enumerate(shards):
        progress(done, len(shards), parts.name)
        folder.inspect(parts)
    progress(len(shards), len(shards), "")
    folder.finish()
    found.note("the folder has no manifest, so it does not name its CLIP; nor are there hashes to hold its bytes to")
    return found


def _readable_headers(
    store: Store, found: Inspection, groups: Mapping[int, Mapping[str, str]]
) -> dict[str, FileHeader]:
    """Headers of all files by name; a file whose header cannot be read is a problem."""
    headers: dict[str, FileHeader] = {}
    for files in groups.values():
        for kind in _FOREIGN_KINDS:
            if kind in files:
                try:
                    headers[files[kind]] = read_header(store, files[kind])
                except InputError as error:
                    found.problem(f"shard {_number(files)}: {error}")
    return headers


def _foreign_parts(
    store: Store,
    found: Inspection,
    files: Mapping[str, str],
    headers: Mapping[str, FileHeader],
    first: Mapping[str, str],
) -> ShardParts | None:
    """A shard whose rows are those of its first readable file; None where none can be read."""
    name = _number(files)
    sound = {kind: files[kind] for kind in _FOREIGN_KINDS if files.get(kind) in headers}
    if not sound:
        return None
    counted_by = next(iter(sound.values()))
    for kind, fault in list(shard_faults(store.url, sound, headers, first)):
        found.problem(f"shard {name}: {fault}")
        sound.pop(kind, None)
    tell: dict[str, Tell] = dict.fromkeys(sound, found.problem)
    return ShardParts(name, found.rows, headers[counted_by].rows, counted_by, sound, tell)


def _number(files: Mapping[str, str]) -> str:
    """The number of a shard as its first file writes it."""
    return next(iter(files.values())).rpartition("_")[2].partition(".")[0]
