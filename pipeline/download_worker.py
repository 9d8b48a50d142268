"""One shard of rows -> one webdataset shard: fetched, resized and written in input order, every row accounted for."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import itertools
import math
import ssl
import tarfile
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from .config import DownloadSettings
from .download_stats import NOT_UTF8, ShardStatistics
from .fetch import Fetcher, FetchError
from .image_hash import check_hash
from .image_shard import RESIZE_OUTCOMES, Row, add_sample, image_schema, kept_rows
from .shards import ShardCommit, ShardRecord, finish_replacements
from .storage import Store


@dataclass(frozen=True)
class PlannedShard:
    """Rows of the list that make one shard."""

    name: str
    rows: int
    digest: str
    """SHA-256 of the rows' values."""


@dataclass(frozen=True)
class DownloadTask:
    """One shard to fetch."""

    planned: PlannedShard
    first_row: int
    table: pa.Table
    retry: bool = False
    """Whether the shard is there already and only its passing failures are fetched again."""

    @property
    def name(self) -> str:
        return self.planned.name


class DownloadWorker:
    """Fetches one shard after the other in this process.

    Args:
        on_row: told of each row as it is done; None where nobody in this process wants to know.
    """

    def __init__(
        self,
        store: Store,
        settings: DownloadSettings,
        settings_fingerprint: str,
        on_row: Callable[[Row], None] | None = None,
    ) -> None:
        from .images import ImageResizer  # img2dataset takes seconds to import, and only workers need it

        self._store = store
        self._settings = settings
        self._settings_fingerprint = settings_fingerprint
        self._on_row = on_row
        self._resize = ImageResizer(settings)
        self._tls = ssl.create_default_context()

    def __call__(self, task: DownloadTask, following: DownloadTask | None = None) -> ShardRecord:
        start = time.time()
        name, encoding = task.planned.name, self._settings.encode_format
        if task.retry and (record := finish_replacements(self._store, name)) is not None:
            return record  # a worker before this one was killed when all but its last moves were done
        commit = ShardCommit(
            self._store, name, input=task.planned.digest, settings=self._settings_fingerprint, replaces=task.retry
        )
        statistics = ShardStatistics(task.table)
        metas: list[dict[str, Any]] = []

        async def fill(tar: tarfile.TarFile) -> None:
            async with contextlib.aclosing(self._rows(task)) as rows:
                async for row in rows:
                    statistics.add(row)
                    metas.append(row.meta)
                    if row.image is not None:
                        add_sample(tar, row, encoding)
                    if self._on_row is not None:
                        self._on_row(row)

        with commit.create(f"{name}.tar") as file:
            with tarfile.open(fileobj=cast(BinaryIO, file), mode="w|") as tar:
                asyncio.run(fill(tar))
        with commit.create(f"{name}.parquet") as file:
            pq.write_table(pa.Table.from_pylist(metas, schema=image_schema(task.table.schema)), file)
        commit.write_log(f"{name}_stats.json", statistics.to_json(start, time.time()))
        return commit.commit(rows=len(metas), counts=statistics.outcomes)

    async def _rows(self, task: DownloadTask) -> AsyncGenerator[Row, None]:
        """All rows in input order; a window of them is in flight, so that a slow one does not stop the others."""
        window: collections.deque[asyncio.Task[Row]] = collections.deque()
        size = self._settings.concurrency * 4
        values = task.table.to_pylist()
        kept = kept_rows(self._store, task.name, values) if task.retry else itertools.repeat(None, len(values))
        with ThreadPoolExecutor(self._settings.resize_threads) as threads:
            async with Fetcher(self._settings, self._tls) as fetcher:
                try:
                    for offset, (row_values, row) in enumerate(zip(values, kept, strict=True)):
                        key = row_key(task.first_row, offset, self._settings.rows_per_shard)
                        if row is None:
                            work = self._fetch_and_resize(key, row_values, fetcher, threads)
                        else:
                            work = _as_it_is(row)
                        window.append(asyncio.create_task(work))
                        if len(window) == size:
                            yield await _first_of(window)
                    while window:
                        yield await _first_of(window)
                finally:
                    for fetch in window:
                        fetch.cancel()
                    await asyncio.gather(*window, return_exceptions=True)

    async def _fetch_and_resize(
        self, key: str, values: dict[str, Any], fetcher: Fetcher, threads: ThreadPoolExecutor
    ) -> Row:
        meta = {**values, "key": key, "status": "success", "error_message": None}
        sizes = {"width": None, "height": None, "original_width": None, "original_height": None}
        row = Row({**meta, **sizes, "sha256": None})
        try:
            if NOT_UTF8 in (values["url"] or ""):
                raise FetchError("bad_url", "it holds bytes that are not UTF-8")
            body = await fetcher.fetch(values["url"])
            row.body_bytes = len(body)
            if self._settings.hash_column is not None:
                check_hash(body, values[self._settings.hash_column])
            image = await asyncio.get_running_loop().run_in_executor(threads, self._resize, body)
        except FetchError as error:
            resize = error.outcome in RESIZE_OUTCOMES
            row.outcome = error.outcome
            row.meta["status"] = "failed_to_resize" if resize else "failed_to_download"
            row.meta["error_message"] = str(error)
            return row
        row.image = image.data
        row.meta.update(
            width=image.width,
            height=image.height,
            original_width=image.original_width,
            original_height=image.original_height,
            sha256=hashlib.sha256(body).hexdigest(),
        )
        return row


async def _as_it_is(row: Row) -> Row:
    return row


async def _first_of(window: collections.deque[asyncio.Task[Row]]) -> Row:
    """Take the oldest row, when it is done. To await its task could hand that a Ctrl-C just as it ends, and lose it."""
    await asyncio.wait([window[0]])
    return window.popleft().result()


def row_key(first_row: int, offset: int, rows_per_shard: int) -> str:
    """img2dataset's key of a row: the shard's number, then the position in the shard, in decimal digits."""
    digits = math.ceil(math.log10(rows_per_shard)) if rows_per_shard > 1 else 0
    shard = first_row // rows_per_shard
    return f"{10**digits * shard + offset:0{digits + 5}d}"
