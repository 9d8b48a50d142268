"""The on-disk contract of a stage's folder: names, shard records, the manifest, and checks. `commit` writes it.

A folder contains `manifest.json` and data files. A shard exists if it has a record, either in the manifest or in a file
below `shards/`. The worker of the shard writes that file last, and the end of the stage merges it into the manifest. A
record has size and hash of the shard's files and the fingerprints of its input and settings. It is enough to decide
whether the shard is complete and up to date.
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
"""Version of the manifest's format; other versions are refused."""
MANIFEST_NAME = "manifest.json"
RECORD_FOLDER = "shards"
READ_BLOCK_ROWS = 4096
"""Rows per row group of metadata in Parquet, so that captions can be read by block."""
_MAX_COUNT = 1 << 48
"""Largest number of rows or bytes in a shard: sums over many shards still fit in 64 bits."""
_SHAPE_ERRORS = (KeyError, TypeError, AttributeError)
"""Exceptions that JSON of another shape raises when it is read as a manifest or record."""


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def image_shard_name(index: int) -> str:
    """Return the name of an image shard: five digits, as in img2dataset."""
    return f"{index:05d}"


def embedding_shard_name(index: int) -> str:
    """Return the name of an embedding shard: four digits, as in clip-retrieval."""
    return f"{index:04d}"


@dataclass(frozen=True)
class ShardRecord:
    """The committed state of one shard."""

    name: str
    rows: int
    input: str
    """Fingerprint of the shard's input."""
    settings: str
    """Fingerprint of the settings that change the shard's bytes."""
    files: Mapping[str, FileRecord]
    counts: Mapping[str, int] = field(default_factory=dict)
    """Number of rows by outcome."""
    logs: Sequence[str] = ()
    """Names of files with timings, which differ between equal runs: part of the shard, but not checked."""
    threads: int | None = None
    """Number of CPU threads of the computation, which affects the last bits of sums; None if nothing is summed."""

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ShardRecord:
        files = {check_name(name): FileRecord(**entry) for name, entry in value["files"].items()}
        logs = [check_name(name) for name in value["logs"]]
        numbers = (value["rows"], *value["counts"].values(), *(entry.bytes for entry in files.values()))
        if not all(type(number) is int and 0 <= number <= _MAX_COUNT for number in numbers):
            raise TypeError("rows, counts and bytes must be whole numbers from 0 to 2^48")
        return ShardRecord(**{**value, "name": check_name(value["name"]), "files": files, "logs": logs})

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values for a manifest."""
        value = asdict(self)
        return value if self.threads is not None else {name: value[name] for name in value if name != "threads"}

    def content(self) -> dict[str, Any]:
        """Return the hash of each file by name, on which later stages depend."""
        return {name: self.files[name].sha256 for name in sorted(self.files)}


@dataclass
class Manifest:
    """The state of one stage's folder."""

    stage: str
    settings: dict[str, Any]
    input: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    """Facts that the stage found during its work, such as the identity of the CLIP."""
    shards: dict[str, ShardRecord] = field(default_factory=dict)

    @property
    def settings_fingerprint(self) -> str:
        return fingerprint(self.settings)

    @property
    def rows(self) -> int:
        """Number of rows in all shards."""
        return sum(record.rows for record in self.shards.values())

    def content_fingerprint(self) -> str:
        """Return a fingerprint of all committed data; equal bytes have equal fingerprints, whatever their history."""
        return fingerprint({name: record.content() for name, record in self.shards.items()})

    def counts(self) -> dict[str, int]:
        """Return the number of rows by outcome in all shards together."""
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
    """Return the manifest of a folder with all committed records merged in; None if it has no manifest."""
    records, damage = {}, None
    try:
        records = read_records(store)  # first, since a writer that ends moves records into the manifest
    except InputError as error:
        damage = error
    try:
        value = store.read_json(MANIFEST_NAME)
    except (FileNotFoundError, NotADirectoryError):
        return None  # a stage writes the manifest before any record, so `shards` belongs to another tool
    if damage is not None:
        raise damage
    manifest = Manifest.from_json(value, store.path(MANIFEST_NAME))
    manifest.shards.update(records)
    return manifest


def read_records(store: Store, folder: str = RECORD_FOLDER) -> dict[str, ShardRecord]:
    """Return the records that are not merged into the manifest yet, by the name of the shard."""
    records = {}
    for name in store.names(folder):
        if name.endswith(".json"):
            try:
                record = ShardRecord.from_json(store.read_json(name))
            except FileNotFoundError:
                continue  # merged after the folder was listed
            except _SHAPE_ERRORS as error:
                raise _not_a_manifest(store.path(name), error) from error
            records[record.name] = record
    return records


def require_manifest(store: Store, stage: str) -> Manifest:
    """Return the manifest of a folder that `stage` wrote; InputError names what is there instead and what to run."""
    return require_stage(store, read_manifest(store), stage)


def require_stage(store: Store, manifest: Manifest | None, stage: str) -> Manifest:
    """Return a manifest that was read already, checked like `require_manifest`; None stands for no manifest."""
    if manifest is None:
        raise InputError(f"{store.url} holds no result of `priorkit {stage}`; run that first or name another folder")
    if manifest.stage != stage:
        raise InputError(f"{store.url} was written by `priorkit {manifest.stage}`, not by `priorkit {stage}`")
    return manifest


def missing_files(record: ShardRecord, sizes: Mapping[str, int]) -> list[str]:
    """Return the files of a record that are absent or not of the recorded size.

    Args:
        sizes: size in bytes of each file in the folder, by name: `Store.sizes`, one listing for all records.
    """
    return [name for name, entry in record.files.items() if sizes.get(name) != entry.bytes]


def damaged_shards(store: Store, manifest: Manifest) -> dict[str, list[str]]:
    """Return the missing files of each shard that has some, by the name of the shard, from one listing."""
    sizes = store.sizes() if manifest.shards else {}
    missing = {name: missing_files(record, sizes) for name, record in manifest.shards.items()}
    return {name: files for name, files in missing.items() if files}


def differing_files(store: Store, record: ShardRecord) -> list[str]:
    """Return the files of a record whose content has changed since the commit; reads every byte."""
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
    """Return the names of the shards to do, given the input fingerprint of each shard.

    A shard is done if its record has this input and the manifest's settings, and its files exist.
    """
    whole = whole_shards(store, manifest)
    return [name for name, input in inputs.items() if name not in whole or manifest.shards[name].input != input]


def whole_shards(store: Store, manifest: Manifest) -> set[str]:
    """Return the names of the shards that were made with the manifest's settings and whose files exist."""
    settings = manifest.settings_fingerprint
    made = [record for record in manifest.shards.values() if record.settings == settings]
    sizes = store.sizes() if made else {}
    return {record.name for record in made if not missing_files(record, sizes)}
