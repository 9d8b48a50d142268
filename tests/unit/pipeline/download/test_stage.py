"""Download stage, without a server: its plan, the shards to retry, and the check that no row is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.manifest import Manifest, ShardRecord
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.download import stage
from priorkit.pipeline.download.plan import DownloadPlan
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import check_download, plan_download
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.urls.url_list import open_url_list

SETTINGS = DownloadSettings(rows_per_shard=4, image_size=100, caption_column=None)


def write_list(folder: Path, kind: str = "parquet") -> str:
    """A list of 10 URLs."""
    urls = [f"http://h/{number}" for number in range(10)]
    if kind == "parquet":
        pq.write_table(pa.table({"url": urls}), folder / "list.parquet")
    else:
        (folder / f"list.{kind}").write_text("\n".join(["url", *urls, ""]))
    return str(folder / f"list.{kind}")


def record(name: str, **counts: int) -> ShardRecord:
    return ShardRecord(name, sum(counts.values()), "", "", {}, counts)


def plan_of(folder: Path, *records: ShardRecord, complete: set[str]) -> DownloadPlan:
    urls = open_url_list(write_list(folder), SETTINGS)
    existing = {each.name: each for each in records}
    return DownloadPlan(urls, Store(str(folder / "images")), 4, None, existing, frozenset(complete), 10)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_plan_estimates_rows_bytes_and_time_and_writes_nothing(tmp_path: Path, kind: str) -> None:
    plan = plan_download(write_list(tmp_path, kind), str(tmp_path / "images"), SETTINGS)
    assert (plan.stage, plan.units, plan.pending_units, plan.unit) == ("download", 3, 3, "shards")
    assert (plan.pending_rows, plan.bytes_needed, plan.seconds) == (10, 45_000, 0.1)
    assert not (tmp_path / "images").exists()


def test_images_that_are_not_resized_are_estimated_by_their_number(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"resize_mode": "no"})
    assert plan_download(write_list(tmp_path), str(tmp_path / "images"), settings).bytes_needed == 1_000_000


def test_a_plan_keeps_to_the_limit(tmp_path: Path) -> None:
    plan = plan_download(write_list(tmp_path), str(tmp_path / "images"), SETTINGS, limit=5)
    assert (plan.units, plan.pending_units, plan.pending_rows) == (2, 2, 5)


def test_the_check_finds_a_missing_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        check_download(str(tmp_path / "none.parquet"), str(tmp_path / "images"), SETTINGS)
    assert check_download(write_list(tmp_path), str(tmp_path / "images"), SETTINGS).total == 10


def test_complete_shards_with_transient_failures_are_retried(tmp_path: Path) -> None:
    records = [
        record("00000", success=3, http_4xx=1),
        record("00001", success=1, dns=2, http_5xx=1),
        record("00002", timeout=2),
    ]
    plan = plan_of(tmp_path, *records, complete={"00000", "00001"})
    assert stage._shards_to_retry(plan) == ["00001"]
    assert [stage._transient_rows(each) for each in records] == [0, 3, 2]


def test_the_result_of_a_retry_counts_its_rows_and_new_images(tmp_path: Path) -> None:
    before = [record("00000", success=1, dns=3), record("00001", timeout=4)]
    after = {"00000": record("00000", success=3, dns=1), "00001": record("00001", success=1, timeout=3)}
    plan = plan_of(tmp_path, *before, complete={"00000", "00001"})
    manifest = Manifest("download", {}, {}, {}, after)
    assert stage._retry_result(plan, ["00000", "00001"], manifest) == {"rows": 7, "success": 3}
    assert stage._retry_result(plan, ["00000"], manifest) == {"rows": 3, "success": 2}


@pytest.mark.parametrize(
    ("rows", "limit", "lost"), [(10, None, False), (9, None, True), (5, 5, False), (4, 5, True), (10, 99, False)]
)
def test_fewer_rows_than_the_list_has_are_an_error(tmp_path: Path, rows: int, limit: int | None, lost: bool) -> None:
    urls: Any = open_url_list(write_list(tmp_path), SETTINGS)
    if lost:
        with pytest.raises(InputError, match=f"{rows} of its 10 rows came into the folder"):
            stage._require_all_rows(urls, rows, limit)
    else:
        stage._require_all_rows(urls, rows, limit)
