"""Plan of a download: which shards are complete, which rows each will have, and which lists are refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.commit import ShardCommit
from priorkit.pipeline.contract.manifest import Manifest, image_shard_name
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.download.plan import DownloadPlan, make_plan
from priorkit.pipeline.errors import FolderError
from priorkit.pipeline.urls.settings import UrlListSettings
from priorkit.pipeline.urls.url_list import UrlList, open_url_list, rows_digest

SIZE = 4
"""Rows of a shard in these tests."""


class Folder:
    """A folder of shards, committed as a download does, and lists to compare with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store(str(path / "images"))
        self.manifest = Manifest("download", {}, {})

    def urls(self, rows: int, kind: str = "parquet", first: str = "http://h/0") -> UrlList:
        """A list of URLs in a file; its first URL may be changed."""
        urls = [first, *(f"http://h/{number}" for number in range(1, rows))]
        path = self.path / f"list.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table({"url": urls}), path)
        else:
            path.write_text("\n".join(["url", *urls, ""]))
        return open_url_list(str(path), UrlListSettings(caption_column=None))

    def commit(self, urls: UrlList, *indices: int, rows: int = SIZE) -> None:
        """Write shards of a list, and remember its files."""
        self.manifest.input = {"files": urls.marks_json()}
        for index, table in urls.shards(SIZE):
            if index in indices:
                table = table.slice(0, rows)
                name = image_shard_name(index)
                settings = self.manifest.settings_fingerprint
                commit = ShardCommit(self.store, name, input=rows_digest(table), settings=settings)
                with commit.create(f"{name}.tar") as file:
                    file.write(b"tar")
                self.manifest.shards[name] = commit.commit(rows=table.num_rows)

    def plan(self, urls: UrlList, limit: int | None = None) -> DownloadPlan:
        return make_plan(urls, SIZE, limit, self.store, self.manifest)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def tasks(plan: DownloadPlan) -> list[tuple[str, int, int]]:
    return [(task.name, task.first_row, task.table.num_rows) for task in plan.tasks()]


@pytest.mark.parametrize(
    ("limit", "rows"),
    [(None, {0: 4, 1: 4, 2: 2}), (10, {0: 4, 1: 4, 2: 2}), (99, {0: 4, 1: 4, 2: 2}), (5, {0: 4, 1: 1}), (4, {0: 4})],
)
def test_an_empty_folder_gets_the_rows_within_the_limit(
    folder: Folder, limit: int | None, rows: dict[int, int]
) -> None:
    plan = folder.plan(folder.urls(10), limit)
    assert (plan.shards(), plan.total, plan.is_complete()) == (rows, sum(rows.values()), False)
    assert tasks(plan) == [(f"{index:05d}", index * SIZE, count) for index, count in rows.items()]


def test_complete_shards_are_left_out(folder: Folder) -> None:
    urls = folder.urls(10)
    folder.commit(urls, 0, 2)
    plan = folder.plan(urls)
    assert plan.complete == {"00000", "00002"}
    assert tasks(plan) == [("00001", 4, 4)]
    folder.commit(urls, 1)
    plan = folder.plan(urls)
    assert plan.is_complete()
    assert tasks(plan) == []


def test_a_shard_without_its_files_is_made_again(folder: Folder) -> None:
    urls = folder.urls(10)
    folder.commit(urls, 0, 1, 2)
    folder.store.remove("00001.tar")
    plan = folder.plan(urls)
    assert plan.complete == {"00000", "00002"}
    assert tasks(plan) == [("00001", 4, 4)]


def test_a_limit_never_takes_rows_away(folder: Folder) -> None:
    urls = folder.urls(10)
    folder.commit(urls, 0)
    folder.commit(urls, 1, rows=3)
    for limit in (1, 4, 7):
        plan = folder.plan(urls, limit)
        assert (plan.shards(), plan.is_complete()) == ({0: 4, 1: 3}, True)
    assert tasks(folder.plan(urls, 8)) == [("00001", 4, 4)]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_list_may_grow_at_its_end(folder: Folder, kind: str) -> None:
    folder.commit(folder.urls(6, kind), 0, 1)
    plan = folder.plan(folder.urls(9, kind))
    assert plan.complete == {"00000"}
    assert tasks(plan) == [("00001", 4, 4), ("00002", 8, 1)]


def test_a_list_that_must_be_read_is_counted_by_its_short_shard(folder: Folder) -> None:
    urls = folder.urls(6, "csv")
    assert folder.plan(urls).rows is None
    folder.commit(urls, 0, 1)
    plan = folder.plan(urls)
    assert (plan.rows, plan.is_complete()) == (6, True)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_list_with_other_rows_is_refused(folder: Folder, kind: str) -> None:
    folder.commit(folder.urls(6, kind), 0, 1)
    with pytest.raises(FolderError, match="rows 0 to 4 differ"):
        folder.plan(folder.urls(6, kind, first="http://other/"))


@pytest.mark.parametrize(("rows", "detail"), [(5, "rows 4 to 6 differ"), (4, "it ends before row 4"), (1, "differ")])
def test_a_shorter_list_is_refused(folder: Folder, rows: int, detail: str) -> None:
    folder.commit(folder.urls(6), 0, 1)
    with pytest.raises(FolderError, match=detail):
        folder.plan(folder.urls(rows))


def test_a_shard_of_another_stage_is_refused(folder: Folder) -> None:
    urls = folder.urls(6)
    folder.commit(urls, 0)
    folder.manifest.shards["extra"] = folder.manifest.shards.pop("00000")
    with pytest.raises(FolderError, match="shard 'extra' in its manifest is none of a download"):
        folder.plan(urls)


def test_retries_read_the_shards_that_are_named(folder: Folder) -> None:
    urls = folder.urls(10)
    folder.commit(urls, 0, 1)
    folder.commit(urls, 2, rows=1)
    retries = list(folder.plan(urls).retries(["00001", "00002"]))
    assert [(task.name, task.first_row, task.table.num_rows) for task in retries] == [("00001", 4, 4), ("00002", 8, 1)]
    assert all(task.retry for task in retries)
    assert retries[0].digest == folder.manifest.shards["00001"].input
    assert retries[0].table.column("url").to_pylist() == [f"http://h/{number}" for number in range(4, 8)]


def test_without_a_manifest_nothing_is_complete(folder: Folder) -> None:
    urls = folder.urls(10)
    folder.commit(urls, 0)
    plan = make_plan(urls, SIZE, None, folder.store, None)
    assert (plan.existing, plan.complete) == ({}, frozenset())


def test_the_list_is_not_read_beyond_the_limit(folder: Folder) -> None:
    (folder.path / "list").mkdir()
    for number in range(2):
        rows = [f"http://h/{row}" for row in range(number * SIZE, (number + 1) * SIZE)]
        (folder.path / f"list/{number}.csv").write_text("\n".join(["url", *rows, ""]))
    urls = open_url_list(str(folder.path / "list"), UrlListSettings(caption_column=None))
    folder.commit(urls, 0, rows=3)
    plan = folder.plan(urls, limit=SIZE)
    (folder.path / "list/1.csv").unlink()
    assert tasks(plan) == [("00000", 0, 4)]
