"""Adoption in place: the files are checked and hashed, and a manifest is written beside them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..contract.commit import ShardCommit
from ..contract.hashing import FileRecord, hash_file
from ..contract.manifest import Manifest, ShardRecord
from ..contract.storage import Store, check_name
from ..contract.vectors.rules import WORDS, judge_norms, row_fault
from ..errors import InputError
from .find import AdoptTask, Found
from .settings import AdoptSettings
from .worker import Norms, read_blocks, stats_name


def require_in_place(store: Store, found: Found, tasks: list[AdoptTask]) -> dict[str, dict[str, str]]:
    """Check that priorkit can read the files where they are, and return their names by shard and kind.

    Raises:
        InputError: a file is not a `.npy` file of the folder, or has a name that a manifest cannot contain.
    """
    instead = "adopt into a folder instead: `priorkit adopt SRC NEW_FOLDER`"
    names: dict[str, dict[str, str]] = {}
    for task in tasks:
        parts = task.files.inputs
        for kind, part in parts.items():
            if part.store.url != store.url:
                raise InputError(f"--in-place: {part.title} is not in {store.url}; {instead}")
            if kind != "metadata" and not part.name.endswith(".npy"):
                raise InputError(f"--in-place: {part.title} is not a .npy file, which can be read by rows; {instead}")
            try:
                check_name(part.name)
            except InputError:
                raise InputError(
                    f"--in-place: {part.title} has a name with other characters than letters, digits, _, - and .; "
                    f"rename it, or {instead}"
                ) from None
        names[task.name] = {kind: part.name for kind, part in parts.items()}
    return names


class InPlaceWorker:
    """Callable that checks and hashes the files of one shard per call, and returns its record.

    Args:
        store: folder of the files.
        settings: adopt settings.
        manifest: manifest of the folder.
    """

    def __init__(self, store: Store, settings: AdoptSettings, manifest: Manifest) -> None:
        self._store = store
        self._settings_fingerprint = manifest.settings_fingerprint

    def __call__(self, task: AdoptTask, following: AdoptTask | None = None) -> ShardRecord:
        start = time.time()
        commit = ShardCommit(self._store, task.name, input=task.input, settings=self._settings_fingerprint)
        parts = task.files.inputs
        norms = {kind: Norms() for kind in task.files.parts}
        with ThreadPoolExecutor(len(parts), thread_name_prefix="hash") as pool:
            hashes = {part.name: pool.submit(self._record, part.name) for part in parts.values()}
            for block in read_blocks(task.files, task.first, task.rows, None):
                for kind, values in block.norms.items():
                    norms[kind].add(values)
                    if (bad := judge_norms(values).bad).any():
                        at = int(np.argmax(bad))
                        fault = row_fault(block.embeds[kind][at], float(values[at]))
                        raise InputError(
                            f"{task.files.parts[kind].title}, row {block.first + at}: the {WORDS[kind]} embedding "
                            f"{fault}; adopt into a folder instead, with --normalise or --skip-invalid"
                        )
            for name, record in hashes.items():
                commit.add(name, record.result())
        described = {kind: each.to_json() for kind, each in norms.items()}
        commit.write_log(stats_name(task.name), {"rows": task.rows, "seconds": time.time() - start, "norms": described})
        return commit.commit(rows=task.rows, counts={"success": task.rows})

    def _record(self, name: str) -> FileRecord:
        with self._store.open(name) as file:
            sha256 = hash_file(file)
        return FileRecord(self._store.size(name) or 0, sha256)
