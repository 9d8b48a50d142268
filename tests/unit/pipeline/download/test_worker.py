"""Worker: keys of rows, and a shard whose rows all fail before a request is sent."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.download.rows import Row
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.worker import DownloadTask, DownloadWorker, row_key

URLS = [None, " ", "ftp://h/x", "http://h/\ufffd", "http://user@h/x", "http://127.0.0.1/x"]
OUTCOMES = ["empty_url", "empty_url", "bad_scheme", "bad_url", "bad_url", "blocked_address"]


@pytest.mark.parametrize(
    ("first_row", "offset", "rows_per_shard", "key"),
    [
        (0, 0, 10_000, "000000000"),
        (20_000, 7, 10_000, "000020007"),
        (20, 7, 10, "000027"),
        (40, 19, 20, "0000219"),
        (5, 0, 1, "00005"),
        (22, 10, 11, "0000210"),
    ],
)
def test_a_key_is_the_shard_then_the_position(first_row: int, offset: int, rows_per_shard: int, key: str) -> None:
    assert row_key(first_row, offset, rows_per_shard) == key


def test_tasks_are_compared_by_the_digest_of_their_rows() -> None:
    one, other = (DownloadTask("00000", "digest", 0, pa.table({"url": urls})) for urls in (["a"], ["b"]))
    assert one == other
    assert one != DownloadTask("00000", "another", 0, one.table)
    assert one != DownloadTask("00000", "digest", 0, one.table, retry=True)


def test_every_row_gets_its_outcome_in_input_order(tmp_path: Path) -> None:
    rows: list[Row] = []
    settings = DownloadSettings(rows_per_shard=10, decode_processes=1)
    table = pa.table({"url": pa.array(URLS, pa.string()), "caption": [str(index) for index in range(len(URLS))]})
    with DownloadWorker(Store(str(tmp_path)), settings, "fingerprint", rows.append) as worker:
        record = worker(DownloadTask("00003", "digest", 30, table))
    assert [row.outcome for row in rows] == OUTCOMES
    assert (record.name, record.rows, record.input, record.settings) == ("00003", 6, "digest", "fingerprint")
    assert record.counts == {"bad_scheme": 1, "bad_url": 2, "blocked_address": 1, "empty_url": 2}
    written = pq.read_table(tmp_path / "00003.parquet").to_pylist()
    assert [row["key"] for row in written] == [f"00003{index}" for index in range(6)]
    assert [(row["url"], row["caption"]) for row in written] == list(zip(URLS, "012345", strict=True))
    assert {row["status"] for row in written} == {"failed_to_download"}
    assert written[3]["error_message"] == "bad_url: it holds bytes that are not UTF-8"
    with tarfile.open(tmp_path / "00003.tar") as tar:
        assert tar.getnames() == []
    stats = json.loads((tmp_path / "00003_stats.json").read_text())
    assert (stats["count"], stats["failed_to_download"], stats["status_dict"]) == (6, 6, dict(record.counts))


def test_boxes_that_are_not_valid_fail_before_a_request_is_sent(tmp_path: Path) -> None:
    """Otherwise the image would be stored with what the boxes hide."""
    rows: list[Row] = []
    settings = DownloadSettings(rows_per_shard=10, decode_processes=1, extract_exif=True)
    boxes = ["[[0, 0, 60, 80]]", "no JSON", "[]", None]
    urls = [f"http://127.0.0.1/{number}" for number in range(4)]  # refused, if it comes to that
    table = pa.table({"url": urls, "faces": pa.array(boxes, pa.string())})
    with DownloadWorker(Store(str(tmp_path)), settings, "fingerprint", rows.append) as worker:
        record = worker(DownloadTask("00000", "digest", 0, table, bbox_column="faces"))
    assert [row.outcome for row in rows] == ["bad_boxes", "bad_boxes", "blocked_address", "blocked_address"]
    assert record.counts == {"bad_boxes": 2, "blocked_address": 2}
    written = pq.read_table(tmp_path / "00000.parquet").to_pylist()
    assert [row["status"] for row in written] == ["failed_to_resize"] * 2 + ["failed_to_download"] * 2
    assert written[0]["error_message"].startswith("bad_boxes: [0.0, 0.0, 60.0, 80.0] are not fractions")
    assert {row["exif"] for row in written} == {None}
