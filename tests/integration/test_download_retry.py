"""`--retry-failed`, a stop when success collapses, hashes, and statistics, against a server that fails for a while."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract import storage
from priorkit.pipeline.contract.manifest import differing_files, read_manifest
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import download, plan_download
from priorkit.pipeline.errors import FolderError, InputError, PriorkitError

from ..conftest import picture
from .flaky_server import FlakyServer

FolderBytes = Callable[[Path], dict[str, bytes]]
ROWS = 50


FAILING = {3: 503, 4: 404, 21: 429, 22: 500, 39: 503}
"""Rows of two shards; one of them fails for good."""
LASTING = {4: 404}
"""The row that fails for good."""


@pytest.fixture
def flaky(flaky_server: FlakyServer) -> FlakyServer:
    """A server on which no row fails yet."""
    flaky_server.status = {}
    flaky_server.asked.clear()
    return flaky_server


@pytest.fixture(scope="module")
def listed(flaky_server: FlakyServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("list") / "list.parquet"
    columns = {
        "url": [f"{flaky_server.url}/{number}.jpg" for number in range(ROWS)],
        "caption": [f"number {number}" for number in range(ROWS)],
        "md5": [hashlib.md5(picture(number)).hexdigest() for number in range(ROWS)],
        "score": [number / 3 for number in range(ROWS)],
    }
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def source(listed: Path, flaky: FlakyServer, tmp_path: Path) -> str:
    """A copy of the list, with the same time of change."""
    return str(shutil.copy2(listed, tmp_path / "list.parquet"))


@pytest.fixture(scope="module")
def settings() -> DownloadSettings:
    return DownloadSettings(
        rows_per_shard=20, image_size=32, allow_private_addresses=True, concurrency=4, decode_processes=1, retries=0,
        timeout_seconds=600, decode_timeout_seconds=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(
    flaky_server: FlakyServer, listed: Path, settings: DownloadSettings, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished download in which only the row fails that always does."""
    flaky_server.status = dict(LASTING)
    folder = tmp_path_factory.mktemp("finished") / "images"
    download(str(listed), str(folder), settings)
    return folder


@pytest.fixture
def expected(finished: Path, folder_bytes: FolderBytes) -> dict[str, bytes]:
    return folder_bytes(finished)


@pytest.fixture(scope="module")
def with_failures(
    flaky_server: FlakyServer, listed: Path, settings: DownloadSettings, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished download with failures."""
    flaky_server.status = dict(FAILING)
    folder = tmp_path_factory.mktemp("failed") / "images"
    result = download(str(listed), str(folder), settings)
    assert result.counts == {"success": 45, "http_5xx": 3, "http_429": 1, "http_4xx": 1}
    return folder


@pytest.fixture
def failed(with_failures: Path, flaky: FlakyServer, tmp_path: Path) -> Path:
    """A copy of the download with failures, and a server that is well again."""
    flaky.status = dict(LASTING)
    return Path(shutil.copytree(with_failures, tmp_path / "images"))


def test_only_failures_that_may_pass_are_tried_again_and_the_result_is_that_of_one_run(
    flaky: FlakyServer, source: str, settings: DownloadSettings, expected: dict[str, bytes], failed: Path,
    folder_bytes: FolderBytes,
) -> None:  # fmt: skip
    assert download(source, str(failed), settings).done_now == 0
    assert flaky.asked == []
    result = download(source, str(failed), settings, retry_failed=True)
    assert sorted(flaky.asked) == [3, 21, 22, 39]
    assert folder_bytes(failed) == expected
    assert (result.done_now, result.counts) == (2, {"success": 49, "http_4xx": 1})
    assert result.statistics["retried"] == {"rows": 4, "success": 4}
    assert result.statistics["errors"] == {"http_4xx 404": 1}
    flaky.asked.clear()
    again = download(source, str(failed), settings, retry_failed=True)
    assert (again.done_now, again.statistics["retried"]) == (0, {"rows": 0, "success": 0})
    assert flaky.asked == []


def test_a_plan_counts_what_would_be_tried_again(
    flaky: FlakyServer, source: str, settings: DownloadSettings, failed: Path
) -> None:
    for retry, expected in ((False, (0, 0)), (True, (2, 4))):
        plan = plan_download(source, str(failed), settings, retry_failed=retry)
        assert (plan.units, plan.pending_units, plan.pending_rows) == (3, *expected)
    (failed / "00002.tar").unlink()
    plan = plan_download(source, str(failed), settings, retry_failed=True)
    assert (plan.pending_units, plan.pending_rows) == (3, 14)
    assert flaky.asked == []


def test_what_fails_again_stays_a_failure_and_costs_no_image(
    flaky: FlakyServer, source: str, settings: DownloadSettings, expected: dict[str, bytes], failed: Path,
    folder_bytes: FolderBytes,
) -> None:  # fmt: skip
    flaky.status = dict.fromkeys(range(ROWS), 503)
    result = download(source, str(failed), settings, retry_failed=True)
    assert result.statistics["retried"] == {"rows": 4, "success": 0}
    assert result.counts == {"success": 45, "http_5xx": 4, "http_4xx": 1}
    flaky.status = {4: 404}
    download(source, str(failed), settings, retry_failed=True)
    assert folder_bytes(failed) == expected


def test_an_unfinished_run_is_finished_and_tried_again_in_one(
    flaky: FlakyServer, source: str, settings: DownloadSettings, expected: dict[str, bytes], failed: Path,
    folder_bytes: FolderBytes,
) -> None:  # fmt: skip
    (failed / "00002.tar").unlink()
    (failed / "00001.parquet").unlink()
    result = download(source, str(failed), settings, retry_failed=True)
    assert (result.done_now, result.statistics["retried"]) == (3, {"rows": 1, "success": 1})
    assert folder_bytes(failed) == expected


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.slow
def test_a_kill_at_any_instant_of_a_retry_loses_no_image(
    flaky: FlakyServer, source: str, settings: DownloadSettings, expected: dict[str, bytes], failed: Path,
    folder_bytes: FolderBytes, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A kill before each rename and removal, then the same again by a server that refuses what was there before."""
    before = {path.relative_to(failed): path.read_bytes() for path in failed.rglob("*") if path.is_file()}
    replace, remove = os.replace, os.remove
    left = [0]

    def counted(action: Callable[..., None]) -> Callable[..., None]:
        def act(*arguments: Any) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            action(*arguments)

        return act

    instants = 0
    while True:
        for path in sorted(failed.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        for name, data in before.items():
            (failed / name).parent.mkdir(exist_ok=True)
            (failed / name).write_bytes(data)
        flaky.status = {4: 404}
        left[0] = instants
        with monkeypatch.context() as patched:
            patched.setattr(storage.os, "replace", counted(replace))
            patched.setattr(storage.os, "remove", counted(remove))
            try:
                download(source, str(failed), settings, retry_failed=True)
                break
            except Killed:
                instants += 1
        # whoever had an image before cannot get it again
        flaky.status = {number: 410 for number in range(ROWS) if number not in FAILING or number == 4}
        flaky.status[4] = 404
        store = Store(str(failed))
        result = download(source, str(failed), settings, retry_failed=True)
        assert result.counts["success"] == 49
        manifest = read_manifest(store)
        assert manifest is not None
        assert all(differing_files(store, record) == [] for record in manifest.shards.values())
        assert folder_bytes(failed) == expected, f"killed before action {instants}"
    assert instants > 15
    assert folder_bytes(failed) == expected


@pytest.mark.slow
def test_a_retry_on_an_object_store_gives_the_same_files(
    flaky: FlakyServer, source: str, settings: DownloadSettings, expected: dict[str, bytes], tmp_path: Path
) -> None:
    store = Store(f"memory://{tmp_path.name}")
    flaky.status = dict(FAILING)
    download(source, store.url, settings)
    flaky.status = {4: 404}
    download(source, store.url, settings, retry_failed=True)
    found = {}
    for name in store.names():
        with store.open(name) as file:
            found[name] = file.read()
    assert {name: data for name, data in found.items() if "stats" not in name} == expected


def test_a_shard_whose_tar_and_table_disagree_is_named_and_not_tried_again(
    source: str, settings: DownloadSettings, failed: Path, folder_bytes: FolderBytes
) -> None:
    table = pq.read_table(failed / "00001.parquet")
    keys = table.column("key").to_pylist()
    keys[5], keys[6] = keys[6], keys[5]
    with open(failed / "00001.parquet", "r+b") as file:
        size = len(file.read())
    changed = table.set_column(table.schema.get_field_index("key"), "key", pa.array(keys))
    pq.write_table(changed, failed / "00001.parquet")
    assert (failed / "00001.parquet").stat().st_size == size, "or it counts as missing"
    with pytest.raises(InputError, match=r"00001\.tar holds other images than 00001\.parquet"):
        download(source, str(failed), settings, retry_failed=True)


def test_a_collapse_stops_the_download_and_says_why_and_the_same_goes_on(
    flaky: FlakyServer, source: str, settings: DownloadSettings, expected: dict[str, bytes], tmp_path: Path,
    folder_bytes: FolderBytes,
) -> None:  # fmt: skip
    watchful = settings.model_copy(update={"min_success_rate": 0.5, "success_window": 10})
    flaky.status = {4: 404, **dict.fromkeys(range(24, ROWS), 403)}
    flaky.asked.clear()
    with pytest.raises(PriorkitError) as error:
        download(source, str(tmp_path / "images"), watchful)
    text = str(error.value)
    assert "4 of the last 10 rows gave an image, less than download.min_success_rate=0.5" in text
    assert "100% of the failures are http_4xx 403: servers refuse us: set download.user_agent" in text
    assert sorted(path.name for path in (tmp_path / "images").glob("*.tar")) == ["00000.tar"]
    flaky.status = {4: 404}
    flaky.asked.clear()
    result = download(source, str(tmp_path / "images"), watchful)
    assert (result.done_now, min(flaky.asked)) == (2, 20)
    assert folder_bytes(tmp_path / "images") == expected


def test_no_collapse_is_seen_where_none_is_wanted(
    flaky: FlakyServer, source: str, settings: DownloadSettings, tmp_path: Path
) -> None:
    careless = settings.model_copy(update={"min_success_rate": 0, "success_window": 10})
    flaky.status = dict.fromkeys(range(1, ROWS), 403)
    assert download(source, str(tmp_path / "images"), careless).counts == {"success": 1, "http_4xx": 49}


def test_a_body_with_another_hash_than_the_list_has_is_not_kept(
    flaky: FlakyServer, source: str, settings: DownloadSettings, tmp_path: Path
) -> None:
    table = pq.read_table(source)
    hashes: list[str | None] = table.column("md5").to_pylist()
    hashes[7], hashes[8], hashes[9] = "0" * 32, None, "no hash"
    hashes[10] = hashlib.sha256(picture(10)).hexdigest().upper()
    hashes[11] = hashlib.sha1(picture(11)).hexdigest()
    hashes[12] = hashlib.sha512(picture(12)).hexdigest()
    pq.write_table(table.set_column(2, "md5", pa.array(hashes)), source)
    checked = settings.model_copy(update={"hash_column": "md5"})
    result = download(source, str(tmp_path / "images"), checked)
    assert result.counts == {"success": 48, "hash_mismatch": 2}
    rows = pq.read_table(tmp_path / "images/00000.parquet").to_pylist()
    assert (
        rows[7]["error_message"]
        == f"hash_mismatch: md5 is {hashlib.md5(picture(7)).hexdigest()}, the list has {'0' * 32}"
    )
    assert (
        rows[9]["error_message"] == "hash_mismatch: the list has 'no hash', which is no MD5, SHA-1, SHA-256 or SHA-512"
    )
    flaky.asked.clear()
    download(source, str(tmp_path / "images"), checked, retry_failed=True)
    assert flaky.asked == []
    with pytest.raises(FolderError, match="hash_column: 'md5' -> None"):
        download(source, str(tmp_path / "images"), settings)


@pytest.mark.parametrize("stored", ["text", "text as bytes", "bytes"])
def test_hashes_may_be_in_a_column_whose_name_is_ours(
    flaky: FlakyServer, source: str, settings: DownloadSettings, tmp_path: Path, stored: str
) -> None:
    digests = [hashlib.sha256(picture(number)) for number in range(ROWS)]
    digests[7] = hashlib.sha256(b"another body")
    hashes: list[Any] = [digest.hexdigest() for digest in digests]
    if stored != "text":
        hashes = [digest.digest() if stored == "bytes" else digest.hexdigest().encode() for digest in digests]
    pq.write_table(pq.read_table(source).append_column("sha256", pa.array(hashes)), source)
    checked = settings.model_copy(update={"hash_column": "sha256"})
    result = download(source, str(tmp_path / "images"), checked)
    assert result.counts == {"success": 49, "hash_mismatch": 1}
    assert result.statistics["list"]["renamed_columns"] == {"sha256": "source_sha256"}
    assert result.statistics["list"]["rows"] == result.rows == ROWS
    rows = pq.read_table(tmp_path / "images/00000.parquet").to_pylist()
    assert [row["source_sha256"] for row in rows] == hashes[:20]
    assert [row["sha256"] for row in rows[:7]] == [digest.hexdigest() for digest in digests[:7]]


def test_statistics_are_those_of_all_shards_whichever_run_made_them(
    flaky: FlakyServer, source: str, settings: DownloadSettings, tmp_path: Path
) -> None:
    urls: list[str | None] = pq.read_table(source).column("url").to_pylist()
    urls[5] = urls[25] = urls[26] = urls[1]
    urls[30] = None
    urls[31] = "http://127.0.0.1/caf\ufffd.jpg"
    captions = [f"number {number}" for number in range(ROWS)]
    captions[40] = "\ufffd"
    pq.write_table(pa.table({"url": urls, "caption": captions}), source)
    flaky.status = {3: 503, 4: 404, 45: 404}
    download(source, str(tmp_path / "images"), settings, limit=20)
    result = download(source, str(tmp_path / "images"), settings)
    statistics = dict(result.statistics)
    assert statistics.pop("seconds") > 0
    assert statistics.pop("bytes") == sum(
        len(picture(1 if number in (5, 25, 26) else number))
        for number in range(ROWS) if number not in (3, 4, 45, 30, 31)
    )  # fmt: skip
    assert statistics == {
        "list": {"rows": ROWS, "renamed_columns": {}, "late_keys": {}, "quoted_fields": 0, "guessed_columns": {}},
        "not_utf8": 2,
        "duplicate_urls": 3,
        "duplicates_exact": True,
        "errors": {"http_4xx 404": 2, "http_5xx 503": 1, "empty_url": 1, "bad_url": 1},
        "hosts": {
            "127.0.0.1": {"http_4xx 404": 2, "http_5xx 503": 1, "bad_url": 1},
            "no host": {"empty_url": 1},
        },
    }
    first = json.loads((tmp_path / "images/00000_stats.json").read_text())
    assert (first["duplicate_urls"], first["not_utf8"], first["status_dict"]) == (
        1, 0, {"http_4xx": 1, "http_5xx": 1, "success": 18}
    )  # fmt: skip
    assert json.loads(json.dumps(result.to_json())) == result.to_json()
