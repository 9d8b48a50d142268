"""One shard of rows -> one webdataset shard: fetched, resized and written in input order, every row accounted for."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import ssl
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ..contract.commit import ShardCommit, finish_replacements
from ..contract.manifest import ShardRecord
from ..contract.storage import Store
from .decoding.decoders import Decoders
from .fetching.fetch import Fetcher, FetchError
from .fetching.fetch_ahead import Claim, FetchAhead, RowMaker
from .image_hash import check_hash
from .outcomes import IMAGE_OUTCOMES, ImageError
from .rows import Row, add_sample, image_schema, kept_rows
from .settings import DownloadSettings
from .statistics import NOT_UTF8, ShardStatistics


@dataclass(frozen=True)
class DownloadTask:
    """One shard to fetch."""

    name: str
    digest: str
    """SHA-256 of the rows' values."""
    first_row: int
    table: pa.Table = field(compare=False)
    """The rows, which the digest stands for."""
    retry: bool = False
    """Whether the shard is there already and only its passing failures are fetched again."""
    hash_column: str | None = None
    """Column of the rows with the hash that each body must have."""


class DownloadWorker:
    """Fetches one shard after the other in this process. Use as a context, or end the process.

    What it fetches with (connections, decoding processes) lives as long as it does.

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
        self._store = store
        self._settings = settings
        self._settings_fingerprint = settings_fingerprint
        self._on_row = on_row
        self._ahead: FetchAhead[DownloadTask] = FetchAhead(
            self._tools(), self._makers, buffer_bytes=settings.buffer_bytes, most=2 * settings.concurrency
        )  # twice as many as are fetched at once, since some wait for a busy host or for a decoder

    def __enter__(self) -> DownloadWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ahead.close()

    def __call__(self, task: DownloadTask, following: DownloadTask | None = None) -> ShardRecord:
        start = time.time()
        name, encoding = task.name, self._settings.encode_format
        if task.retry and (record := finish_replacements(self._store, name)) is not None:
            return record  # a worker before this one was killed when all but its last moves were done
        commit = ShardCommit(
            self._store, name, input=task.digest, settings=self._settings_fingerprint, replaces=task.retry
        )
        statistics = ShardStatistics(task.table)
        metas: list[dict[str, Any]] = []
        with (
            commit.create(f"{name}.tar") as file,
            tarfile.open(fileobj=cast(BinaryIO, file), mode="w|") as tar,
            contextlib.closing(self._ahead.rows(task, following)) as rows,
        ):
            for row in rows:
                statistics.add(row)
                metas.append(row.meta)
                if row.image is not None:
                    add_sample(tar, row, encoding)
                if self._on_row is not None:
                    self._on_row(row)
        with commit.create(f"{name}.parquet") as file:
            pq.write_table(pa.Table.from_pylist(metas, schema=image_schema(task.table.schema)), file)
        commit.write_log(f"{name}_stats.json", statistics.to_json(start, time.time()))
        return commit.commit(rows=len(metas), counts=statistics.outcomes)

    @contextlib.asynccontextmanager
    async def _tools(self) -> AsyncIterator[None]:
        tls = ssl.create_default_context()
        async with Decoders(self._settings) as self._decoders, Fetcher(self._settings, tls) as self._fetcher:
            yield

    def _makers(self, task: DownloadTask) -> Iterator[RowMaker]:
        """What makes the task's rows, in input order."""
        rows = task.table.to_pylist()
        kept = kept_rows(self._store, task.name, rows) if task.retry else itertools.repeat(None, len(rows))
        for offset, (values, row) in enumerate(zip(rows, kept, strict=True)):
            key = row_key(task.first_row, offset, self._settings.rows_per_shard)
            yield (
                partial(self._fetch_and_resize, key, values, task.hash_column)
                if row is None
                else partial(_as_it_is, row)
            )

    async def _fetch_and_resize(self, key: str, values: dict[str, Any], hash_column: str | None, claim: Claim) -> Row:
        meta = {**values, "key": key, "status": "success", "error_message": None}
        sizes = {"width": None, "height": None, "original_width": None, "original_height": None}
        row = Row({**meta, **sizes, "sha256": None})
        try:
            if NOT_UTF8 in (values["url"] or ""):
                raise FetchError("bad_url", "it holds bytes that are not UTF-8")
            body = await self._fetcher.fetch(values["url"])
            claim.arrived(len(body))
            row.body_bytes = len(body)
            if hash_column is not None:
                check_hash(body, values[hash_column])
            image = await self._decoders.decode(body)
        except (FetchError, ImageError) as error:
            row.outcome = error.outcome
            resize = error.outcome in IMAGE_OUTCOMES
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


async def _as_it_is(row: Row, claim: Claim) -> Row:
    return row


def row_key(first_row: int, offset: int, rows_per_shard: int) -> str:
    """img2dataset's key of a row: the shard's number, then the position in the shard, in decimal digits."""
    digits = math.ceil(math.log10(rows_per_shard)) if rows_per_shard > 1 else 0
    shard = first_row // rows_per_shard
    return f"{10**digits * shard + offset:0{digits + 5}d}"
