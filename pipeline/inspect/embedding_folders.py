"""Inspection of embedding folders.

The manifest that `embed` wrote lists the shards. In a folder without a manifest, such as a folder that clip-retrieval
wrote, the files with the same number in their names form a shard.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import Any

from ..compute.stage import ProgressCallback
from ..contract.embedding_files import IN_PLACE_FILES, group_files, missing_kinds, recorded_files
from ..contract.empty_inputs import read_empty_inputs
from ..contract.manifest import Manifest, ShardRecord
from ..contract.storage import TEMPORARY_SUFFIX, Store
from ..contract.vectors.arrays import FileHeader, read_header
from ..contract.vectors.embeddings import first_files, folder_notes, shard_faults
from ..contract.vectors.rules import WORDS
from ..errors import InputError
from .findings import Inspection, Report
from .metadata import MetadataInspector, inspect_failures
from .vectors import ShardParts, VectorInspector

_FOLDERS = ("img_emb", "text_emb", "metadata", "token_states", "failures")
_FOREIGN_KINDS = ("img_emb", "text_emb", "metadata")
FOREIGN_STAGE = "embeddings without a manifest"


class _FolderInspector:
    """Inspector for the embedding shards of a folder.

    Call `inspect` for each shard in row order, and then `finish` to report the findings about the whole folder.

    Args:
        store: folder to inspect.
        inspection: findings to add to. `inspection.rows` must already be set.
        sizes: embedding size that every array of a kind must have, by kind; empty to use the size of the first array.
        dim_source: name of the file that states the sizes, for use in messages.
        recorded: True for a folder with a manifest that `embed` wrote.
        comparable: True if image and text embeddings are in one space, so that cosines between them mean something.
    """

    def __init__(
        self,
        store: Store,
        inspection: Inspection,
        sizes: Mapping[str, int | None],
        dim_source: str,
        *,
        recorded: bool,
        comparable: bool = True,
    ) -> None:
        self.vectors = VectorInspector(store, inspection, inspection.rows, sizes, dim_source, comparable=comparable)
        self.metadata = MetadataInspector(store, inspection, recorded=recorded)
        self._names: list[str] = []
        self._first_rows: list[int] = []

    def inspect(self, shard: ShardParts) -> None:
        """Check a shard's vectors, metadata and token states (per-token text-encoder outputs), and report faults."""
        self._names.append(shard.name)
        self._first_rows.append(shard.first_row)
        self.vectors.inspect(shard)
        if "metadata" in shard.files:
            self.metadata.inspect(shard)
        if "offsets" in shard.files:
            self.metadata.inspect_token_states(shard)

    def finish(self) -> None:
        """Report the findings about the folder as a whole, such as duplicates and value distributions."""
        self.vectors.finish(self._place)
        self.metadata.finish(self._place)

    def _place(self, row: int) -> str:
        """Return a row's location, such as `shard 00002, row 17`, given its row number in the folder."""
        at = bisect.bisect_right(self._first_rows, row) - 1
        return f"shard {self._names[at]}, row {row - self._first_rows[at]}"


class RecordedEmbeddings:
    """Inspector for an embeddings folder that `embed` or `adopt` wrote.

    Call `inspect` for each shard in the order of the shard names, and then `finish`.

    Args:
        store: folder to inspect.
        inspection: findings to add to.
        manifest: manifest of the folder.
    """

    def __init__(self, store: Store, inspection: Inspection, manifest: Manifest) -> None:
        self._store, self._inspection, self._manifest = store, inspection, manifest
        is_adopted = manifest.stage == "adopt"
        self._kinds = [] if is_adopted else ["metadata", *_array_kinds(manifest.settings)]
        clip, spaces = manifest.about.get("clip"), manifest.about.get("spaces")
        sizes = _space_sizes(spaces) if is_adopted else _same_size(clip)
        self._folder = _FolderInspector(
            store,
            inspection,
            sizes,
            "the manifest",
            recorded=not is_adopted,
            comparable=not is_adopted or clip is not None,
        )
        self._first_row = 0
        if clip is None and not is_adopted:
            inspection.add_problem(
                "manifest.json does not say which CLIP made the embeddings; run `priorkit embed` again"
            )

    def inspect(self, record: ShardRecord, differing: list[str]) -> None:
        """Inspect the files of a shard.

        Args:
            record: manifest entry of the shard.
            differing: names of the shard's files that are missing or whose hash differs from the record. They are
                already reported as problems, so further faults in these files are reported as notes.
        """
        inspection, files = self._inspection, recorded_files(record, self._manifest.about)
        for kind in self._kinds:
            if kind not in files:
                inspection.add_problem(f"shard {record.name}: its record has no file of {kind}")
        present = {kind: name for kind, name in files.items() if self._store.size(name) is not None}
        report: dict[str, Report] = {
            kind: inspection.add_note if files[kind] in differing else inspection.add_problem for kind in present
        }
        parts = ShardParts(record.name, self._first_row, record.rows, "its record", present, report)
        self._folder.inspect(parts)
        self._first_row += record.rows
        failures = f"failures/failures_{record.name}.parquet"
        if failures in record.files and failures not in differing:
            failed = sum(record.counts.values()) - record.counts.get("success", 0)
            inspect_failures(self._store, inspection, failures, record.name, failed, inspection.add_problem)

    def finish(self) -> None:
        """Report missing shards, then files that the manifest does not list, then findings about the whole folder.

        The file with the CLIP model's outputs for empty inputs is checked too, if the manifest lists it.
        """
        inspection, manifest = self._inspection, self._manifest
        try:
            read_empty_inputs(self._store, manifest.about)
        except InputError as error:
            inspection.add_problem(str(error))
        planned = manifest.input.get("shards", 0)
        if len(manifest.shards) < planned:
            inspection.add_problem(
                f"holds {len(manifest.shards):,} of {planned:,} shards: `priorkit {manifest.stage}` is still running "
                "or was killed; run it again"
            )
        recorded = {name for record in manifest.shards.values() for name in record.files}
        in_place = IN_PLACE_FILES in manifest.about  # other files of the folder are not priorkit's
        for folder in () if in_place else _FOLDERS:
            for name in self._store.names(folder):
                if name.endswith(TEMPORARY_SUFFIX):
                    inspection.add_note(f"{name} was left by a writer that was killed; the next run removes it")
                elif name not in recorded:
                    inspection.add_problem(
                        f"{name} is in no record: run `priorkit {manifest.stage}` again, or remove it if it is not its"
                    )
        self._folder.finish()


def _same_size(clip: Any) -> dict[str, int | None]:
    """Return the embedding size of a CLIP for each kind of embeddings; empty if the manifest does not state it."""
    size = clip.get("embed_dim") if isinstance(clip, Mapping) else None
    return {} if size is None else dict.fromkeys(WORDS, size)


def _space_sizes(spaces: Any) -> dict[str, int | None]:
    """Return the embedding size of each kind, as recorded for the spaces of an adopted folder."""
    sizes: dict[str, int | None] = {}
    for role, kind in (("target", "img_emb"), ("source", "text_emb")):
        space = spaces.get(role) if isinstance(spaces, Mapping) else None
        if isinstance(space, Mapping):
            sizes[kind] = space.get("size")
    return sizes


def _array_kinds(settings: Mapping[str, Any]) -> list[str]:
    """Return the kinds of arrays, such as `img_emb` and `token_states`, that `embed` writes with the given settings."""
    kinds = [kind for kind, word in WORDS.items() if settings.get(word, True)]
    return [*kinds, "token_states", "offsets"] if settings.get("token_states", False) else kinds


def inspect_foreign_embeddings(store: Store, names: list[str], progress: ProgressCallback) -> Inspection | None:
    """Inspect a folder written by clip-retrieval or published by LAION.

    Args:
        names: names of the files in the folder.
        progress: callback that receives the number of inspected shards, the total, and the name of the next shard. It
            is called before each shard and at the end.

    Returns:
        Findings about the folder; None if the folder contains no embedding shards.
    """
    inspection = Inspection(store.url, FOREIGN_STAGE, 0, 0, 0)
    groups = group_files(names, store.url, inspection.add_problem)
    if not groups:
        return None
    kinds = {kind for files in groups.values() for kind in files}
    for kind in sorted({*WORDS, "metadata"} - kinds):
        needs = "text embeddings computed while training" if kind == "text_emb" else f"files of {kind}"
        inspection.add_note(f"the folder has no {kind}: it can be inspected, but a prior needs {needs}")
    headers = _readable_headers(store, inspection, groups)
    first = first_files(groups.values(), headers)
    shards = []
    for files in groups.values():
        for fault in missing_kinds(files, sorted(kinds), store.url):
            inspection.add_problem(fault)
        parts = _foreign_parts(store, inspection, files, headers, first)
        if parts is not None:
            shards.append(parts)
            inspection.rows += parts.rows
    for note in folder_notes(groups, headers):
        inspection.add_note(note)
    if shards and not inspection.rows:
        inspection.add_problem("the folder holds no rows; embed it again")
    inspection.shards = len(groups)
    folder = _FolderInspector(store, inspection, {}, "", recorded=False)
    for done, parts in enumerate(shards):
        progress(done, len(shards), parts.name)
        folder.inspect(parts)
    progress(len(shards), len(shards), "")
    folder.finish()
    inspection.add_note(
        "the folder has no manifest, so it does not name its CLIP; nor are there hashes to hold its bytes to"
    )
    return inspection


def _readable_headers(
    store: Store, inspection: Inspection, groups: Mapping[int, Mapping[str, str]]
) -> dict[str, FileHeader]:
    """Return the header of each file, keyed by file name.

    A file whose header cannot be read is omitted and reported as a problem.
    """
    headers: dict[str, FileHeader] = {}
    for files in groups.values():
        for kind in _FOREIGN_KINDS:
            if kind in files:
                try:
                    headers[files[kind]] = read_header(store, files[kind])
                except InputError as error:
                    inspection.add_problem(f"shard {_number(files)}: {error}")
    return headers


def _foreign_parts(
    store: Store,
    inspection: Inspection,
    files: Mapping[str, str],
    headers: Mapping[str, FileHeader],
    first: Mapping[str, str],
) -> ShardParts | None:
    """Check the files of a shard in a folder without a manifest, and return the valid ones.

    Faulty files are left out and reported as problems. The first file with a readable header determines the shard's
    number of rows.

    Args:
        store: embeddings folder.
        inspection: findings to add to.
        files: names of the shard's files, keyed by kind.
        headers: headers that could be read, keyed by file name.
        first: name of the folder's first readable file of each kind, with which the shard's files are compared.

    Returns:
        Valid files of the shard; None if none of its headers could be read.
    """
    name = _number(files)
    sound = {kind: files[kind] for kind in _FOREIGN_KINDS if files.get(kind) in headers}
    if not sound:
        return None
    counted_by = next(iter(sound.values()))
    for kind, fault in list(shard_faults(store.url, sound, headers, first)):
        inspection.add_problem(f"shard {name}: {fault}")
        sound.pop(kind, None)
    report: dict[str, Report] = dict.fromkeys(sound, inspection.add_problem)
    return ShardParts(name, inspection.rows, headers[counted_by].rows, counted_by, sound, report)


def _number(files: Mapping[str, str]) -> str:
    """Return the shard number from the name of a shard's first file, such as `0003` from `img_emb_0003.npy`."""
    return next(iter(files.values())).rpartition("_")[2].partition(".")[0]
