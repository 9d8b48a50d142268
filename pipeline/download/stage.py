"""Download stage: downloads a URL list into webdataset shards of images, in img2dataset's layout.

Each list row gets exactly one outcome. This module runs and resumes the stage and summarizes its result. `plan.py`
decides what remains to be done, and `worker.py` writes each shard.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from ..compute.cluster import describe_cluster
from ..compute.parallel import Worker, map_shards
from ..compute.settings import ComputeSettings
from ..compute.stage import ProgressCallback, StagePlan, StageResult, free_bytes, no_progress, require_success
from ..contract.commit import StageFolder, check_stage, open_stage
from ..contract.manifest import Manifest, ShardRecord, fingerprint, image_shard_name
from ..contract.storage import Store
from ..errors import InputError
from ..urls.url_list import UrlList, open_url_list
from .collapse import SuccessWatch, diagnosis
from .fetching.paths import base_of
from .img2dataset_engine.columns import check_columns
from .img2dataset_engine.worker import Img2datasetWorker, remove_working_folders
from .outcomes import SUCCESS, TRANSIENT_OUTCOMES
from .plan import DownloadPlan, make_plan
from .progress import DownloadProgress
from .settings import DownloadSettings
from .statistics import total_statistics
from .worker import DownloadTask, DownloadWorker

STAGE = "download"

_ASSUMED_IMAGES_PER_SECOND = 100.0
"""Images per second assumed by `--dry-run`: about half the rate at which 2 CPU cores decode and encode images."""
_ASSUMED_BYTES_PER_PIXEL = 0.45
"""Bytes per pixel assumed by `--dry-run`: typical of a photograph stored as JPEG at quality 95."""
_ASSUMED_BYTES_PER_BODY = 100_000
"""Bytes per image assumed by `--dry-run` for images that are not resized: typical of a photograph on the web."""


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
    """Download the images in a URL list into shards. Shards that are already complete are not downloaded again.

    Args:
        urls: path or URL of a list, in any supported format.
        images: folder for the webdataset shards.
        settings: download settings; None for the defaults.
        compute: worker settings; None for the defaults.
        limit: number of rows to download, from the start of the list; None for all.
        overwrite: discard the content of the folder and download everything again.
        retry_failed: retry the rows whose failure was transient: DNS, connection, proxy, certificate, timeout,
            HTTP 429 or HTTP 5xx.
        progress: callback that receives the number of finished rows, the total number of rows (None if unknown) and a
            string that shows the download rates.

    Returns:
        Summary of the run and of the folder.

    Raises:
        InputError: the list is missing, empty or unreadable, or it lacks a column.
        FolderError: the folder belongs to another stage, other settings or another list.
        PriorkitError: too few rows yielded an image. The message states the probable cause.
    """
    start = time.monotonic()
    settings, compute = settings or DownloadSettings(), compute or ComputeSettings()
    if compute.gpus_per_worker is None:
        compute = compute.model_copy(update={"gpus_per_worker": 0.0})  # a download uses no GPU
    url_list = _open_list(urls, settings)
    store = Store(images)
    manifest = _manifest(settings)
    earlier = check_stage(store, manifest, overwrite=overwrite)
    plan = make_plan(url_list, settings.rows_per_shard, limit, store, None if overwrite else earlier)
    manifest.input = {"files": url_list.marks_json(), "rows": plan.total}
    with open_stage(store, manifest, overwrite=overwrite) as folder:
        remove_working_folders(store)
        if folder.manifest.shards != plan.existing:  # another process wrote shards before we locked the folder
            plan = make_plan(url_list, settings.rows_per_shard, limit, store, folder.manifest)
        folder.withdraw([name for name in plan.existing if name not in plan.complete])
        retried = _shards_to_retry(plan) if retry_failed else []
        done_now = _fetch_shards(folder, plan, retried, settings, compute, progress)
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
        statistics["retried"] = _retry_result(plan, retried, folder.manifest)
    result = StageResult(
        stage=STAGE,
        folder=store.url,
        units=len(records),
        done_now=done_now,
        unit="shards",
        rows=folder.manifest.rows,
        seconds=time.monotonic() - start,
        counts=folder.manifest.counts(),
        statistics=statistics,
        notes=settings.engine_notes(),
        cluster=describe_cluster(compute),
    )
    errors = statistics["errors"]
    require_success(result, "an image", diagnosis(errors) if errors else "")
    return result


def _require_all_rows(url_list: UrlList, rows: int, limit: int | None) -> None:
    """Check that the folder has all rows of the list, up to the limit. Do nothing if the list has not been counted.

    Args:
        url_list: list that was downloaded.
        rows: number of rows in the folder.
        limit: maximum number of rows to download; None for all.

    Raises:
        InputError: the folder has fewer rows.
    """
    counted = url_list.counted_rows
    if counted is not None and rows < (counted if limit is None else min(limit, counted)):
        raise InputError(
            f"{url_list.source}: {rows:,} of its {counted:,} rows came into the folder; please report this"
        )


def _fetch_shards(
    folder: StageFolder,
    plan: DownloadPlan,
    retried: list[str],
    settings: DownloadSettings,
    compute: ComputeSettings,
    progress: ProgressCallback,
) -> int:
    """Download the missing shards, then retry failed rows, and return the number of shards written.

    Args:
        folder: folder that receives the shards.
        plan: plan that lists the existing shards and yields the tasks for the missing ones.
        retried: names of complete shards whose rows with a transient failure are fetched again.
        settings: download settings.
        compute: worker settings.
        progress: callback for progress reports.
    """
    store = folder.store
    rows_to_retry = sum(_transient_rows(plan.existing[name]) for name in retried)
    done = sum(plan.existing[name].rows for name in plan.complete) - rows_to_retry
    # most rows that failed before fail again, so a low success rate says nothing about the network
    watch = None if retried else SuccessWatch(settings.min_success_rate, settings.success_window)
    meter = DownloadProgress(progress, done, plan.total, watch)
    is_local = compute.backend == "local"
    options = (store, settings, folder.manifest.settings_fingerprint, meter.add_row if is_local else None)
    base = base_of(plan.urls.source) if settings.allow_paths else None
    make_worker: Callable[[], Worker[DownloadTask, ShardRecord]] = (
        partial(Img2datasetWorker, *options)
        if settings.engine == "img2dataset"
        else partial(DownloadWorker, *options, base)
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
            if not is_local:
                stats = store.read_json(record.logs[0])
                meter.add_rows(stats["fetched"], stats["bytes"])
    meter.report()
    return written


def _shards_to_retry(plan: DownloadPlan) -> list[str]:
    """Return the names of the complete shards that contain rows with a transient failure."""
    return sorted(name for name in plan.complete if _transient_rows(plan.existing[name]))


def _transient_rows(record: ShardRecord) -> int:
    """Return the number of rows in a shard that have a transient failure."""
    return sum(number for outcome, number in record.counts.items() if outcome in TRANSIENT_OUTCOMES)


def _retry_result(plan: DownloadPlan, retried: list[str], manifest: Manifest) -> dict[str, int]:
    """Return a dictionary with the number of retried rows (`rows`) and how many of them succeeded (`success`).

    Args:
        plan: plan with the records of the shards as they were before the retry.
        retried: names of the retried shards.
        manifest: manifest after the retry.
    """
    success = sum(
        manifest.shards[name].counts.get(SUCCESS, 0) - plan.existing[name].counts.get(SUCCESS, 0) for name in retried
    )
    return {"rows": sum(_transient_rows(plan.existing[name]) for name in retried), "success": success}


def plan_download(
    urls: str,
    images: str,
    settings: DownloadSettings,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> StagePlan:
    """Estimate the rows, disk space and time that `download` would need with the same arguments, without running it.

    The list is read to count its rows, unless all its files are uncompressed Parquet.
    """
    plan = check_download(urls, images, settings, limit=limit, overwrite=overwrite)
    if plan.rows is None:
        plan = replace(plan, rows=sum(batch.num_rows for batch in plan.urls.batches()))
    shards = plan.shards()
    assert shards is not None
    pending = {index: rows for index, rows in shards.items() if image_shard_name(index) not in plan.complete}
    retried = [_transient_rows(plan.existing[name]) for name in _shards_to_retry(plan)] if retry_failed else []
    rows = sum(pending.values()) + sum(retried)
    resized_bytes = settings.image_size**2 * _ASSUMED_BYTES_PER_PIXEL
    image_bytes = _ASSUMED_BYTES_PER_BODY if settings.resize_mode == "no" else resized_bytes
    return StagePlan(
        stage=STAGE,
        folder=plan.store.url,
        units=len(shards),
        pending_units=len(pending) + len(retried),
        unit="shards",
        pending_rows=rows,
        bytes_needed=int(rows * image_bytes),
        bytes_free=free_bytes(plan.store),
        seconds=rows / _ASSUMED_IMAGES_PER_SECOND,
        notes=settings.engine_notes(),
    )


def check_download(
    urls: str, images: str, settings: DownloadSettings, *, limit: int | None = None, overwrite: bool = False
) -> DownloadPlan:
    """Run the checks that `download` runs on the list and the folder before it starts, and return the plan.

    Raises:
        InputError: the list is missing, empty or unreadable, or it lacks a column.
        FolderError: the folder belongs to another stage, other settings or another list.
    """
    store = Store(images)
    url_list = _open_list(urls, settings)
    earlier = check_stage(store, _manifest(settings), overwrite=overwrite)
    return make_plan(url_list, settings.rows_per_shard, limit, store, None if overwrite else earlier)


def _open_list(urls: str, settings: DownloadSettings) -> UrlList:
    """Open a URL list, and check that the download engine can write its columns.

    Raises:
        InputError: the list is missing, empty or unreadable, it lacks a column, or the engine cannot write a column.
    """
    url_list = open_url_list(urls, settings)
    if settings.engine == "img2dataset":
        check_columns(url_list.source, url_list.schema, url_list.columns.bbox_column)
    return url_list


def _manifest(settings: DownloadSettings) -> Manifest:
    """Return the manifest for a new download folder: the settings, with no input and no shards yet."""
    about = {}
    if settings.engine == "img2dataset":
        about["img2dataset"] = importlib.metadata.version("img2dataset")
    return Manifest(STAGE, settings.identity(), input={}, about=about)
