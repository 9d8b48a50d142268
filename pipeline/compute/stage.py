"""Plans and results of stages, and the loop that runs a stage shard by shard."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Optional, TypeVar

from ..contract.commit import StageFolder
from ..contract.manifest import ShardRecord
from ..contract.storage import Store
from ..errors import FolderError, InputError
from .cluster import describe_cluster
from .parallel import Worker, map_shards
from .settings import ComputeSettings

Task = TypeVar("Task")

TimeBasis = Literal["estimate", "measured"]
"""Basis of the time in a plan: the amount of computation and the speed of the device (`estimate`), or the rate of the
work that is already done (`measured`)."""

ProgressCallback = Callable[[int, Optional[int], str], None]
"""Callback that receives the number of finished units of work, the total number of units, and a text to display. The
total is None while it is unknown."""

ProgressFactory = Callable[[str, str], contextlib.AbstractContextManager[ProgressCallback]]
"""Function that receives a description of the work and the name of its unit, and returns a context manager. The context
manager shows a progress display and yields the callback that updates it."""


def no_progress(done: int, total: int | None, note: str) -> None:
    """Do nothing. This is the default progress callback."""


@dataclass(frozen=True)
class StagePlan:
    """Work that a stage would do, as printed by `--dry-run`."""

    stage: str
    folder: str
    units: int
    """Total number of units of work, finished or not. A unit is a shard, a training step or an evaluated row."""
    pending_units: int
    unit: str
    pending_rows: int
    """Number of rows still to be processed."""
    bytes_needed: int
    """Estimated disk space for the pending work, in bytes."""
    bytes_free: int | None
    """Free space on the disk of the output folder, in bytes; None for an object store."""
    seconds: float
    """Estimated time for the pending work, in seconds."""
    notes: list[str] = field(default_factory=list)
    """Remarks about the settings, one sentence each, printed after the plan."""
    time_basis: TimeBasis = "estimate"
    """Basis of `seconds`."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class StageResult:
    """Result of running a stage, such as row counts and the time taken.

    Commands print it as a summary, or as JSON if `--json` is given.
    """

    stage: str
    folder: str
    units: int
    done_now: int
    unit: str
    rows: int
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)
    """Number of rows with each outcome, such as `success`, over all shards in the output folder."""
    statistics: dict[str, Any] = field(default_factory=dict)
    """Other statistics, keyed by name, over all shards in the output folder. Their names depend on the stage."""
    notes: list[str] = field(default_factory=list)
    """Remarks about the input or the settings, one sentence each, printed after the summary."""
    device: str = "cpu"
    """Device that ran the stage, such as `cpu, 2 threads` or `cuda (NVIDIA H200)`."""
    cluster: str = ""
    """Number of workers and address of the Ray cluster; empty if the stage ran in this process."""

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
    """Process the shards that are incomplete or whose input or settings have changed.

    Args:
        folder: output folder of the stage, locked for writing.
        tasks: function that takes the names of the shards to process and yields one task for each.
        inputs: fingerprint (hash) of the input of each shard that the folder should contain, keyed by shard
            name.
        make_worker: function that creates the worker. The worker processes a task, writes its shard and returns the
            shard's record.
        compute: settings that control where the work runs.
        progress: callback, called once at the start and after each finished shard.
        device: description of the device, for the summary.

    Returns:
        Result for the stage's summary. Its row counts cover all shards, including those that were already complete.
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


def require_success(result: StageResult, output: str, diagnosis: str = "") -> None:
    """Check that at least one row of a stage succeeded.

    Args:
        result: result of the stage.
        output: noun phrase for the output of a successful row, such as `an image`. It is used in the error message.
        diagnosis: probable cause of the failures, also used in the error message; empty if unknown.

    Raises:
        InputError: no row succeeded. The message lists the outcomes, most frequent first.
    """
    if not any(result.counts.values()):
        raise InputError(f"{result.folder}: no row gave {output}, because the input has none; name another input")
    if result.counts.get("success", 0) == 0:
        outcomes = sorted(result.counts.items(), key=lambda item: -item[1])
        named = ", ".join(f"{number:,} {outcome}" for outcome, number in outcomes)
        why = f"; {diagnosis}" if diagnosis else ""
        raise InputError(
            f"{result.folder}: no row gave {output} ({named}){why}. Its files name each; fix the cause, "
            "then use --overwrite"
        )


def require_space(plan: StagePlan) -> None:
    """Check that the disk of the output folder has enough free space for the pending work of a plan.

    Do nothing if the free space is unknown, as in an object store.

    Raises:
        FolderError: the free space is too small. The message states the required and the free space.
    """
    if plan.bytes_free is not None and plan.bytes_needed > plan.bytes_free:
        raise FolderError(
            f"{plan.folder}: what is to do takes about {plan.bytes_needed / 1e6:,.1f} MB, and the disk has "
            f"{plan.bytes_free / 1e6:,.1f} MB free; free some, name a folder elsewhere, or do a part with --limit"
        )


def free_bytes(store: Store) -> int | None:
    """Return the free space on the disk of a folder, in bytes; None for an object store.

    The folder does not have to exist yet.
    """
    if not store.is_local:
        return None
    path = store.root
    while not os.path.exists(path):
        path = os.path.dirname(path) or "."
    return shutil.disk_usage(path).free
