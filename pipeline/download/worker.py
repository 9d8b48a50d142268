"""Download worker: fetches the images for a shard's list rows and writes them to the shard in input order."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import ssl
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ..contract.commit import ShardCommit, finish_replacements
from ..contract.manifest import ShardRecord
from ..contract.storage import Store
from .decoding.boxes import parse_boxes
from .decoding.decoders import Decoders
from .fetching.buffer import Claim
from .fetching.fetch import Fetcher
from .fetching.fetch_ahead import FetchAhead, RowMaker
from .image_hash import check_hash
from .outcomes import IMAGE_OUTCOMES, SUCCESS, FetchError, ImageError
from .rows import Row, add_sample, image_schema, reused_rows
from .settings import DownloadSettings
from .statistics import NOT_UTF8, ShardStatistics


@dataclass(frozen=True)
class DownloadTask:
    """Shard to download, with its list rows."""

    name: str
    digest: str
    """SHA-256 of the column names and values of the rows, computed by `rows_digest`."""
    first_row: int
    """Index of the shard's first row in the list, counted from 0."""
    table: pa.Table = field(compare=False)
    """Rows of the shard. Comparisons of tasks ignore this field, because `digest` already identifies the rows."""
    retry: bool = False
    """True to replace an existing shard: rows with a transient failure are fetched again, all other rows are reused."""
    hash_column: str | None = None
    """Column that holds the expected hash of each response body, or None to skip the check."""
    bbox_column: str | None = None
    """Column that holds the boxes to blur in each image, or None to blur nothing."""


class DownloadWorker:
    """Worker that downloads shards one after another. Use it as a context manager.

    Connections and decoder processes are reused for all shards. They are closed when the context exits or the process
    ends.

    Args:
        store: folder that receives the shards.
        settings: download settings.
        settings_fingerprint: fingerprint of the settings, stored in each shard's record.
        on_row: callback for each finished row, or None.
        base: location that relative paths in the list are relative to; see `fetching.paths.base_of`.
    """

    def __init__(
        self,
        store: Store,
        settings: DownloadSettings,
        settings_fingerprint: str,
        on_row: Callable[[Row], None] | None = None,
        base: str | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._settings_fingerprint = settings_fingerprint
        self._on_row = on_row
        self._base = base
        self._ahead: FetchAhead[DownloadTask] = FetchAhead(
            self._tools(), self._makers, buffer_bytes=settings.buffer_bytes, max_rows=2 * settings.concurrency
        )  # twice the concurrency, because some rows wait for a busy host or a decoder

    def __enter__(self) -> DownloadWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ahead.close()

    def __call__(self, task: DownloadTask, following: DownloadTask | None = None) -> ShardRecord:
        """Download and commit one shard.

        Args:
            task: shard to download.
            following: next task, or None. Its downloads start while the last rows of `task` are in progress.

        Returns:
            Record of the committed shard.
        """
        rows = self._ahead.rows(task, following)
        return write_shard(self._store, task, self._settings, self._settings_fingerprint, rows, self._on_row)

    @contextlib.asynccontextmanager
    async def _tools(self) -> AsyncIterator[None]:
        """Context manager that opens the connections and starts the decoder processes, and closes both on exit."""
        tls = ssl.create_default_context()
        fetcher = Fetcher(self._settings, tls, self._base)
        async with Decoders(self._settings) as self._decoders, fetcher as self._fetcher:
            yield

    def _makers(self, task: DownloadTask) -> Iterator[RowMaker]:
        """Yield one row maker for each row of a task, in input order.

        A row maker is a coroutine function that returns the finished row. If the task is a retry, only the rows with a
        transient failure are fetched. All other rows are reused from the existing shard.
        """
        rows = task.table.to_pylist()
        reused = reused_rows(self._store, task.name, rows) if task.retry else itertools.repeat(None, len(rows))
        for offset, (values, row) in enumerate(zip(rows, reused, strict=True)):
            key = row_key(task.first_row, offset, self._settings.rows_per_shard)
            yield partial(self._fetch_and_resize, task, key, values) if row is None else partial(_reuse, row)

    async def _fetch_and_resize(self, task: DownloadTask, key: str, values: dict[str, Any], claim: Claim) -> Row:
        """Fetch and resize the image of one list row, and return the row.

        `FetchError` and `ImageError` are not raised. Instead, the returned row has the outcome and the error message.

        Args:
            task: shard that the row belongs to.
            key: key of the sample in the shard.
            values: values of the list columns, keyed by column name.
            claim: reservation of buffer memory for this row.
        """
        meta = {**values, "key": key, "status": SUCCESS, "error_message": None}
        sizes = {"width": None, "height": None, "original_width": None, "original_height": None}
        exif = {"exif": None} if self._settings.extract_exif else {}
        row = Row({**meta, **sizes, **exif, "sha256": None})
        try:
            if NOT_UTF8 in (values["url"] or ""):
                raise FetchError("bad_url", "it holds bytes that are not UTF-8")
            boxes = parse_boxes(values[task.bbox_column]) if task.bbox_column is not None else []
            body = await self._fetcher.fetch(values["url"])
            claim.arrived(len(body))
            row.body_bytes = len(body)
            if task.hash_column is not None:
                check_hash(body, values[task.hash_column])
            image = await self._decoders.decode(body, boxes)
        except (FetchError, ImageError) as error:
            row.outcome = error.outcome
            is_image_failure = error.outcome in IMAGE_OUTCOMES
            row.meta["status"] = "failed_to_resize" if is_image_failure else "failed_to_download"
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
        if self._settings.extract_exif:
            row.meta["exif"] = image.exif
        return row


def write_shard(
    store: Store,
    task: DownloadTask,
    settings: DownloadSettings,
    settings_fingerprint: str,
    rows: Generator[Row, None, None],
    on_row: Callable[[Row], None] | None = None,
) -> ShardRecord:
    """Write and commit the shard of a task, and return its record.

    Args:
        store: folder that receives the shard.
        task: task of the shard.
        settings: download settings.
        settings_fingerprint: fingerprint of the settings, stored in the record.
        rows: finished rows of the shard in input order. The generator is closed.
        on_row: callback for each row after it is written, or None.
    """
    start = time.time()
    name = task.name
    if task.retry and (record := finish_replacements(store, name)) is not None:
        return record  # a worker was killed after the commit, while it moved the files into place
    commit = ShardCommit(store, name, input=task.digest, settings=settings_fingerprint, replaces=task.retry)
    statistics = ShardStatistics(task.table)
    metas: list[dict[str, Any]] = []
    with (
        commit.create(f"{name}.tar") as file,
        tarfile.open(fileobj=cast(BinaryIO, file), mode="w|") as tar,
        contextlib.closing(rows),
    ):
        for row in rows:
            statistics.add(row)
            metas.append(row.meta)
            if row.image is not None:
                add_sample(tar, row)
            if on_row is not None:
                on_row(row)
    with commit.create(f"{name}.parquet") as file:
        schema = image_schema(task.table.schema, exif=settings.extract_exif)
        pq.write_table(pa.Table.from_pylist(metas, schema=schema), file)
    commit.write_log(f"{name}_stats.json", statistics.to_json(start, time.time()))
    return commit.commit(rows=len(metas), counts=statistics.outcomes)


async def _reuse(row: Row, claim: Claim) -> Row:
    """Return `row` unchanged. This row maker is used for rows of a retry task that are not fetched again.

    Args:
        row: row that was copied from the shard that is being replaced.
        claim: ignored, because no response body arrives.
    """
    return row


def row_key(first_row: int, offset: int, rows_per_shard: int) -> str:
    """Return the sample key of a row, as in img2dataset: shard number, then position in the shard, zero-padded.

    Args:
        first_row: index of the shard's first row in the list, counted from 0.
        offset: position of the row in the shard, counted from 0.
        rows_per_shard: number of list rows per shard.
    """
    digits = math.ceil(math.log10(rows_per_shard)) if rows_per_shard > 1 else 0
    shard = first_row // rows_per_shard
    return f"{10**digits * shard + offset:0{digits + 5}d}"
