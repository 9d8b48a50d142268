"""Download: a list of URLs -> webdataset shards of images, in img2dataset's layout, every row accounted for.

What is planned, refused and resumed is here; how one shard is made is in `download_worker`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from .config import ComputeSettings, DownloadSettings
from .download_worker import DownloadTask, DownloadWorker, PlannedShard
from .errors import FolderError
from .shards import (
    Manifest,
    check_stage,
    fingerprint,
    image_shard_name,
    open_stage,
    pending_shards,
)
from .stage import ProgressCallback, StagePlan, StageResult, free_bytes, no_progress, require_success, run_shards
from .storage import Store
from .urls import UrlList, open_url_list, rows_digest

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
    progress: ProgressCallback = no_progress,
) -> StageResult:
    """Fetch the images of a list of URLs, or what is missing of them.

    Args:
        urls: a list in any format that `urls` reads, local or remote.
        images: folder of the webdataset shards.
        limit: only the first rows of the list, this many.
        overwrite: discard what the folder holds and download anew.

    Raises:
        InputError: the list is missing, empty, unreadable or lacks a column.
        FolderError: the folder holds other work, other settings, or another list.
    """
    settings = settings or DownloadSettings()
    url_list = open_url_list(urls, settings)
    store = Store(images)
    manifest = _manifest(settings)
    found = check_stage(store, manifest, overwrite=overwrite)
    planned = plan_shards(url_list, settings, limit, None if overwrite else found, images)
    manifest.input = {"rows": sum(s.rows for s in planned), "sha256": fingerprint([s.digest for s in planned])}
    with open_stage(store, manifest, overwrite=overwrite) as folder:
        result = run_shards(
            folder,
            lambda pending: _tasks(url_list, settings, planned, set(pending)),
            {shard.name: shard.digest for shard in planned},
            partial(DownloadWorker, store, settings, folder.manifest.settings_fingerprint),
            compute or ComputeSettings(),
            progress,
        )
    require_success(result, "an image")
    return result


def plan_download(
    urls: str, images: str, settings: DownloadSettings, *, limit: int | None = None, overwrite: bool = False
) -> StagePlan:
    """What `download` would do, without doing it."""
    store = Store(images)
    manifest = _manifest(settings)
    found = check_stage(store, manifest, overwrite=overwrite)
    kept = None if overwrite else found
    planned = plan_shards(open_url_list(urls, settings), settings, limit, kept, images)
    names = pending_shards(store, kept or manifest, {shard.name: shard.digest for shard in planned})
    pending = [shard for shard in planned if shard.name in names]
    rows = sum(shard.rows for shard in pending)
    return StagePlan(
        stage=STAGE,
        folder=store.url,
        units=len(planned),
        pending_units=len(pending),
        unit="shards",
        pending_rows=rows,
        bytes_needed=int(rows * settings.image_size**2 * _ASSUMED_BYTES_PER_PIXEL),
        bytes_free=free_bytes(store),
        seconds=rows / _ASSUMED_IMAGES_PER_SECOND,
    )


def plan_shards(
    urls: UrlList, settings: DownloadSettings, limit: int | None, found: Manifest | None, folder: str
) -> list[PlannedShard]:
    """Cut the list into shards, and hold it against the shards that the folder has already.

    A list may grow at its end. Any other change is refused, since rows of two lists would be mixed. What the folder
    holds beyond a limit is kept.
    """
    done = found.shards if found is not None else {}
    planned: list[PlannedShard] = []
    for index, table in enumerate(urls.shards(settings.rows_per_shard)):
        start = index * settings.rows_per_shard
        name = image_shard_name(index)
        if limit is not None and start >= limit and name not in done:
            break
        wanted = table.num_rows if limit is None else min(table.num_rows, limit - start)
        record = done.get(name)
        if record is not None:
            if record.rows > table.num_rows or rows_digest(table.slice(0, record.rows)) != record.input:
                raise _changed_list(urls, folder, f"rows {start:,} to {start + record.rows:,} differ")
            if record.rows >= wanted:
                planned.append(PlannedShard(name, record.rows, record.input))
                continue
        planned.append(PlannedShard(name, wanted, rows_digest(table.slice(0, wanted))))
    if limit is None and len(done) > len(planned):
        raise _changed_list(urls, folder, f"it makes {len(planned):,} shards, the folder has {len(done):,}")
    return planned


def _changed_list(urls: UrlList, folder: str, detail: str) -> FolderError:
    return FolderError(
        f"{folder} was downloaded from another list than {urls.source} ({detail}); "
        "a list may only grow at its end: name another folder for this one"
    )


def _manifest(settings: DownloadSettings) -> Manifest:
    return Manifest(STAGE, settings.identity(), input={})


def _tasks(
    urls: UrlList, settings: DownloadSettings, planned: list[PlannedShard], pending: set[str]
) -> Iterator[DownloadTask]:
    if not pending:
        return
    tables = urls.shards(settings.rows_per_shard)
    for index, (shard, table) in enumerate(zip(planned, tables, strict=False)):  # a limit ends the plan first
        if shard.name in pending:
            yield DownloadTask(shard, index * settings.rows_per_shard, table.slice(0, shard.rows))
