"""How a stage of shards is run: what is planned, what of it is pending, and what came of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Optional, TypeVar

from ..contract.commit import StageFolder
from ..contract.manifest import ShardRecord
from ..contract.storage import Store
from ..errors import FolderError, InputError
from .cluster import describe_cluster
from .parallel import Worker, map_shards
from .settings import ComputeSettings

Task = TypeVar("Task")

ProgressCallback = Callable[[int, Optional[int], str], None]
"""Told of progress as (done, total, note); the total is None where it is not known yet."""

ProgressFactory = Callable[[str, str], contextlib.AbstractContextManager[ProgressCallback]]
"""Given what is under way and its unit, opens a place to report progress to."""


def no_progress(done: int, total: int | None, note: str) -> None:
    """The progress callback of callers that do not want to know."""


@dataclass(frozen=True)
class StagePlan:
    """What a stage would do: the answer to `--dry-run`."""

    stage: str
    folder: str
    units: int
    """Shards, training steps or evaluated rows in all."""
    pending_units: int
    unit: str
    pending_rows: int
    """Rows that are still to be worked on."""
    bytes_needed: int
    """Estimate of the disk space that the pending work takes."""
    bytes_free: int | None
    """Free space where the folder is; None on an object store."""
    seconds: float
    """Estimate of the time that the pending work takes."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class StageResult:
    """What a stage did: the summary that is printed, or given as `--json`."""

    stage: str
    folder: str
    units: int
    done_now: int
    unit: str
    rows: int
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)
    """Rows by outcome, over all shards of the folder."""
    statistics: dict[str, Any] = field(default_factory=dict)
    """What else a stage counts, over all shards of the folder; see its documentation."""
    notes: list[str] = field(default_factory=list)
    """What a user should know about the input, a sentence each."""
    device: str = "cpu"
    """What the work is done on, such as `cpu, 2 threads` or `cuda (NVIDIA H200)`."""
    cluster: str = ""
    """Workers and address of the Ray cluster; empty where the work was done in this process."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_shards(
    folder: StageFolder,
    tasks: Callable[[list[str]], Iterable[Task]],
    inputs: dict[str, str],
    make_worker: Callable[[], Worker[Task, ShardRecord]],
    compute: ComputeSettings,
    progress: ProgressCallback,
    device: str = "cpu",
) -> StageResult:
    """Bring all shards of a folder up to date.

    Args:
        folder: the folder, held for writing.
        tasks: given the names of the pending shards, yields a task for each of them.
        inputs: fingerprint of the input of every shard that the folder shall hold.
        make_worker: builds the function that turns a task into a committed shard.
        compute: where to work.
        progress: told of each finished shard.
        device: what the work is done on, for the summary.
    """
    start = time.monotonic()
    pending = folder.pending(inputs)
    folder.withdraw(pending)
    done = len(inputs) - len(pending)
    progress(done, len(inputs), "")
    with contextlib.closing(map_shards(make_worker, tasks(pending), compute)) as records:
        for record in records:
            folder.add(record)
            done += 1
            progress(done, len(inputs), f"{folder.manifest.rows:,} rows")
    folder.finish()
    return StageResult(
        stage=folder.manifest.stage,
        folder=folder.store.url,
        units=len(inputs),
        done_now=len(pending),
        unit="shards",
        rows=folder.manifest.rows,
        seconds=time.monotonic() - start,
        counts=folder.manifest.counts(),
        device=device,
        cluster=describe_cluster(compute),
    )


def require_success(result: StageResult, what: str, diagnosis: str = "") -> None:
    """Refuse to call a stage done that gave nothing at all.

    Args:
        diagnosis: what the outcomes point to, if that is known.

    Raises:
        InputError: names the outcomes, the most frequent first.
    """
    if result.counts.get("success", 0) == 0:
        outcomes = sorted(result.counts.items(), key=lambda item: -item[1])
        named = ", ".join(f"{number:,} {outcome}" for outcome, number in outcomes) or "there were none"
        why = f"; {diagnosis}" if diagnosis else ""
        raise InputError(
            f"{result.folder}: no row gave {what} ({named}){why}. Its files name each; mend the cause, "
            "then use --overwrite"
        )


def require_space(plan: StagePlan) -> None:
    """Refuse to start what the disk has no room for.

    Raises:
        FolderError: says what is needed and what is free.
    """
    if plan.bytes_free is not None and plan.bytes_needed > plan.bytes_free:
        raise FolderError(
            f"{plan.folder}: what is to do takes about {plan.bytes_needed / 1e6:,.1f} MB, and the disk has "
            f"{plan.bytes_free / 1e6:,.1f} MB free; free some, name a folder elsewhere, or do a part with --limit"
        )


def free_bytes(store: Store) -> int | None:
    """Free space at a local folder, which need not exist yet; None on an object store."""
    if not store.is_local:
        return None
    path = store.root
    while not os.path.exists(path):
        path = os.path.dirname(path) or "."
    return shutil.disk_usage(path).free
