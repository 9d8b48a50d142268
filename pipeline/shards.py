"""THE on-disk contract of every stage's folder: names, manifest, atomic commit, verification.

A folder holds `manifest.json` and data files. A shard exists when a record says so: either in the manifest, or in a
record file of its own under `shards/`, which its worker wrote last and which is merged into the manifest when the
stage ends. A record states the shard's files with size and hash, and the fingerprints of its input and settings, so
whoever holds a record can tell whether the shard is whole and up to date.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import FolderError, InputError
from .storage import LEASE_NAME, LOCK_NAME, TEMPORARY_SUFFIX, FileRecord, HashingFile, Store, check_name

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
RECORD_FOLDER = "shards"
REPLACEMENT_FOLDER = "replacing"
"""Where a committed shard is written anew, before it takes the place of the old one."""
READ_BLOCK_ROWS = 4096
"""Rows of one parquet row group of metadata, so that captions can be read by block."""
_ABSENT = type("absent", (), {"__repr__": lambda self: "absent"})()
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

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ShardRecord:
        files = {check_name(name): FileRecord(**entry) for name, entry in value["files"].items()}
        logs = [check_name(name) for name in value["logs"]]
        numbers = (value["rows"], *value["counts"].values(), *(entry.bytes for entry in files.values()))
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise TypeError("rows, counts and bytes must be whole numbers")
        return ShardRecord(**{**value, "name": check_name(value["name"]), "files": files, "logs": logs})

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
            "shards": {name: asdict(self.shards[name]) for name in sorted(self.shards)},
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
            shards = {name: ShardRecord.from_json(entry) for name, entry in value["shards"].items()}
            return Manifest(value["stage"], value["settings"], value["input"], value["about"], shards)
        except _MISFITS as error:
            raise _no_manifest(source, error) from error


def _no_manifest(source: str, error: Exception) -> InputError:
    return InputError(f"{source} is not a priorkit manifest ({error!r}); restore it or use another folder")


def read_manifest(store: Store) -> Manifest | None:
    """The manifest of a folder with all committed records merged in; None where there is no manifest."""
    records = _read_records(store)  # first, since a writer that ends moves records into the manifest
    try:
        value = store.read_json(MANIFEST_NAME)
    except (FileNotFoundError, NotADirectoryError):
        return None
    manifest = Manifest.from_json(value, store.path(MANIFEST_NAME))
    manifest.shards.update(records)
    return manifest


def _read_records(store: Store, folder: str = RECORD_FOLDER) -> dict[str, ShardRecord]:
    """Records that are not merged into the manifest yet, by shard."""
    records = {}
    for name in store.names(folder):
        if name.endswith(".json") and not name.rpartition("/")[2].startswith("."):
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


def missing_files(store: Store, record: ShardRecord) -> list[str]:
    """Files of a record that are absent or not of the recorded size."""
    return [name for name, entry in record.files.items() if store.size(name) != entry.bytes]


def differing_files(store: Store, record: ShardRecord) -> list[str]:
    """Files of a record whose content is not what was committed; reads every byte."""
    bad = []
    for name, entry in record.files.items():
        digest = hashlib.sha256()
        try:
            with store.open(name) as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except FileNotFoundError:
            bad.append(name)
            continue
        if digest.hexdigest() != entry.sha256:
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
    return {
        record.name for record in made if all(sizes.get(name) == entry.bytes for name, entry in record.files.items())
    }


class ShardCommit:
    """Writes the files of one shard, then the record that makes them exist.

    Every file is written whole before the record, and only one process writes a shard, so a kill at any instant leaves
    either no record, and the shard is done again, or the record of a whole shard.

    Args:
        replaces: the shard has a record, which stays until the new files are all written. They are then moved over the
            old ones; a kill among these moves is mended by `finish_replacements`.
    """

    def __init__(self, store: Store, name: str, *, input: str, settings: str, replaces: bool = False) -> None:
        self._store = store
        self._replaces = replaces
        self._name = name
        self._input = input
        self._settings = settings
        self._files: dict[str, FileRecord] = {}
        self._logs: list[str] = []

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[HashingFile]:
        """A new file of this shard, atomically written, its size and hash noted for the record."""
        with self._store.create(self._place(name)) as file:
            yield file
            self._files[name] = file.record()

    def write_log(self, name: str, value: Any) -> None:
        """A JSON file of this shard whose content may differ between equal runs, such as timings."""
        self._store.write_json(self._place(name), value)
        self._logs.append(name)

    def _place(self, name: str) -> str:
        return f"{REPLACEMENT_FOLDER}/{name}" if self._replaces else name

    def commit(self, *, rows: int, counts: Mapping[str, int] | None = None) -> ShardRecord:
        """Record the shard: from here on it exists."""
        files = {name: self._files[name] for name in sorted(self._files)}
        ordered = dict(sorted((counts or {}).items()))
        record = ShardRecord(self._name, rows, self._input, self._settings, files, ordered, self._logs)
        self._store.write_json(self._place(f"{RECORD_FOLDER}/{self._name}.json"), asdict(record))
        if self._replaces:
            _move_in(self._store, record)
        return record


def _move_in(store: Store, record: ShardRecord) -> None:
    """Put a shard that was written anew in the place of the old one; may be begun again after a kill."""
    for name in (*record.files, *record.logs, f"{RECORD_FOLDER}/{record.name}.json"):
        store.move(f"{REPLACEMENT_FOLDER}/{name}", name)


def finish_replacements(store: Store, name: str | None = None) -> ShardRecord | None:
    """Put into place what a killed writer has written anew to its end: one shard, or all.

    Returns:
        The record of the shard that was asked for; None if it was not written to its end.
    """
    records = _read_records(store, f"{REPLACEMENT_FOLDER}/{RECORD_FOLDER}")
    for record in records.values():
        if name in (None, record.name):
            _move_in(store, record)
    return records.get(name) if name is not None else None


class StageFolder:
    """A stage's folder held for writing. Made by `open_stage`."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest

    def pending(self, inputs: Mapping[str, str]) -> list[str]:
        """Names of the shards to do, given each shard's input fingerprint.

        Their old records must be withdrawn first, so that a kill halfway cannot leave an old record over new files.
        """
        return pending_shards(self.store, self.manifest, inputs)

    def withdraw(self, names: Iterable[str]) -> None:
        """Take the records of shards that are about to be rewritten out of the folder."""
        known = [name for name in names if name in self.manifest.shards]
        for name in known:
            del self.manifest.shards[name]
        if known:
            self._write_manifest()
            for name in known:
                self.store.remove(f"{RECORD_FOLDER}/{name}.json")

    def add(self, record: ShardRecord) -> None:
        """Take note of a shard that a worker has committed."""
        self.manifest.shards[record.name] = record

    def describe(self, **about: Any) -> None:
        """Put what was found out into the manifest, at once."""
        self.manifest.about.update(about)
        self._write_manifest()

    def finish(self) -> None:
        """Merge all records into the manifest and clear what is no longer needed."""
        self._write_manifest()
        known = {f"{RECORD_FOLDER}/{name}.json" for name in self.manifest.shards}
        for name in known.intersection(self.store.names(RECORD_FOLDER)):  # mostly few, and a removal takes a request
            self.store.remove(name)
        _clear_replacements(self.store)
        if self.store.is_local:
            with contextlib.suppress(OSError):
                self.store.fs.rmdir(self.store.path(RECORD_FOLDER))
        self.store.sweep()

    def _write_manifest(self) -> None:
        self.store.write_json(MANIFEST_NAME, self.manifest.to_json())


@contextlib.contextmanager
def open_stage(store: Store, planned: Manifest, *, overwrite: bool = False) -> Iterator[StageFolder]:
    """Hold a folder for the stage that `planned` describes, continuing what it already holds.

    Raises:
        FolderError: the folder holds other files, another stage, other settings or another writer.
    """
    check_stage(store, planned, overwrite=overwrite)
    with store.writer():
        finish_replacements(store)
        # looked at again under the lock: another writer may have been here since
        found = check_stage(store, planned, overwrite=overwrite)
        if found is not None and overwrite:
            _discard(store, found)
            found = None
        planned.shards = found.shards if found is not None else {}
        planned.about = {**(found.about if found is not None else {}), **planned.about}
        folder = StageFolder(store, planned)
        folder._write_manifest()
        yield folder


def check_stage(store: Store, planned: Manifest, *, overwrite: bool = False) -> Manifest | None:
    """What the folder holds of the planned stage already; FolderError if that stage may not write there."""
    found = read_manifest(store)
    if found is None:
        if store.fs.isfile(store.root):
            raise FolderError(f"{store.url} is a file; name a folder")
        if others := _work(store):
            raise FolderError(
                f"{store.url} holds other work ({len(others)} files, such as {others[0]!r}) and no {MANIFEST_NAME}; "
                "name a new or empty folder"
            )
        return None
    if found.stage != planned.stage:
        raise FolderError(
            f"{store.url} holds the result of `priorkit {found.stage}`; name another folder for {planned.stage}"
        )
    if found.settings != planned.settings and not overwrite and _work(store):
        raise FolderError(
            f"{store.url} was made with other settings ({difference(found.settings, planned.settings)}); "
            "set them back, name another folder, or use --overwrite to discard what is there"
        )
    return found


def _clear_replacements(store: Store) -> None:
    """Remove what was begun anew and is not wanted any more."""
    for name in store.names(REPLACEMENT_FOLDER):
        store.remove(name)
    if store.is_local:
        for folder in (f"{REPLACEMENT_FOLDER}/{RECORD_FOLDER}", REPLACEMENT_FOLDER):
            with contextlib.suppress(OSError):
                store.fs.rmdir(store.path(folder))


def _work(store: Store) -> list[str]:
    """Names of the files that a stage, or somebody else, has written; a stage that failed at once leaves none."""
    ours = (MANIFEST_NAME, LOCK_NAME, LEASE_NAME)
    return [name for name in store.names() if name not in ours and not name.endswith(TEMPORARY_SUFFIX)]


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """Name every value in which two nested settings differ, as `name: old -> new`."""
    parts = []
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            if before != after:
                parts.append(difference(before, after, f"{prefix}{name}."))
        elif before != after:
            parts.append(f"{prefix}{name}: {before!r} -> {after!r}")
    return ", ".join(parts)


def _discard(store: Store, manifest: Manifest) -> None:
    """Remove what the records name, and only that; the manifest stays, so that the folder is known as ours."""
    for name in manifest.shards:
        store.remove(f"{RECORD_FOLDER}/{name}.json")
    for record in manifest.shards.values():
        for name in (*record.files, *record.logs):
            store.remove(name)
