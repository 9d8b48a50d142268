"""Download: a list of URLs -> webdataset shards of images, in img2dataset's layout, every row accounted for.

How the stage is run, resumed and summed up is here; what there is to do is in `download_plan`, and how one shard is
made in `download_worker`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from ..compute.cluster import describe_cluster
from ..compute.parallel import map_shards
from ..compute.settings import ComputeSettings
from ..compute.stage import ProgressCallback, StagePlan, StageResult, free_bytes, no_progress, require_success
from ..contract.commit import StageFolder, check_stage, open_stage
from ..contract.manifest import Manifest, ShardRecord, fingerprint, image_shard_name
from ..contract.storage import Store
from ..errors import InputError
from ..urls.url_list import UrlList, open_url_list
from .collapse import SuccessWatch, diagnosis
from .plan import DownloadPlan, make_plan
from .progress import DownloadProgress
from .rows import TRANSIENT_OUTCOMES
from .settings import DownloadSettings
from .statistics import total_statistics
from .worker import DownloadTask, DownloadWorker

STAGE = "download"

_ASSUMED_IMAGES_PER_SECOND = 100.0
"""For the estimate of `--dry-run`: about half of what 2 cores can decode and encode."""
_ASSUMED_BYTES_PER_PIXEL = 0.45
"""For the estimate of `--dry-run`: a photograph as JPEG of quality 95."""


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
    if compute.gpus_per_worker is None:
        compute = compute.model_copy(update={"gpus_per_worker": 0.0})  # a download has no use for one
    url_list = open_url_list(urls, settings)
    store = Store(images)
    manifest = _manifest(settings)
    found = check_stage(store, manifest, overwrite=overwrite)
    plan = make_plan(url_list, settings.rows_per_shard, limit, store, None if overwrite else found)
    manifest.input = {"files": url_list.marks_json(), "rows": plan.total}
    with open_stage(store, manifest, overwrite=overwrite) as folder:
        if folder.manifest.shards != plan.kept:  # another writer has been here since
            plan = make_plan(url_list, settings.rows_per_shard, limit, store, folder.manifest)
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
        statistics = {**total_statistics(store, folder.manifest), "list": url_list.notes()}
    _require_all_rows(url_list, folder.manifest.rows, limit)
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
        cluster=describe_cluster(compute),
    )
    errors = statistics["errors"]
    require_success(result, "an image", diagnosis(errors) if errors else "")
    return result


def _require_all_rows(url_list: UrlList, rows: int, limit: int | None) -> None:
    """Compare the rows of the folder with the independent count of the list.

    Raises:
        InputError: the folder has fewer.
    """
    counted = url_list.counted_rows
    if counted is not None and rows < (counted if limit is None else min(limit, counted)):
        raise InputError(
            f"{url_list.source}: {rows:,} of its {counted:,} rows came into the folder; please report this"
        )


def _fetch(
    folder: StageFolder,
    plan: DownloadPlan,
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
    with contextlib.closing(map_shards(make_worker, tasks(), compute)) as records:
        for record in records:
            folder.add(record)
            written += 1
            if not is_here:
                stats = store.read_json(record.logs[0])
                meter.add_rows(stats["fetched"], stats["bytes"])
    meter.tell()
    return written


def _shards_to_retry(plan: DownloadPlan) -> list[str]:
    return sorted(name for name in plan.complete if _transient(plan.kept[name]))


def _transient(record: ShardRecord) -> int:
    """Rows of a shard whose failure may pass."""
    return sum(number for outcome, number in record.counts.items() if outcome in TRANSIENT_OUTCOMES)


def _won(plan: DownloadPlan, retried: list[str], manifest: Manifest) -> dict[str, int]:
    """How many rows were tried again, and how many of them gave an image."""
    won = sum(
        manifest.shards[name].counts.get("success", 0) - plan.kept[name].counts.get("success", 0) for name in retried
    )
    return {"rows": sum(_transient(plan.kept[name]) for name in retried), "success": won}


def plan_download(
    urls: str,
    images: str,
    settings: DownloadSettings,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> StagePlan:
    """What `download` would do, without doing it. Lists that are not parquet are read, to count their rows."""
    plan = check_download(urls, images, settings, limit=limit, overwrite=overwrite)
    if plan.rows is None:
        plan = replace(plan, rows=sum(batch.num_rows for batch in plan.urls.batches()))
    shards = plan.shards()
    assert shards is not None
    pending = {index: rows for index, rows in shards.items() if image_shard_name(index) not in plan.complete}
    retried = [_transient(plan.kept[name]) for name in _shards_to_retry(plan)] if retry_failed else []
    rows = sum(pending.values()) + sum(retried)
    return StagePlan(
        stage=STAGE,
        folder=plan.store.url,
        units=len(shards),
        pending_units=len(pending) + len(retried),
        unit="shards",
        pending_rows=rows,
        bytes_needed=int(rows * settings.image_size**2 * _ASSUMED_BYTES_PER_PIXEL),
        bytes_free=free_bytes(plan.store),
        seconds=rows / _ASSUMED_IMAGES_PER_SECOND,
    )


def check_download(
    urls: str, images: str, settings: DownloadSettings, *, limit: int | None = None, overwrite: bool = False
) -> DownloadPlan:
    """Raise what `download` would raise before it starts."""
    store = Store(images)
    url_list = open_url_list(urls, settings)
    found = check_stage(store, _manifest(settings), overwrite=overwrite)
    return make_plan(url_list, settings.rows_per_shard, limit, store, None if overwrite else found)


def _manifest(settings: DownloadSettings) -> Manifest:
    return Manifest(STAGE, settings.identity(), input={})
