"""Plan a download: compare a URL list with the shards in a folder, and yield the remaining tasks.

This module neither downloads images nor writes files. `make_plan` reads only the rows that it must compare with
existing shards. The rest of the list is read while the tasks are iterated over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from ..contract.manifest import Manifest, ShardRecord, image_shard_name, whole_shards
from ..contract.storage import Store
from ..errors import FolderError
from ..urls.digest import rows_digest
from ..urls.url_list import UrlList
from .worker import DownloadTask


@dataclass(frozen=True)
class DownloadPlan:
    """Plan for downloading a URL list to a folder, which may already contain some of the shards."""

    urls: UrlList
    store: Store
    rows_per_shard: int
    limit: int | None
    """Number of rows to download, from the start of the list; None for all."""
    existing: dict[str, ShardRecord]
    """Manifest records of the shards in the folder, keyed by shard name. All these shards contain rows of this list."""
    complete: frozenset[str]
    """Names of the existing shards that need no download: all their rows and files are present."""
    rows: int | None
    """Number of rows in the list; None until they are counted."""

    @property
    def total(self) -> int | None:
        """Number of rows that the folder will contain after the download; None if the list's row count is unknown."""
        shards = self.shards()
        return None if shards is None else sum(shards.values())

    def wanted(self, index: int, available: int) -> int:
        """Return the number of rows that a shard will have after the download.

        Rows beyond `limit` are not downloaded, but an existing shard keeps all the rows that it already has.

        Args:
            index: number of the shard, counted from 0.
            available: number of rows that the list contains for this shard, ignoring `limit`.
        """
        rows = available
        if self.limit is not None:
            rows = min(rows, max(0, self.limit - index * self.rows_per_shard))
        record = self.existing.get(image_shard_name(index))
        return rows if record is None else max(rows, record.rows)

    def shards(self) -> dict[int, int] | None:
        """Return each shard's row count after the download, keyed by shard number.

        Return None if the list has not been counted.
        """
        if self.rows is None:
            return None
        size = self.rows_per_shard
        rows = self.rows if self.limit is None else min(self.rows, self.limit)
        numbers = sorted({*range(-(-rows // size)), *map(int, self.existing)})
        return {index: self.wanted(index, min(size, self.rows - index * size)) for index in numbers}

    def is_unwanted(self, index: int) -> bool:
        """Return True if a shard need not be downloaded, because it is complete or its rows are beyond the limit."""
        name = image_shard_name(index)
        return name in self.complete or (name not in self.existing and self.wanted(index, 1) == 0)

    def is_complete(self) -> bool:
        """Return True if it is certain that no shard remains to be downloaded.

        The list is not read. If only reading it could show whether shards remain, return False.
        """
        if len(self.complete) < len(self.existing):
            return False
        if (shards := self.shards()) is not None:
            return all(map(self.is_unwanted, shards))
        return self.limit is not None and all(map(self.is_unwanted, range(-(-self.limit // self.rows_per_shard))))

    def tasks(self) -> Iterator[DownloadTask]:
        """Yield a task for each missing or incomplete shard, reading the list on demand."""
        if self.is_complete():
            return
        last_existing = max(map(int, self.existing), default=-1)
        for index, table in self.urls.shards(self.rows_per_shard, self.is_unwanted):
            yield self._task(index, table.slice(0, self.wanted(index, table.num_rows)))
            if index >= last_existing and self.is_unwanted(index + 1):
                return  # no later shard is wanted, so skip the rest of the list

    def retries(self, names: list[str]) -> Iterator[DownloadTask]:
        """Yield a retry task for each named shard.

        The task fetches again the rows with a transient failure, such as a timeout, and reuses all other rows.

        Args:
            names: names of complete shards.
        """
        numbers = set(map(int, names))
        for index, table in self.urls.shards(self.rows_per_shard, lambda index: index not in numbers):
            yield self._task(index, table.slice(0, self.existing[image_shard_name(index)].rows), retry=True)
            numbers.remove(index)
            if not numbers:
                return

    def _task(self, index: int, table: pa.Table, retry: bool = False) -> DownloadTask:
        """Return the task for a shard, after checking that an existing shard was made from the same list rows.

        Args:
            index: number of the shard, counted from 0.
            table: list rows of the shard. It may have more rows than the existing shard.
            retry: True for a retry task.

        Raises:
            FolderError: the existing shard was made from different rows.
        """
        name, digest = image_shard_name(index), rows_digest(table)
        _check_rows(self.urls, self.store, self.existing.get(name), index * self.rows_per_shard, table)
        columns = self.urls.columns
        first = index * self.rows_per_shard
        return DownloadTask(name, digest, first, table, retry, columns.hash_column, columns.bbox_column)


def make_plan(
    urls: UrlList, rows_per_shard: int, limit: int | None, store: Store, manifest: Manifest | None
) -> DownloadPlan:
    """Compare a URL list with the shards in a folder, and return the plan for downloading the remaining rows.

    Rows may have been appended to the list since the last run. Any other change raises an error, because the folder
    would then contain rows from two lists. Existing shards are kept even if their rows are beyond `limit`.

    The list rows of an existing shard are read and compared with the shard only in two cases:

    - The list files that contain these rows may have changed since the last run.
    - The shard has fewer than `rows_per_shard` rows, and the list's row count is unknown.

    Args:
        urls: list to download.
        rows_per_shard: number of list rows per shard.
        limit: number of rows to download, from the start of the list; None for all.
        store: folder of the shards.
        manifest: manifest of the folder, or None to ignore the existing shards.

    Raises:
        FolderError: the folder's shards come from another list.
    """
    size = rows_per_shard
    plan = DownloadPlan(urls, store, size, limit, {}, frozenset(), urls.rows)
    if manifest is None or not manifest.shards:
        return plan
    plan = replace(plan, existing=dict(manifest.shards))
    whole = whole_shards(store, manifest)
    unchanged = urls.unchanged_rows(manifest.input.get("files", ()))
    rows = urls.rows
    complete, to_read = set(), set()
    for name, record in plan.existing.items():
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
        _check_rows(urls, store, plan.existing[name], index * size, table)
        if name in whole and plan.existing[name].rows == plan.wanted(index, table.num_rows):
            complete.add(name)
        if table.num_rows < size:
            rows = index * size + table.num_rows  # only the last shard of a list is short
        to_read.remove(index)
        if not to_read:
            break
    if to_read:
        raise _changed_list(urls, store, f"it ends before row {min(to_read) * size:,}, where the folder goes on")
    return replace(plan, complete=frozenset(complete), rows=rows)


def _check_rows(urls: UrlList, store: Store, record: ShardRecord | None, first: int, table: pa.Table) -> None:
    """Check that an existing shard was made from the given list rows. Do nothing if the shard does not exist.

    Args:
        urls: list that the rows come from.
        store: folder of the shard, for the error message.
        record: record of the existing shard, or None.
        first: index of the shard's first row in the list, counted from 0.
        table: all rows that the list contains for this shard.

    Raises:
        FolderError: the shard was made from different rows.
    """
    if record is None:
        return
    rows = table.slice(0, record.rows)
    if record.rows > table.num_rows or (rows_digest(rows) != record.input and not urls.had_digest(rows, record.input)):
        raise _changed_list(urls, store, f"rows {first:,} to {first + record.rows:,} differ")


def _changed_list(urls: UrlList, store: Store, detail: str) -> FolderError:
    """Return the error for a folder whose shards come from another list.

    Args:
        urls: list to download.
        store: folder of the shards.
        detail: difference that was found, for the error message.
    """
    return FolderError(
        f"{store.url} was downloaded from another list than {urls.source} ({detail}); "
        "a list may only grow at its end: name another folder for this one"
    )
