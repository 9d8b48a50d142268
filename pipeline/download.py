"""Download: a list of URLs -> webdataset shards of images, in img2dataset's layout, every row accounted for.

What is planned, refused and resumed is here; how one shard is made is in `download_worker`. The list is read as the
work goes on: before it starts, only those shards that are there already are held against it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa

from .collapse import SuccessWatch
from .config import ComputeSettings, DownloadSettings
from .download_progress import DownloadProgress
from .download_stats import total_statistics
from .download_worker import DownloadTask, DownloadWorker, PlannedShard
from .errors import FolderError
from .image_shard import TRANSIENT_OUTCOMES
from .parallel import map_shards
from .shards import (
    Manifest,
    ShardRecord,
    StageFolder,
    check_stage,
    fingerprint,
    image_shard_name,
    open_stage,
    whole_shards,
)
from .stage import ProgressCallback, StagePlan, StageResult, free_bytes, no_progress, require_success
from .storage import Store
from .urls import UrlList, open_url_list, rows_digest

STAGE = "download"

_ASSUMED_IMAGES_PER_SECOND = 100.0
"""For the estimate of `--dry-run`: about half of what 2 cores can decode and encode."""
_ASSUMED_BYTES_PER_PIXEL = 0.45
"""For the estimate of `--dry-run`: a photograph as JPEG of quality 95."""


@dataclass(frozen=True)
class Plan:
    """What a folder holds of a list, and what is to come."""

    urls: UrlList
    store: Store
    rows_per_shard: int
    limit: int | None
    kept: dict[str, ShardRecord]
    """Shards that the folder had, and that are of this list."""
    complete: frozenset[str]
    """Those of them that need nothing."""
    rows: int | None
    """Rows of the list; None where they are not counted yet."""

    @property
    def total(self) -> int | None:
        """Rows that the folder shall hold; None where that is not known yet."""
        shards = self.shards()
        return None if shards is None else sum(shards.values())

    def wanted(self, index: int, available: int) -> int:
        """Rows that a shard shall have, of those that the list has for it."""
        rows = available
        if self.limit is not None:
            rows = min(rows, max(0, self.limit - index * self.rows_per_shard))
        record = self.kept.get(image_shard_name(index))
        return rows if record is None else max(rows, record.rows)

    def shards(self) -> dict[int, int] | None:
        """Rows of each shard that the folder shall hold, by its number; None where the list is not counted yet."""
        if self.rows is None:
            return None
        size = self.rows_per_shard
        rows = self.rows if self.limit is None else min(self.rows, self.limit)
        numbers = sorted({*range(-(-rows // size)), *map(int, self.kept)})
        return {index: self.wanted(index, min(size, self.rows - index * size)) for index in numbers}

    def is_unwanted(self, index: int) -> bool:
        """Whether a shard needs nothing, or is beyond the limit."""
        name = image_shard_name(index)
        return name in self.complete or (name not in self.kept and self.wanted(index, 1) == 0)

    def is_complete(self) -> bool:
        """Whether there is nothing to do, as far as can be told without reading the list."""
        if len(self.complete) < len(self.kept):
            return False
        if (shards := self.shards()) is not None:
            return all(map(self.is_unwanted, shards))
        return self.limit is not None and all(map(self.is_unwanted, range(-(-self.limit // self.rows_per_shard))))

    def tasks(self) -> Iterator[DownloadTask]:
        """The shards to fetch, read from the list one after the other."""
        if self.is_complete():
            return
        last_kept = max(map(int, self.kept), default=-1)
        for index, table in self.urls.shards(self.rows_per_shard, self.is_unwanted):
            yield self._task(index, table.slice(0, self.wanted(index, table.num_rows)))
            if index >= last_kept and self.is_unwanted(index + 1):
                return  # the limit: what follows in the list need not be read

    def retries(self, names: list[str]) -> Iterator[DownloadTask]:
        """Those of the complete shards that shall be tried again."""
        numbers = set(map(int, names))
        for index, table in self.urls.shards(self.rows_per_shard, lambda index: index not in numbers):
            yield self._task(index, table.slice(0, self.kept[image_shard_name(index)].rows), retry=True)
            numbers.remove(index)
            if not numbers:
                return

    def _task(self, index: int, table: pa.Table, retry: bool = False) -> DownloadTask:
        name, digest = image_shard_name(index), rows_digest(table)
        check_rows(self.urls, self.store, self.kept.get(name), index * self.rows_per_shard, table)
        return DownloadTask(PlannedShard(name, table.num_rows, digest), index * self.rows_per_shard, table, retry)


def download(
    urls: str,
    images: str = "data/images",
    settings: DownloadSettings | None = None,
    *,
    compute: ComputeSettings | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    progress: ProgressCallback = no_progress,
) -> StageResult:
    """Fetch the images of a list of URLs, or what is missing of them.

    Args:
        urls: a list in any format that `urls` reads, local or remote.
        images: folder of the webdataset shards.
        limit: only the first rows of the list, this many.
        overwrite: discard what the folder holds and download anew.
        retry_failed: fetch those rows again that failed in a way that may have passed: name look-up, connection,
            certificate, time, HTTP 429 and 5xx.
        progress: told of rows.

    Raises:
        InputError: the list is missing, empty, unreadable or lacks a column.
        FolderError: the folder holds other work, other settings, or another list.
        PriorkitError: too few rows give an image; the message says why.
    """
    begun = time.monotonic()
    settings, compute = settings or DownloadSettings(), compute or ComputeSettings()
    url_list = open_url_list(urls, settings)
    store = Store(images)
    manifest = _manifest(settings)
    found = check_stage(store, manifest, overwrite=overwrite)
    plan = _plan(url_list, settings, limit, store, None if overwrite else found)
    manifest.input = {"files": url_list.marks_json(), "rows": plan.total}
    with open_stage(store, manifest, overwrite=overwrite) as folder:
        if folder.manifest.shards != plan.kept:  # another writer has been here since
            plan = _plan(url_list, settings, limit, store, folder.manifest)
        folder.withdraw([name for name in plan.kept if name not in plan.complete])
        retried = _shards_to_retry(plan) if retry_failed else []
        done_now = _fetch(folder, plan, retried, settings, compute, progress)
        records = [folder.manifest.shards[name] for name in sorted(folder.manifest.shards)]
        manifest.input = {
            "files": url_list.marks_json(),
            "rows": folder.manifest.rows,
            "sha256": fingerprint([record.input for record in records]),
        }
        folder.finish()
        statistics = total_statistics(store, folder.manifest)
    if retry_failed:
        statistics["retried"] = _won(plan, retried, folder.manifest)
    result = StageResult(
        stage=STAGE,
        folder=store.url,
        units=len(records),
        done_now=done_now,
        unit="shards",
        rows=folder.manifest.rows,
        seconds=time.monotonic() - begun,
        counts=folder.manifest.counts(),
        statistics=statistics,
    )
    require_success(result, "an image")
    return result


def _fetch(
    folder: StageFolder,
    plan: Plan,
    retried: list[str],
    settings: DownloadSettings,
    compute: ComputeSettings,
    progress: ProgressCallback,
) -> int:
    """Fetch what is missing, then what shall be tried again; returns the number of shards that were written."""
    store = folder.store
    to_try = sum(_transient(plan.kept[name]) for name in retried)
    done = sum(plan.kept[name].rows for name in plan.complete) - to_try
    # what failed before will mostly fail again, which says nothing of the network
    watch = None if retried else SuccessWatch(settings.min_success_rate, settings.success_window)
    meter = DownloadProgress(progress, done, plan.total, watch)
    is_here = compute.backend == "local"
    make_worker = partial(
        DownloadWorker, store, settings, folder.manifest.settings_fingerprint, meter.add_row if is_here else None
    )

    def tasks() -> Iterator[DownloadTask]:
        yield from plan.tasks()
        if retried:
            yield from plan.retries(retried)

    written = 0
    for record in map_shards(make_worker, tasks(), compute):
        folder.add(record)
        written += 1
        if not is_here:
            stats = store.read_json(record.logs[0])
            meter.add_rows(stats["fetched"], stats["bytes"])
    meter.end()
    return written


def _shards_to_retry(plan: Plan) -> list[str]:
    return sorted(name for name in plan.complete if _transient(plan.kept[name]))


def _transient(record: ShardRecord) -> int:
    """Rows of a shard whose failure may pass."""
    return sum(number for outcome, number in record.counts.items() if outcome in TRANSIENT_OUTCOMES)


def _won(plan: Plan, retried: list[str], manifest: Manifest) -> dict[str, int]:
    """How many rows were tried again, and how many of them gave an image."""
    won = sum(
        manifest.shards[name].counts.get("success", 0) - plan.kept[name].counts.get("success", 0) for name in retried
    )
    return {"rows": sum(_transient(plan.kept[name]) for name in retried), "success": won}


def plan_download(
    urls: str, images: str, settings: DownloadSettings, *, limit: int | None = None, overwrite: bool = False
) -> StagePlan:
    """What `download` would do, without doing it. Lists that are not parquet are read, to count their rows."""
    plan = check_download(urls, images, settings, limit=limit, overwrite=overwrite)
    if plan.rows is None:
        plan = replace(plan, rows=sum(batch.num_rows for batch in plan.urls.batches()))
    shards = plan.shards()
    assert shards is not None
    pending = {index: rows for index, rows in shards.items() if image_shard_name(index) not in plan.complete}
    rows = sum(pending.values())
    return StagePlan(
        stage=STAGE,
        folder=plan.store.url,
        units=len(shards),
        pending_units=len(pending),
        unit="shards",
        pending_rows=rows,
        bytes_needed=int(rows * settings.image_size**2 * _ASSUMED_BYTES_PER_PIXEL),
        bytes_free=free_bytes(plan.store),
        seconds=rows / _ASSUMED_IMAGES_PER_SECOND,
    )


def check_download(
    urls: str, images: str, settings: DownloadSettings, *, limit: int | None = None, overwrite: bool = False
) -> Plan:
    """Raise what `download` would raise before it starts."""
    store = Store(images)
    url_list = open_url_list(urls, settings)
    found = check_stage(store, _manifest(settings), overwrite=overwrite)
    return _plan(url_list, settings, limit, store, None if overwrite else found)


def _plan(urls: UrlList, settings: DownloadSettings, limit: int | None, store: Store, found: Manifest | None) -> Plan:
    """Hold a list against the shards that a folder has already.

    A list may grow at its end. Any other change is refused, since rows of two lists would be mixed. Shards whose rows
    are in files that have not changed since are taken as they are; the rows of others are read and compared. What the
    folder holds beyond a limit is kept.

    Raises:
        FolderError: the folder's shards are of another list.
    """
    size = settings.rows_per_shard
    plan = Plan(urls, store, size, limit, {}, frozenset(), urls.rows)
    if found is None or not found.shards:
        return plan
    plan = replace(plan, kept=dict(found.shards))
    whole = whole_shards(store, found)
    unchanged = urls.unchanged_rows(found.input.get("files", ()))
    rows = urls.rows
    complete, to_read = set(), set()
    for name, record in plan.kept.items():
        if not name.isdecimal():
            raise FolderError(
                f"{store.url}: shard {name!r} in its manifest is none of a download; restore the manifest"
            )
        index, first = int(name), int(name) * size
        if first + record.rows > unchanged or (rows is None and record.rows < size):
            to_read.add(index)
        elif name in whole and record.rows == plan.wanted(index, size if rows is None else min(size, rows - first)):
            complete.add(name)
    for index, table in urls.shards(size, lambda index: index not in to_read) if to_read else ():
        name = image_shard_name(index)
        check_rows(urls, store, plan.kept[name], index * size, table)
        if name in whole and plan.kept[name].rows == plan.wanted(index, table.num_rows):
            complete.add(name)
        if table.num_rows < size:
            rows = index * size + table.num_rows  # here it ends
        to_read.remove(index)
        if not to_read:
            break
    if to_read:
        raise _changed_list(urls, store, f"it ends before row {min(to_read) * size:,}, where the folder goes on")
    return replace(plan, complete=frozenset(complete), rows=rows)


def check_rows(urls: UrlList, store: Store, record: ShardRecord | None, first: int, table: pa.Table) -> None:
    """Hold rows of a list against the record of the shard that they made.

    Raises:
        FolderError: they made no such shard.
    """
    if record is not None and (
        record.rows > table.num_rows or rows_digest(table.slice(0, record.rows)) != record.input
    ):
        raise _changed_list(urls, store, f"rows {first:,} to {first + record.rows:,} differ")


def _changed_list(urls: UrlList, store: Store, detail: str) -> FolderError:
    return FolderError(
        f"{store.url} was downloaded from another list than {urls.source} ({detail}); "
        "a list may only grow at its end: name another folder for this one"
    )


def _manifest(settings: DownloadSettings) -> Manifest:
    return Manifest(STAGE, settings.identity(), input={})
