"""THE on-disk contract of every stage's folder: names, records, manifest, verification. `stage_folder` writes it.

A folder holds `manifest.json` and data files. A shard exists when a record says so: either in the manifest, or in a
record file of its own under `shards/`, which its worker wrote last and which is merged into the manifest when the
stage ends. A record states the shard's files with size and hash, and the fingerprints of its input and settings, so
whoever holds a record can tell whether the shard is whole and up to date.
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
MANIFEST_NAME = "manifest.json"
RECORD_FOLDER = "shards"
READ_BLOCK_ROWS = 4096
"""Rows of one parquet row group of metadata, so that captions can be read by block."""
_MOST = 1 << 48
"""Largest number of rows or bytes of a shard: sums of many shards still fit 64 bits."""
_MISFITS = (KeyError, TypeError, AttributeError)
"""What JSON of another shape raises when it is taken for ours."""


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def image_shard_name(index: int) -> str:
    """img2dataset's name of image shard `index`: five digits."""
    return f"{index:05d}"


def embedding_shard_name(index: int) -> str:
    """clip-retrieval's name of embedding shard `index`: four digits."""
    return f"{index:04d}"


@dataclass(frozen=True)
class ShardRecord:
    """The committed state of one shard."""

    name: str
    rows: int
    input: str
    """Fingerprint of the shard's own input."""
    settings: str
    """Fingerprint of the settings that change bytes."""
    files: Mapping[str, FileRecord]
    counts: Mapping[str, int] = field(default_factory=dict)
    """How many rows met which outcome."""
    logs: Sequence[str] = ()
    """Files that hold timings and so differ between equal runs: part of the shard, but not checked."""
    threads: int | None = None
    """CPU threads that it was computed with, which change sums in their last bits; None where nothing is summed."""

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ShardRecord:
        files = {check_name(name): FileRecord(**entry) for name, entry in value["files"].items()}
        logs = [check_name(name) for name in value["logs"]]
        numbers = (value["rows"], *value["counts"].values(), *(entry.bytes for entry in files.values()))
        if not all(type(number) is int and 0 <= number <= _MOST for number in numbers):
            raise TypeError("rows, counts and bytes must be whole numbers from 0 to 2^48")
        return ShardRecord(**{**value, "name": check_name(value["name"]), "files": files, "logs": logs})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as a manifest holds them."""
        value = asdict(self)
        return value if self.threads is not None else {name: value[name] for name in value if name != "threads"}

    def content(self) -> dict[str, Any]:
        """What a later stage depends on: the files' names and hashes."""
        return {name: self.files[name].sha256 for name in sorted(self.files)}


@dataclass
class Manifest:
    """The state of one stage's folder."""

    stage: str
    settings: dict[str, Any]
    input: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    """What was found out while working, such as the identity of the CLIP."""
    shards: dict[str, ShardRecord] = field(default_factory=dict)

    @property
    def settings_fingerprint(self) -> str:
        return fingerprint(self.settings)

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(record.rows for record in self.shards.values())

    def content_fingerprint(self) -> str:
        """Fingerprint of all committed data; equal for equal bytes, however they came about."""
        return fingerprint({name: record.content() for name, record in self.shards.items()})

    def counts(self) -> dict[str, int]:
        """Outcomes of all shards together."""
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
        except _MISFITS as error:
            raise _no_manifest(source, error) from error


def _no_manifest(source: str, error: Exception) -> InputError:
    return InputError(f"{source} is not a priorkit manifest ({error!r}); restore it or use another folder")


def read_manifest(store: Store) -> Manifest | None:
    """The manifest of a folder with all committed records merged in; None where there is no manifest."""
    records, fault = {}, None
    try:
        records = read_records(store)  # first, since a writer that ends moves records into the manifest
    except InputError as error:
        fault = error
    try:
        value = store.read_json(MANIFEST_NAME)
    except (FileNotFoundError, NotADirectoryError):
        return None  # a stage writes the manifest before any record, so a folder `shards` is another tool's
    if fault is not None:
        raise fault
    manifest = Manifest.from_json(value, store.path(MANIFEST_NAME))
    manifest.shards.update(records)
    return manifest


def read_records(store: Store, folder: str = RECORD_FOLDER) -> dict[str, ShardRecord]:
    """Records that are not merged into the manifest yet, by shard."""
    records = {}
    for name in store.names(folder):
        if name.endswith(".json"):
            try:
                record = ShardRecord.from_json(store.read_json(name))
            except FileNotFoundError:
                continue  # merged since the folder was listed
            except _MISFITS as error:
                raise _no_manifest(store.path(name), error) from error
            records[record.name] = record
    return records


def require_manifest(store: Store, stage: str) -> Manifest:
    """The manifest of a folder that `stage` wrote; InputError says what is there instead and what to run."""
    return require_stage(store, read_manifest(store), stage)


def require_stage(store: Store, manifest: Manifest | None, stage: str) -> Manifest:
    """As `require_manifest`, of a folder whose manifest has been read, or that has none."""
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
    """Files of a record whose content is not what was committed; reads every byte."""
    bad = []
    for name, entry in record.files.items():
        try:
            with store.open(name) as file:
                is_same = hash_file(file) == entry.sha256
        except FileNotFoundError:
            is_same = False
        if not is_same:
            bad.append(name)
    return bad


def pending_shards(store: Store, manifest: Manifest, inputs: Mapping[str, str]) -> list[str]:
    """Names of the shards to do, given each shard's input fingerprint.

    A shard is done when its record has this input and the manifest's settings, and its files are there.
    """
    whole = whole_shards(store, manifest)
    return [name for name, input in inputs.items() if name not in whole or manifest.shards[name].input != input]


def whole_shards(store: Store, manifest: Manifest) -> set[str]:
    """Names of the shards that were made with the manifest's settings and whose files are there."""
    settings = manifest.settings_fingerprint
    made = [record for record in manifest.shards.values() if record.settings == settings]
    sizes = store.sizes() if made else {}
    return {record.name for record in made if not missing_files(record, sizes)}
