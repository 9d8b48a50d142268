"""Download against a real server: every row accounted for, equal bytes, and what is refused."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.download import plan as download_plan
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import download, plan_download
from priorkit.pipeline.download.worker import row_key
from priorkit.pipeline.errors import FolderError, InputError, PriorkitError
from priorkit.pipeline.urls.digest import rows_digest
from priorkit.pipeline.urls.url_list import UrlList

FolderBytes = Callable[[Path], dict[str, bytes]]


def write_list(path: Path, urls: list[str | None], captions: list[str | None]) -> str:
    table = pa.table({"url": pa.array(urls, pa.string()), "caption": pa.array(captions, pa.string())})
    pq.write_table(table, path)
    return str(path)


def table_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found


def test_every_row_is_there_once_in_order_whatever_became_of_it(
    url_list: Any, image_server: Any, tmp_path: Path
) -> None:
    good = url_list.urls[0]
    urls = [good, None, "", good, "no url", f"{image_server.url}/gone.jpg", good, "ftp://h/x.jpg", good] * 5
    captions = ["a", "b", None, None, "猫 🐈", "f", "", '<b>"quotes"</b>\n\x1b[31m', "a"] * 5
    source = write_list(tmp_path / "list.parquet", urls, captions)
    settings = DownloadSettings(rows_per_shard=7, image_size=32, allow_private_addresses=True, concurrency=2)
    result = download(source, str(tmp_path / "images"), settings)
    rows = table_rows(tmp_path / "images")
    assert [(row["url"], row["caption"]) for row in rows] == list(zip(urls, captions, strict=True))
    assert [row["key"] for row in rows] == [f"{i // 7:05d}{i % 7}" for i in range(45)]
    outcomes = [
        "success",
        "empty_url",
        "empty_url",
        "success",
        "bad_scheme",
        "http_4xx",
        "success",
        "bad_scheme",
        "success",
    ]
    found = [(row["error_message"] or "success").partition(":")[0] for row in rows]
    assert found == outcomes * 5
    assert result.counts == {"success": 20, "empty_url": 10, "bad_scheme": 10, "http_4xx": 5}
    assert result.rows == 45
    assert all((row["sha256"] is None) == (row["status"] != "success") for row in rows)
    texts = {name: data.decode() for name, data in members(tmp_path / "images").items() if name.endswith(".txt")}
    expected = {row["key"]: row["caption"] or "" for row in rows if row["status"] == "success"}
    assert texts == {f"{key}.txt": caption for key, caption in expected.items()}


@pytest.mark.slow
def test_concurrency_and_threads_do_not_change_a_byte(
    url_list: Any, download_settings: DownloadSettings, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    for name, concurrency, threads in (("one", 1, 1), ("many", 4, 4)):
        settings = download_settings.model_copy(update={"concurrency": concurrency, "decode_processes": threads})
        download(str(url_list.path), str(tmp_path / name), settings)
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "many")


def test_the_stats_of_a_shard_are_those_of_img2dataset(images_folder: Path) -> None:
    stats = json.loads((images_folder / "00000_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["failed_to_download"], stats["failed_to_resize"]) == (
        20,
        19,
        1,
        0,
    )
    assert stats["status_dict"] == {"http_4xx": 1, "success": 19}
    assert stats["end_time"] - stats["start_time"] == pytest.approx(stats["duration"])


def test_the_webdataset_package_reads_the_samples_in_order(images_folder: Path, url_list: Any) -> None:
    kept = [row for row in table_rows(images_folder) if row["status"] == "success"]
    shards = [str(path) for path in sorted(images_folder.glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves the tars to the garbage collector
        samples = list(webdataset.WebDataset(shards, shardshuffle=False))
        gc.collect()
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in kept]
    assert [sample["txt"].decode() for sample in samples] == [row["caption"] for row in kept]
    meta = [json.loads(sample["json"]) for sample in samples]
    assert meta == kept
    with tarfile.open(shards[0]) as tar:
        first = tar.getmembers()[:3]
    assert [member.name for member in first] == ["0000000.jpg", "0000000.json", "0000000.txt"]
    assert [member.mtime for member in first] == [0, 0, 0]


def test_extra_columns_come_along(images_folder: Path) -> None:
    assert {row["licence"] for row in table_rows(images_folder)} == {"cc0"}


def test_a_list_without_captions_gives_no_caption_files(url_list: Any, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n".join(url_list.urls[:4]))
    settings = DownloadSettings(caption_column=None, image_size=32, allow_private_addresses=True)
    download(str(tmp_path / "list.txt"), str(tmp_path / "images"), settings)
    assert {name.partition(".")[2] for name in members(tmp_path / "images")} == {"jpg", "json"}


@pytest.mark.slow
def test_a_grown_list_redoes_only_what_grew(
    url_list: Any, image_server: Any, download_settings: DownloadSettings, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    growing = tmp_path / "growing.parquet"
    for rows in (30, 63):
        image_server.requests.clear()
        source = write_list(growing, url_list.urls[:rows], url_list.captions[:rows])
        result = download(source, str(tmp_path / "grown"), download_settings)
    assert result.done_now == 3  # the half shard and two new ones
    assert len(image_server.requests) == 42  # of 43 rows, one asks a closed port instead
    download(source, str(tmp_path / "straight"), download_settings)
    assert folder_bytes(tmp_path / "grown") == folder_bytes(tmp_path / "straight")


def test_a_changed_list_is_refused_and_nothing_changed(
    images_folder: Path, url_list: Any, download_settings: DownloadSettings, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    before = folder_bytes(images_folder)
    changed = tmp_path / "changed.parquet"
    for row, column in itertools.product((0, 37, 62), ("url", "caption", "licence")):
        columns = pq.read_table(url_list.path).to_pydict()
        columns[column][row] = "changed"
        pq.write_table(pa.table(columns), changed)
        for limit in (None, 30):
            with pytest.raises(FolderError, match="may only grow at its end"):
                download(str(changed), str(images_folder), download_settings, limit=limit)
    for rows in (20, 40, 62):
        pq.write_table(pq.read_table(url_list.path).slice(0, rows), changed)
        with pytest.raises(FolderError, match="another list"):
            download(str(changed), str(images_folder), download_settings)
    assert folder_bytes(images_folder) == before


def test_shards_of_unchanged_files_are_not_read_again_and_those_of_others_are(
    images_folder: Path, url_list: Any, download_settings: DownloadSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    digested: list[int] = []

    def noted(table: pa.Table) -> str:
        digested.append(table.num_rows)
        return rows_digest(table)

    monkeypatch.setattr(download_plan, "rows_digest", noted)
    assert download(str(url_list.path), str(images_folder), download_settings).done_now == 0
    assert digested == []
    table = pq.read_table(url_list.path)
    pq.write_table(table, url_list.path, compression="none")  # the same rows in another file
    assert download(str(url_list.path), str(images_folder), download_settings).done_now == 0
    assert digested == [20, 20, 20, 3]
    digested.clear()
    assert download(str(url_list.path), str(images_folder), download_settings).done_now == 0
    assert digested == []


def test_the_first_image_is_fetched_before_the_list_is_read(
    url_list: Any, image_server: Any, download_settings: DownloadSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made: list[int] = []
    original = UrlList.shards

    def noted(self: UrlList, *arguments: Any) -> Iterator[tuple[int, pa.Table]]:
        for index, table in original(self, *arguments):
            made.append(len(image_server.requests))
            yield index, table

    monkeypatch.setattr(UrlList, "shards", noted)
    download(str(url_list.path), str(tmp_path / "images"), download_settings)
    assert made[:2] == [0, 0]  # this shard, and the one that a worker may read ahead
    assert made[2] >= 20 - 1
    assert made[3] >= 40 - 2


def test_a_list_that_is_damaged_further_on_keeps_what_was_done(
    url_list: Any, download_settings: DownloadSettings, tmp_path: Path
) -> None:
    rows = pq.read_table(url_list.path).to_pylist()
    (tmp_path / "list").mkdir()
    (tmp_path / "list/0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:45]))
    long = "x" * 60_000  # so that the first block of the file, which is read before the download, is sound
    lines = "".join(f"{row['url']},{long},{row['licence']}\n" for row in rows[45:])
    (tmp_path / "list/1.csv").write_text(f'url,caption,licence\n{lines}http://h/,"')
    with pytest.raises(InputError, match=r"1\.csv: cannot be read as csv: line 20: a quote is never closed"):
        download(str(tmp_path / "list"), str(tmp_path / "images"), download_settings)
    assert (tmp_path / "images/shards/00000.json").exists()
    (tmp_path / "list/1.csv").unlink()
    (tmp_path / "list/1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[45:]))
    result = download(str(tmp_path / "list"), str(tmp_path / "images"), download_settings)
    assert (result.units, result.rows) == (4, 63)
    assert result.done_now < 4


def test_a_list_that_grows_by_a_file_with_other_columns_is_the_same_list(
    url_list: Any, download_settings: DownloadSettings, tmp_path: Path
) -> None:
    table = pq.read_table(url_list.path)
    (tmp_path / "list").mkdir()
    first = table.slice(0, 40).append_column("size", pa.array(range(40)))
    pq.write_table(first, tmp_path / "list/0.parquet")
    download(str(tmp_path / "list"), str(tmp_path / "images"), download_settings)
    later = table.slice(40).append_column("size", pa.array([0.5] * 23)).append_column("lang", pa.array(["de"] * 23))
    pq.write_table(later, tmp_path / "list/1.parquet")
    result = download(str(tmp_path / "list"), str(tmp_path / "images"), download_settings)
    assert (result.done_now, result.rows, result.statistics["list"]["rows"]) == (2, 63, 63)
    assert pq.read_schema(tmp_path / "images/00003.parquet").field("size").type == pa.float64()
    pq.write_table(first.set_column(3, "size", pa.array(range(1, 41))), tmp_path / "list/0.parquet")
    with pytest.raises(FolderError, match="rows 0 to 20 differ"):
        download(str(tmp_path / "list"), str(tmp_path / "images"), download_settings)


def test_the_same_list_in_another_format_is_the_same_list(
    images_folder: Path, url_list: Any, download_settings: DownloadSettings, tmp_path: Path
) -> None:
    rows = pq.read_table(url_list.path).to_pylist()
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert download(str(tmp_path / "list.jsonl"), str(images_folder), download_settings).done_now == 0


@pytest.mark.slow
def test_limited_runs_then_the_full_one_give_the_bytes_of_the_full_one(
    images_folder: Path, url_list: Any, download_settings: DownloadSettings, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    folder = tmp_path / "limited"
    for limit in (1, 20, 30):
        result = download(str(url_list.path), str(folder), download_settings, limit=limit)
        assert result.rows == limit
        assert [row["url"] for row in table_rows(folder)] == url_list.urls[:limit]
        assert download(str(url_list.path), str(folder), download_settings, limit=limit).done_now == 0
    download(str(url_list.path), str(folder), download_settings, limit=7)
    assert len(table_rows(folder)) == 30
    download(str(url_list.path), str(folder), download_settings)
    assert folder_bytes(folder) == folder_bytes(images_folder)


def test_a_limited_run_over_a_fuller_folder_does_nothing(
    images_folder: Path, url_list: Any, download_settings: DownloadSettings, folder_bytes: FolderBytes
) -> None:
    before = folder_bytes(images_folder)
    for limit in (5, 20, 45, 1000):
        assert download(str(url_list.path), str(images_folder), download_settings, limit=limit).done_now == 0
        assert folder_bytes(images_folder) == before


def test_a_lost_shard_is_made_again_with_the_same_bytes(
    images_folder: Path, url_list: Any, download_settings: DownloadSettings, folder_bytes: FolderBytes
) -> None:
    before = folder_bytes(images_folder)
    (images_folder / "00001.parquet").unlink()
    (images_folder / "00003.tar").write_bytes(b"short")
    assert download(str(url_list.path), str(images_folder), download_settings).done_now == 2
    assert folder_bytes(images_folder) == before


def test_changed_settings_are_refused_unless_overwritten(
    images_folder: Path, url_list: Any, download_settings: DownloadSettings
) -> None:
    changed = download_settings.model_copy(update={"image_size": 16})
    with pytest.raises(FolderError, match="image_size: 32 -> 16"):
        download(str(url_list.path), str(images_folder), changed)
    result = download(str(url_list.path), str(images_folder), changed, overwrite=True)
    assert result.done_now == 4
    assert {row["width"] for row in table_rows(images_folder) if row["width"]} <= set(range(16, 33))
    assert min(row["width"] for row in table_rows(images_folder) if row["width"]) == 16


def test_a_plan_does_nothing_and_counts_what_is_left(
    url_list: Any, image_server: Any, download_settings: DownloadSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    plan = plan_download(str(url_list.path), str(folder), download_settings)
    assert (plan.units, plan.pending_units, plan.pending_rows) == (4, 4, 63)
    assert not folder.exists()
    assert image_server.requests == []
    download(str(url_list.path), str(folder), download_settings, limit=20)
    plan = plan_download(str(url_list.path), str(folder), download_settings)
    assert (plan.units, plan.pending_units, plan.pending_rows) == (4, 3, 43)
    (folder / "00000.tar").unlink()
    assert plan_download(str(url_list.path), str(folder), download_settings).pending_units == 4


def test_a_folder_with_other_work_is_left_alone(
    url_list: Any, image_server: Any, download_settings: DownloadSettings, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/00000.tar").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(FolderError, match="other work"):
            download(str(url_list.path), str(tmp_path / "photos"), download_settings, overwrite=overwrite)
    assert (tmp_path / "photos/00000.tar").read_bytes() == b"mine"
    assert os.listdir(tmp_path / "photos") == ["00000.tar"]


def test_an_error_in_the_list_leaves_no_folder(tmp_path: Path, download_settings: DownloadSettings) -> None:
    with pytest.raises(InputError):
        download(str(tmp_path / "none.parquet"), str(tmp_path / "images"), download_settings)
    assert not (tmp_path / "images").exists()


def test_an_object_store_holds_the_same_files(
    images_folder: Path, url_list: Any, download_settings: DownloadSettings, folder_bytes: FolderBytes
) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    download(str(url_list.path), store.url, download_settings)
    assert download(str(url_list.path), store.url, download_settings).done_now == 0
    found = {}
    for name in store.names():
        with store.open(name) as file:
            found[name] = file.read()
    assert {name: data for name, data in found.items() if "stats" not in name} == folder_bytes(images_folder)


@dataclasses.dataclass
class Progress:
    steps: list[tuple[int, int | None]] = dataclasses.field(default_factory=list)

    def __call__(self, done: int, total: int | None, note: str) -> None:
        self.steps.append((done, total))


def test_progress_starts_at_what_is_done_and_ends_at_all(
    url_list: Any, download_settings: DownloadSettings, tmp_path: Path
) -> None:
    progress = Progress()
    download(str(url_list.path), str(tmp_path / "images"), download_settings, limit=20)
    download(str(url_list.path), str(tmp_path / "images"), download_settings, progress=progress)
    assert progress.steps[0] == (20, 63)
    assert progress.steps[-1] == (63, 63)


DOWNLOAD = """
import sys
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import download
if __name__ == "__main__":
    download(sys.argv[1], sys.argv[2], DownloadSettings.model_validate_json(sys.argv[3]))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(
    images_folder: Path, url_list: Any, download_settings: DownloadSettings, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    folder = tmp_path / "killed"
    slow = download_settings.model_copy(update={"concurrency": 1, "decode_processes": 1})
    command = [sys.executable, "-c", DOWNLOAD, str(url_list.path), str(folder), slow.model_dump_json()]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 600
    while not (folder / "shards/00000.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "00000.tar").exists()
    download(str(url_list.path), str(folder), download_settings)
    assert folder_bytes(folder) == folder_bytes(images_folder)


def test_without_ray_one_process_works_and_asking_for_ray_says_what_is_missing(
    images_folder: Path, url_list: Any, download_settings: DownloadSettings, tmp_path: Path, folder_bytes: FolderBytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """`test_house.py` checks that the modules do not import Ray when they are loaded."""
    monkeypatch.setitem(sys.modules, "ray", None)
    folder = tmp_path / "no_ray"
    result = download(str(url_list.path), str(folder), download_settings)
    assert result.counts == {"http_4xx": 1, "not_image": 1, "refused": 1, "success": 60}
    assert folder_bytes(folder) == folder_bytes(images_folder)
    with pytest.raises(PriorkitError, match=r"compute\.backend=ray needs Ray.*pip install 'ray\[train\]'"):
        download(str(url_list.path), f"{folder}_ray", download_settings, compute=ComputeSettings(backend="ray"))


@pytest.mark.parametrize(
    ("first_row", "offset", "rows_per_shard", "key"),
    [
        (0, 0, 10_000, "000000000"),
        (0, 9_999, 10_000, "000009999"),
        (120_000, 7, 10_000, "000120007"),
        (40, 3, 20, "0000203"),
        (3, 0, 1, "00003"),
        (2_000_000_000, 5, 10_000, "2000000005"),
    ],
)
def test_keys_are_those_of_img2dataset(
    first_row: int, offset: int, rows_per_shard: int, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    from img2dataset.downloader import compute_key

    assert row_key(first_row, offset, rows_per_shard) == key
    import math

    digits = math.ceil(math.log10(rows_per_shard))
    assert compute_key(offset, first_row // rows_per_shard, digits, 5) == key
