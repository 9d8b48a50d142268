"""Format of the folder that a stage (such as `download` or `embed`) writes, and functions that read and check it.

A folder contains `manifest.json` and the files of the shards. A shard is committed (complete) once it has a record,
either in the manifest or in a separate JSON file in `shards/`. A worker writes this file after all other files of the
shard. When the stage ends, it merges all record files into the manifest.

A record contains the sizes and hashes of the shard's files, and the fingerprints of the shard's input and settings.
They are used to check that the shard is complete and up to date. The module `commit` writes the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import InputError
from .hashing import FileRecord, hash_file
from .storage import Store, check_name

FORMAT_VERSION = 1
"""Manifest format version. Manifests with any other version are rejected."""
MANIFEST_NAME = "manifest.json"
RECORD_FOLDER = "shards"
READ_BLOCK_ROWS = 4096
"""Number of rows per row group in the Parquet metadata files of embedding shards. With small row groups, the captions
of a few rows can be read without decoding the whole file."""
_MAX_COUNT = 1 << 48
"""Largest accepted number of rows or bytes in a shard, so that sums over many shards fit in 64 bits."""
_SHAPE_ERRORS = (KeyError, TypeError, AttributeError)
"""Exceptions raised when JSON with an unexpected structure is parsed as a manifest or record."""


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of a JSON value, serialised with sorted keys and without whitespace."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def image_shard_name(index: int) -> str:
    """Return the name of the image shard with the given index: five digits (`00012`), as in img2dataset."""
    return f"{index:05d}"


def embedding_shard_name(index: int) -> str:
    """Return the name of the embedding shard with the given index: four digits (`0012`), as in clip-retrieval."""
    return f"{index:04d}"


@dataclass(frozen=True)
class ShardRecord:
    """Record of a complete shard: the sizes and hashes of its files, and the fingerprints of its input and settings.

    A shard without a record is incomplete and is processed again.
    """

    name: str
    rows: int
    input: str
    """Hash that identifies the shard's input. If the input changes, the shard is processed again."""
    settings: str
    """Hash of the settings that affect the content of the shard's files."""
    files: Mapping[str, FileRecord]
    counts: Mapping[str, int] = field(default_factory=dict)
    """Number of rows for each outcome. An outcome is `success` or a reason for failure, such as `missing_image`."""
    logs: Sequence[str] = ()
    """Names of the shard's log files. Their content is not checked, since they contain timings, which differ between
    identical runs."""
    threads: int | None = None
    """Number of CPU threads used, which affects the last bits of floating-point sums; None if the number of threads
    does not affect the result."""
    samples: int | None = None
    """Number of input samples of an embedding shard, if it differs from the sum of `counts`, because samples with
    several captions gave several rows; otherwise None."""

    @property
    def input_samples(self) -> int:
        """Number of input samples, including those that failed."""
        return sum(self.counts.values()) if self.samples is None else self.samples

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ShardRecord:
        files = {check_name(name): FileRecord(**entry) for name, entry in value["files"].items()}
        logs = [check_name(name) for name in value["logs"]]
        samples = [] if value.get("samples") is None else [value["samples"]]
        numbers = (value["rows"], *samples, *value["counts"].values(), *(entry.bytes for entry in files.values()))
        if not all(type(number) is int and 0 <= number <= _MAX_COUNT for number in numbers):
            raise TypeError("rows, samples, counts and bytes must be whole numbers from 0 to 2^48")
        return ShardRecord(**{**value, "name": check_name(value["name"]), "files": files, "logs": logs})

    def to_json(self) -> dict[str, Any]:
        """Convert the record to plain JSON values for a manifest. `threads` and `samples` are omitted if None."""
        omitted = [name for name in ("threads", "samples") if getattr(self, name) is None]
        return {name: value for name, value in asdict(self).items() if name not in omitted}

    def content(self) -> dict[str, Any]:
        """Return the SHA-256 of each file except logs, by file name. Later stages use the hashes to detect changes."""
        return {name: self.files[name].sha256 for name in sorted(self.files)}


@dataclass
class Manifest:
    """Content of a stage's `manifest.json`: the stage's settings and input, and the records of its shards."""

    stage: str
    settings: dict[str, Any]
    input: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    """Information that is known only once the stage runs, such as the identity of the CLIP model."""
    shards: dict[str, ShardRecord] = field(default_factory=dict)

    @property
    def settings_fingerprint(self) -> str:
        return fingerprint(self.settings)

    @property
    def rows(self) -> int:
        """Total number of rows in all shards."""
        return sum(record.rows for record in self.shards.values())

    def content_fingerprint(self) -> str:
        """Return a hash of the names of all complete shards, and of their files' names and hashes."""
        return fingerprint({name: record.content() for name, record in self.shards.items()})

    def counts(self) -> dict[str, int]:
        """Return the number of rows for each outcome (`success` or a reason for failure), summed over all shards."""
        total: dict[str, int] = {}
        for record in self.shards.values():
            for outcome, number in record.counts.items():
                total[outcome] = total.get(outcome, 0) + number
        return total

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "stage": self.stage,
            "settings": self.settings,
            "settings_fingerprint": self.settings_fingerprint,
            "input": self.input,
            "about": self.about,
            "shards": {name: self.shards[name].to_json() for name in sorted(self.shards)},
        }

    @staticmethod
    def from_json(value: Mapping[str, Any], source: str) -> Manifest:
        try:
            version = value["format_version"]
            if version != FORMAT_VERSION:
                raise InputError(f"{source} has format version {version}; this priorkit reads {FORMAT_VERSION}")
            for name in ("settings", "input", "about", "shards"):
                if not isinstance(value[name], dict):
                    raise TypeError(f"{name} must be an object")
            if not isinstance(value["stage"], str):
                raise TypeError("stage must be text")
            shards = {name: ShardRecord.from_json(entry) for name, entry in value["shards"].items()}
            return Manifest(value["stage"], value["settings"], value["input"], value["about"], shards)
        except _SHAPE_ERRORS as error:
            raise _not_a_manifest(source, error) from error


def _not_a_manifest(source: str, error: Exception) -> InputError:
    return InputError(f"{source} is not a priorkit manifest ({error!r}); restore it or use another folder")


def read_manifest(store: Store) -> Manifest | None:
    """Return a folder's manifest, or None if there is none.

    The shard records that are still in separate files are merged into the returned manifest.

    Raises:
        InputError: the manifest or a record is damaged, or has an unsupported format version.
    """
    records, damage = {}, None
    try:
        records = read_records(store)  # read these first, because a finishing writer moves records into the manifest
    except InputError as error:
        damage = error
    try:
        value = store.read_json(MANIFEST_NAME)
    except (FileNotFoundError, NotADirectoryError):
        return None  # stages write the manifest before any record, so priorkit did not create a `shards` folder here
    if damage is not None:
        raise damage
    manifest = Manifest.from_json(value, store.path(MANIFEST_NAME))
    manifest.shards.update(records)
    return manifest


def read_records(store: Store, folder: str = RECORD_FOLDER) -> dict[str, ShardRecord]:
    """Return the shard records that are stored as separate JSON files in a subfolder, by shard name.

    Args:
        store: output folder of a stage.
        folder: name of the subfolder. The default is `shards`, which contains the records until they are merged into
            the manifest.

    Raises:
        InputError: a record is damaged.
    """
    records = {}
    for name in store.names(folder):
        if name.endswith(".json"):
            try:
                record = ShardRecord.from_json(store.read_json(name))
            except FileNotFoundError:
                continue  # the record was merged after the folder was listed
            except _SHAPE_ERRORS as error:
                raise _not_a_manifest(store.path(name), error) from error
            records[record.name] = record
    return records


def require_manifest(store: Store, stage: str) -> Manifest:
    """Return the manifest of a folder, after checking that the given stage wrote it.

    Args:
        store: folder whose manifest is read.
        stage: name of the stage, such as `download`.

    Raises:
        InputError: the folder has no manifest, another stage wrote it, or the manifest is damaged. If the manifest is
            missing or from another stage, the message names the `priorkit` command for each stage involved.
    """
    return require_stage(store, read_manifest(store), stage)


def require_stage(store: Store, manifest: Manifest | None, stage: str, *others: str) -> Manifest:
    """Return `manifest`, after checking that it is not None and that `stage`, or one of `others`, wrote it.

    Args:
        store: folder of the manifest, for messages.
        manifest: manifest of the folder; None if it has none.
        stage: stage that should have written the folder.
        others: other stages that may have written it instead.

    Raises:
        InputError: the folder has no manifest, or another stage wrote it.
    """
    if manifest is None:
        raise InputError(f"{store.url} holds no result of `priorkit {stage}`; run that first or name another folder")
    if manifest.stage not in (stage, *others):
        raise InputError(f"{store.url} was written by `priorkit {manifest.stage}`, not by `priorkit {stage}`")
    return manifest


def missing_files(record: ShardRecord, sizes: Mapping[str, int]) -> list[str]:
    """Return the names of a shard's files that are missing from the folder or have the wrong size.

    Args:
        record: record of the shard, with the names and expected sizes of its files.
        sizes: actual size in bytes of each file in the folder, by name, from `Store.sizes`. The same dict can be passed
            for every record.
    """
    return [name for name, entry in record.files.items() if sizes.get(name) != entry.bytes]


def damaged_shards(store: Store, manifest: Manifest) -> dict[str, list[str]]:
    """Find the shards in a manifest that have missing files, or files whose size differs from the recorded size.

    The folder is listed only once. The content of the files is not checked.

    Returns:
        Dict that maps the name of each damaged shard to the names of its missing or wrong-sized files. It is empty if
        no shard is damaged.
    """
    sizes = store.sizes() if manifest.shards else {}
    missing = {name: missing_files(record, sizes) for name, record in manifest.shards.items()}
    return {name: files for name, files in missing.items() if files}


def differing_files(store: Store, record: ShardRecord) -> list[str]:
    """Return the names of a record's files that are missing or whose hashes differ from the recorded hashes.

    Every file is read in full.
    """
    differing = []
    for name, entry in record.files.items():
        try:
            with store.open(name) as file:
                is_same = hash_file(file) == entry.sha256
        except FileNotFoundError:
            is_same = False
        if not is_same:
            differing.append(name)
    return differing


def pending_shards(store: Store, manifest: Manifest, inputs: Mapping[str, str]) -> list[str]:
    """Return the names of the shards that still need processing.

    A shard is done if its record has the given input fingerprint and the manifest's settings, and all its files exist
    with the recorded sizes.

    Args:
        inputs: fingerprint of each shard's input, by shard name.
    """
    whole = whole_shards(store, manifest)
    return [name for name, input in inputs.items() if name not in whole or manifest.shards[name].input != input]


def whole_shards(store: Store, manifest: Manifest) -> set[str]:
    """Return the names of the complete shards that were made with the manifest's settings.

    A shard is complete if all its files exist with the recorded sizes.
    """
    settings = manifest.settings_fingerprint
    made = [record for record in manifest.shards.values() if record.settings == settings]
    sizes = store.sizes() if made else {}
    return {record.name for record in made if not missing_files(record, sizes)}
