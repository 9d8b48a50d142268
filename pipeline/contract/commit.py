"""A stage's folder while it is written: shards are committed, replaced, withdrawn and merged, by one writer at a time.

What the folder holds, and how it is read, is in `shards`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import FolderError
from .hashing import FileRecord, HashingFile
from .lock import LEASE_NAME, LOCK_NAME, lock_folder
from .manifest import MANIFEST_NAME, RECORD_FOLDER, Manifest, ShardRecord, pending_shards, read_manifest, read_records
from .storage import TEMPORARY_SUFFIX, Store

REPLACEMENT_FOLDER = "replacing"
"""Where a committed shard is written anew, before it takes the place of the old one."""
_ABSENT = type("absent", (), {"__repr__": lambda self: "absent"})()


class ShardCommit:
    """Writes the files of one shard, then the record that makes them exist.

    Every file is written whole before the record, and only one process writes a shard, so a kill at any instant leaves
    either no record, and the shard is done again, or the record of a whole shard.

    Args:
        input: fingerprint of the shard's input, unless it is known only when the input has been read.
        replaces: the shard has a record, which stays until the new files are all written. They are then moved over the
            old ones; a kill among these moves is mended by `finish_replacements`.
    """

    def __init__(self, store: Store, name: str, *, input: str = "", settings: str, replaces: bool = False) -> None:
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

    def commit(
        self,
        *,
        rows: int,
        counts: Mapping[str, int] | None = None,
        input: str | None = None,
        threads: int | None = None,
    ) -> ShardRecord:
        """Record the shard: from here on it exists.

        Args:
            input: fingerprint of its input, where it was not known before.
            threads: see `ShardRecord`.
        """
        files = {name: self._files[name] for name in sorted(self._files)}
        ordered = dict(sorted((counts or {}).items()))
        record = ShardRecord(
            self._name,
            rows,
            self._input if input is None else input,
            self._settings,
            files,
            ordered,
            self._logs,
            threads,
        )
        self._store.write_json(self._place(f"{RECORD_FOLDER}/{self._name}.json"), record.to_json())
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
    records = read_records(store, f"{REPLACEMENT_FOLDER}/{RECORD_FOLDER}")
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
    with lock_folder(store):
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


def check_stage(
    store: Store, planned: Manifest, *, overwrite: bool = False, advice: str = "name another folder"
) -> Manifest | None:
    """What the folder holds of the planned stage already; FolderError if that stage may not write there.

    Args:
        advice: what to do about other settings, beside setting them back.
    """
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
            f"set them back, {advice}, or use --overwrite to discard what is there"
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
