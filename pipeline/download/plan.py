"""What a download has to do: a list held against the shards that a folder has already.

Nothing is fetched or written here. The list is read as the tasks are taken; before that, only what is there already
is held against it.
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
        _check_rows(self.urls, self.store, self.kept.get(name), index * self.rows_per_shard, table)
        return DownloadTask(name, digest, index * self.rows_per_shard, table, retry, self.urls.columns.hash_column)


def make_plan(
    urls: UrlList, rows_per_shard: int, limit: int | None, store: Store, found: Manifest | None
) -> DownloadPlan:
    """Hold a list against the shards that a folder has already.

    A list may grow at its end. Any other change is refused, since rows of two lists would be mixed. Shards whose rows
    are in files that have not changed since are taken as they are; the rows of others are read and compared. What the
    folder holds beyond a limit is kept.

    Raises:
        FolderError: the folder's shards are of another list.
    """
    size = rows_per_shard
    plan = DownloadPlan(urls, store, size, limit, {}, frozenset(), urls.rows)
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
        _check_rows(urls, store, plan.kept[name], index * size, table)
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


def _check_rows(urls: UrlList, store: Store, record: ShardRecord | None, first: int, table: pa.Table) -> None:
    """Hold rows of a list against the record of the shard that they made.

    Raises:
        FolderError: they made no such shard.
    """
    if record is None:
        return
    rows = table.slice(0, record.rows)
    if record.rows > table.num_rows or (rows_digest(rows) != record.input and not urls.had_digest(rows, record.input)):
        raise _changed_list(urls, store, f"rows {first:,} to {first + record.rows:,} differ")


def _changed_list(urls: UrlList, store: Store, detail: str) -> FolderError:
    return FolderError(
        f"{store.url} was downloaded from another list than {urls.source} ({detail}); "
        "a list may only grow at its end: name another folder for this one"
    )
