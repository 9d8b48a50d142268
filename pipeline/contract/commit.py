"""Functions and classes that write the output folder of a stage (a pipeline step such as `download` or `embed`).

They lock the folder, and commit, replace and remove its shards. The module `manifest` defines the format of the folder
and reads it.
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
"""Name of the subfolder that holds the new files of an existing shard until they are moved over its old files."""
_ABSENT = type("absent", (), {"__repr__": lambda self: "absent"})()


class ShardCommit:
    """Writer for the files of one shard, and for the record (a JSON file) that marks the shard as complete.

    Only one process writes a shard, and it writes the record after all other files. If the process is killed, either
    the record exists and the shard is complete, or the record is missing and the shard is processed again. A shard
    that has a record is called committed.

    Args:
        store: folder of the stage.
        name: name of the shard.
        input: fingerprint of the shard's input. If the fingerprint is known only after the input has been read, this
            argument is empty and the fingerprint is passed to `commit`.
        settings: fingerprint of the stage's settings.
        replaces: True if the shard is already committed. The old record and files stay in place until all new files are
            written, and the new files are then moved over the old files. If the process is killed between these moves,
            `finish_replacements` completes them.
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
        """Context manager that writes a file of this shard atomically.

        The file's size and hash become part of the shard's record.
        """
        with self._store.create(self._location(name)) as file:
            yield file
            self._files[name] = file.record()

    def write_log(self, name: str, value: Any) -> None:
        """Write a JSON file whose content may differ between identical runs, such as timings.

        The shard's record contains the file's name but no hash.
        """
        self._store.write_json(self._location(name), value)
        self._logs.append(name)

    def _location(self, name: str) -> str:
        return f"{REPLACEMENT_FOLDER}/{name}" if self._replaces else name

    def commit(
        self,
        *,
        rows: int,
        counts: Mapping[str, int] | None = None,
        input: str | None = None,
        threads: int | None = None,
    ) -> ShardRecord:
        """Write the shard's record, which commits the shard, and return the record.

        Args:
            rows: number of rows in the shard.
            counts: number of rows for each outcome, such as `success`.
            input: fingerprint of the shard's input; defaults to the fingerprint given to the constructor.
            threads: number of CPU threads used; see `ShardRecord.threads`.
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
        self._store.write_json(self._location(f"{RECORD_FOLDER}/{self._name}.json"), record.to_json())
        if self._replaces:
            _move_in(self._store, record)
        return record


def _move_in(store: Store, record: ShardRecord) -> None:
    """Move a shard's new files over its old files. After an interruption, the call can be repeated to move the rest."""
    for name in (*record.files, *record.logs, f"{RECORD_FOLDER}/{record.name}.json"):
        store.move(f"{REPLACEMENT_FOLDER}/{name}", name)


def finish_replacements(store: Store, name: str | None = None) -> ShardRecord | None:
    """Finish replacing shards whose writer was killed after it committed the new files.

    The committed new files that are still in `REPLACEMENT_FOLDER` are moved over the old files.

    Args:
        name: name of a shard; None for all shards.

    Returns:
        The record of shard `name`; None if that shard had no committed new files, or if `name` is None.
    """
    records = read_records(store, f"{REPLACEMENT_FOLDER}/{RECORD_FOLDER}")
    for record in records.values():
        if name in (None, record.name):
            _move_in(store, record)
    return records.get(name) if name is not None else None


class StageFolder:
    """Output folder of a stage such as `download`, locked for writing. Use `open_stage` to create an instance."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest

    def pending(self, inputs: Mapping[str, str]) -> list[str]:
        """Return the names of the shards that still need processing.

        Before writing these shards, pass their names to `withdraw`, so that a killed process cannot leave an old record
        next to new files.

        Args:
            inputs: fingerprint of each shard's input, by shard name.
        """
        return pending_shards(self.store, self.manifest, inputs)

    def withdraw(self, names: Iterable[str]) -> None:
        """Remove the records of shards that are about to be rewritten, so that these shards count as incomplete."""
        known = [name for name in names if name in self.manifest.shards]
        for name in known:
            del self.manifest.shards[name]
        if known:
            self._write_manifest()
            for name in known:
                self.store.remove(f"{RECORD_FOLDER}/{name}.json")

    def add(self, record: ShardRecord) -> None:
        """Add a shard's record to the manifest in memory. A worker has already written the record to its own file."""
        self.manifest.shards[record.name] = record

    def describe(self, **about: Any) -> None:
        """Add entries about the folder's content to the manifest's `about` dictionary, and write the manifest."""
        self.manifest.about.update(about)
        self._write_manifest()

    def finish(self) -> None:
        """Write all shard records to the manifest file, and remove the files that are no longer needed.

        The removed files are the separate record files, which are now part of the manifest, temporary files, and new
        files that were meant to replace a shard but were never committed.
        """
        self._write_manifest()
        known = {f"{RECORD_FOLDER}/{name}.json" for name in self.manifest.shards}
        # remove only files that exist, because each removal from an object store takes a request
        for name in known.intersection(self.store.names(RECORD_FOLDER)):
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
    """Context manager that locks a stage's folder for writing and yields it as a `StageFolder`.

    Shards that are already in the folder are kept unless `overwrite` is True.

    Args:
        planned: manifest with the stage, settings and input that are about to be written.
        overwrite: True to discard the shards already in the folder, even if they were made with other settings.

    Raises:
        FolderError: the folder contains unrelated files, belongs to another stage, was made with other settings, or
            is being written by another process.
    """
    check_stage(store, planned, overwrite=overwrite)
    with lock_folder(store):
        finish_replacements(store)
        # check again now that the folder is locked: another writer may have changed it since the first check
        existing = check_stage(store, planned, overwrite=overwrite)
        if existing is not None and overwrite:
            _discard(store, existing)
            existing = None
        planned.shards = existing.shards if existing is not None else {}
        planned.about = {**(existing.about if existing is not None else {}), **planned.about}
        folder = StageFolder(store, planned)
        folder._write_manifest()
        yield folder


def check_stage(
    store: Store, planned: Manifest, *, overwrite: bool = False, advice: str = "name another folder"
) -> Manifest | None:
    """Check that the planned stage may write to a folder.

    Args:
        planned: manifest with the stage and settings that are about to be written.
        overwrite: True to accept a folder that was made with other settings.
        advice: phrase for the error message about other settings, which tells the user what to do instead of
            restoring the old settings.

    Returns:
        The folder's manifest; None if the folder has none.

    Raises:
        FolderError: the location is a file, or the folder contains unrelated files or was made by another stage or with
            other settings.
    """
    existing = read_manifest(store)
    if existing is None:
        if store.fs.isfile(store.root):
            raise FolderError(f"{store.url} is a file; name a folder")
        if others := _data_files(store):
            raise FolderError(
                f"{store.url} holds other work ({len(others)} files, such as {others[0]!r}) and no {MANIFEST_NAME}; "
                "name a new or empty folder"
            )
        return None
    if existing.stage != planned.stage:
        raise FolderError(
            f"{store.url} holds the result of `priorkit {existing.stage}`; name another folder for {planned.stage}"
        )
    if existing.settings != planned.settings and not overwrite and _data_files(store):
        raise FolderError(
            f"{store.url} was made with other settings ({difference(existing.settings, planned.settings)}); "
            f"set them back, {advice}, or use --overwrite to discard what is there"
        )
    return existing


def _clear_replacements(store: Store) -> None:
    """Remove new files that were meant to replace a shard's old files but were never committed."""
    for name in store.names(REPLACEMENT_FOLDER):
        store.remove(name)
    if store.is_local:
        for folder in (f"{REPLACEMENT_FOLDER}/{RECORD_FOLDER}", REPLACEMENT_FOLDER):
            with contextlib.suppress(OSError):
                store.fs.rmdir(store.path(folder))


def _data_files(store: Store) -> list[str]:
    """Return the names of all files except the manifest, lock, lease and temporary files.

    If the result is empty, the folder counts as empty. For example, this is the case if a stage failed before it wrote
    a shard.
    """
    bookkeeping = (MANIFEST_NAME, LOCK_NAME, LEASE_NAME)
    return [name for name in store.names() if name not in bookkeeping and not name.endswith(TEMPORARY_SUFFIX)]


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """Return a string that lists all differences between two nested dicts of settings as `name: old -> new`."""
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
    """Remove the record and the files of every shard in a manifest.

    The manifest file is kept, because it shows that priorkit created the folder.
    """
    for name in manifest.shards:
        store.remove(f"{RECORD_FOLDER}/{name}.json")
    for record in manifest.shards.values():
        for name in (*record.files, *record.logs):
            store.remove(name)
