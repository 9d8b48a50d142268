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

    def add(self, name: str, record: FileRecord) -> None:
        """Add a file that already exists in the folder to this shard. The file itself is not touched."""
        self._files[name] = record

    def write_log(self, name: str, value: Any) -> None:
        """Write a JSON log file, for example with timings.

        The content may differ between identical runs, so the shard's record contains the file's name but no hash.
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
        samples: int | None = None,
    ) -> ShardRecord:
        """Write the shard's record, which commits the shard, and return the record.

        Args:
            rows: number of rows in the shard.
            counts: number of rows for each outcome, such as `success`.
            input: fingerprint of the shard's input; defaults to the fingerprint given to the constructor.
            threads: number of CPU threads used; see `ShardRecord.threads`.
            samples: number of input samples, if it is known. It is recorded only if it differs from the sum of
                `counts`; see `ShardRecord.samples`.
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
            None if samples == sum(ordered.values()) else samples,
        )
        self._store.write_json(self._location(f"{RECORD_FOLDER}/{self._name}.json"), record.to_json())
        if self._replaces:
            _move_in(self._store, record)
        return record


def _move_in(store: Store, record: ShardRecord) -> None:
    """Move a shard's new files from `REPLACEMENT_FOLDER` over its old files, then move its new record.

    Files that have already been moved are skipped, so the call can be repeated after an interruption.
    """
    for name in (*record.files, *record.logs, f"{RECORD_FOLDER}/{record.name}.json"):
        store.move(f"{REPLACEMENT_FOLDER}/{name}", name)


def finish_replacements(store: Store, name: str | None = None) -> ShardRecord | None:
    """Finish replacing the shards whose writer was killed while it moved the new files over the old files.

    A shard's new files are moved only if they are committed, which means that `REPLACEMENT_FOLDER` contains their
    record.

    Args:
        name: name of the shard to finish; None to finish all shards.

    Returns:
        The new record of shard `name`; None if that shard has no committed new files, or if `name` is None.
    """
    records = read_records(store, f"{REPLACEMENT_FOLDER}/{RECORD_FOLDER}")
    for record in records.values():
        if name in (None, record.name):
            _move_in(store, record)
    return records.get(name) if name is not None else None


class StageFolder:
    """Output folder of a stage such as `download`, locked for writing. Use `open_stage` to create an instance."""

    def __init__(self, store: Store, manifest: Manifest, *, beside: bool = False) -> None:
        self.store = store
        self.manifest = manifest
        self._beside = beside

    def pending(self, inputs: Mapping[str, str]) -> list[str]:
        """Return the names of the shards that still need to be processed.

        A shard is processed if it has no record, if its input or the settings have changed, or if its files are missing
        or have the wrong size.

        Before writing these shards, pass their names to `withdraw`. Otherwise, a killed process could leave the old
        record of a shard next to its new files.

        Args:
            inputs: fingerprint of each shard's input, by shard name.
        """
        return pending_shards(self.store, self.manifest, inputs)

    def withdraw(self, names: Iterable[str]) -> None:
        """Remove the records of shards that are about to be rewritten, so that these shards count as incomplete.

        Args:
            names: names of the shards. Shards without a record are ignored.
        """
        known = [name for name in names if name in self.manifest.shards]
        for name in known:
            del self.manifest.shards[name]
        if known:
            self._write_manifest()
            for name in known:
                self.store.remove(f"{RECORD_FOLDER}/{name}.json")

    def add(self, record: ShardRecord) -> None:
        """Add the record of a newly committed shard to the manifest in memory, without writing the manifest file.

        The process that wrote the shard has already saved the record in a separate file.
        """
        self.manifest.shards[record.name] = record

    def describe(self, **about: Any) -> None:
        """Add entries to the manifest's `about` dictionary, and write the manifest file.

        Args:
            about: entries to add, such as the identity of the CLIP model. An existing entry with the same name is
                replaced.
        """
        self.manifest.about.update(about)
        self._write_manifest()

    def finish(self) -> None:
        """Write all shard records to the manifest file, and remove the files that are no longer needed.

        The following files are removed:

        - the separate record files, because the manifest now contains the records;
        - files that were written to replace the files of a shard, but were never committed. In a folder opened with
          `beside`, no files are replaced, and a folder of the name `REPLACEMENT_FOLDER` is the user's;
        - temporary files.
        """
        self._write_manifest()
        known = {f"{RECORD_FOLDER}/{name}.json" for name in self.manifest.shards}
        # remove only files that exist, because each removal from an object store takes a request
        for name in known.intersection(self.store.names(RECORD_FOLDER)):
            self.store.remove(name)
        if not self._beside:
            _clear_replacements(self.store)
        if self.store.is_local:
            with contextlib.suppress(OSError):
                self.store.fs.rmdir(self.store.path(RECORD_FOLDER))
        self.store.sweep()

    def _write_manifest(self) -> None:
        self.store.write_json(MANIFEST_NAME, self.manifest.to_json())


@contextlib.contextmanager
def open_stage(
    store: Store, planned: Manifest, *, overwrite: bool = False, beside: bool = False
) -> Iterator[StageFolder]:
    """Context manager that locks a stage's folder for writing and yields it as a `StageFolder`.

    Args:
        store: folder of the stage; created if it does not exist.
        planned: new manifest of the folder, with the stage, settings and input of this run. Unless `overwrite` is True,
            the shard records of the existing manifest are added to it. If the settings are the same, the `about`
            entries are added too. They may differ only if the existing manifest has no files, and its `about` entries
            then describe files that were never written.
        overwrite: True to discard the shards already in the folder, even if they were made with other settings.
        beside: True to write the manifest beside files that the folder already contains, and never move or remove one
            of these files.

    Raises:
        FolderError: the location is a file, or the folder contains unrelated files, was written by another stage or is
            being written by another process. Also raised if the folder was made with other settings and `overwrite` is
            False.
        InputError: the existing manifest or a record in the folder is damaged.
    """
    check_stage(store, planned, overwrite=overwrite, beside=beside)
    with lock_folder(store):
        if not beside:
            finish_replacements(store)
        # check again now that the folder is locked: another writer may have changed it since the first check
        existing = check_stage(store, planned, overwrite=overwrite, beside=beside)
        if existing is not None and overwrite:
            _discard(store, existing, records_only=beside)
            existing = None
        planned.shards = existing.shards if existing is not None else {}
        if existing is not None and existing.settings == planned.settings:
            planned.about = {**existing.about, **planned.about}
        folder = StageFolder(store, planned, beside=beside)
        folder._write_manifest()
        yield folder


def check_stage(
    store: Store,
    planned: Manifest,
    *,
    overwrite: bool = False,
    advice: str = "name another folder",
    beside: bool = False,
) -> Manifest | None:
    """Check that a stage may write to a folder.

    Args:
        store: folder to check; it may be empty or missing.
        planned: manifest that the stage is about to write. Only its stage and settings are compared.
        overwrite: True to accept a folder that was made with other settings.
        advice: what the user can do instead of restoring the old settings, as a phrase for the error message.
        beside: True to accept a folder with unrelated files and without a manifest.

    Returns:
        The folder's manifest; None if the folder has none.

    Raises:
        FolderError: the location is a file, or the folder contains unrelated files or was made by another stage or with
            other settings.
        InputError: the folder's manifest or a record is damaged.
    """
    existing = read_manifest(store)
    if existing is None:
        if store.fs.isfile(store.root):
            raise FolderError(f"{store.url} is a file; name a folder")
        if not beside and (others := _data_files(store)):
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
    """Remove the files in `REPLACEMENT_FOLDER`, and the folder itself if it is local.

    These files were written to replace a shard's old files, but the process was killed before it committed them.
    """
    for name in store.names(REPLACEMENT_FOLDER):
        store.remove(name)
    if store.is_local:
        for folder in (f"{REPLACEMENT_FOLDER}/{RECORD_FOLDER}", REPLACEMENT_FOLDER):
            with contextlib.suppress(OSError):
                store.fs.rmdir(store.path(folder))


def _data_files(store: Store) -> list[str]:
    """Return the names of all files except the manifest, lock, lease and temporary files.

    If there are none, a stage may use the folder as if it were empty. For example, a stage that failed before it wrote
    a shard leaves only files of these four kinds.
    """
    bookkeeping = (MANIFEST_NAME, LOCK_NAME, LEASE_NAME)
    return [name for name in store.names() if name not in bookkeeping and not name.endswith(TEMPORARY_SUFFIX)]


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """Describe the differences between two nested dicts of settings, for a message.

    Args:
        old: first settings.
        new: second settings.
        prefix: text before each name; used by the recursive calls for nested dicts.

    Returns:
        All differences as `name: old value -> new value`, joined by commas; empty if there are none. The names of
        nested settings are joined by dots. The value of a missing setting is written as `absent`.
    """
    parts = []
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            if before != after:
                parts.append(difference(before, after, f"{prefix}{name}."))
        elif before != after:
            parts.append(f"{prefix}{name}: {before!r} -> {after!r}")
    return ", ".join(parts)


def _discard(store: Store, manifest: Manifest, *, records_only: bool) -> None:
    """Remove the record and the files of every shard in a manifest.

    The manifest file is kept, because it shows that priorkit created the folder.

    Args:
        records_only: True to keep the files, because priorkit did not create them.
    """
    for name in manifest.shards:
        store.remove(f"{RECORD_FOLDER}/{name}.json")
    for record in manifest.shards.values():
        for name in (*(() if records_only else record.files), *record.logs):
            store.remove(name)
