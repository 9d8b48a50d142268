"""Worker of img2dataset: what it commits, the rows that a retry reuses, and folders that killed processes left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.download.img2dataset_engine.child import RowCallback
from priorkit.pipeline.download.img2dataset_engine.request import Request
from priorkit.pipeline.download.img2dataset_engine.worker import Img2datasetWorker, remove_working_folders
from priorkit.pipeline.download.rows import Row
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.worker import DownloadTask
from priorkit.pipeline.errors import PriorkitError

SETTINGS = DownloadSettings(engine="img2dataset", rows_per_shard=10, image_size=32)
URLS = [None, "ftp://127.0.0.1:9/x", "http://127.0.0.1:9/x", "", "x.jpg"]
OUTCOMES = ["empty_url", "bad_scheme", "refused", "empty_url", "bad_scheme"]


@pytest.fixture(scope="module")
def worker_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Img2datasetWorker, list[Row], Path]]:
    """A worker that all tests share, since its process takes seconds to start."""
    folder, rows = tmp_path_factory.mktemp("images"), []
    with Img2datasetWorker(Store(str(folder)), SETTINGS, "fingerprint", rows.append) as worker:
        yield worker, rows, folder


def task(shard: int = 3, *, retry: bool = False) -> DownloadTask:
    table = pa.table({"url": pa.array(URLS, pa.string()), "caption": list("abcde"), "score": [1.5] * 5})
    return DownloadTask(f"0000{shard}", "digest", 10 * shard, table, retry)


def test_rows_are_committed_in_input_order(worker_folder: tuple[Img2datasetWorker, list[Row], Path]) -> None:
    worker, rows, folder = worker_folder
    record = worker(task())
    assert sorted(row.outcome for row in rows) == sorted(OUTCOMES)
    assert (record.name, record.rows, record.input, record.settings) == ("00003", 5, "digest", "fingerprint")
    assert record.counts == {"bad_scheme": 2, "empty_url": 2, "refused": 1}
    assert set(record.files) == {"00003.tar", "00003.parquet"}
    table = pq.read_table(folder / "00003.parquet")
    assert table.column_names == [
        "score", "caption", "url", "key", "status", "error_message", "width", "height", "original_width",
        "original_height", "sha256",
    ]  # fmt: skip
    assert table.column("key").to_pylist() == [f"00003{offset}" for offset in range(5)]
    assert table.column("caption").to_pylist() == list("abcde")
    assert table.column("url").to_pylist() == URLS
    assert table.column("error_message").to_pylist()[0] == "unknown url type: 'None'"
    assert sorted(path.name for path in folder.iterdir()) == [
        "00003.parquet",
        "00003.tar",
        "00003_stats.json",
        "shards",
    ]


def test_a_retry_fetches_transient_failures_only(worker_folder: tuple[Img2datasetWorker, list[Row], Path]) -> None:
    worker, rows, folder = worker_folder
    worker(task())
    before = {path.name: path.read_bytes() for path in folder.glob("00003.*")}
    rows.clear()
    record = worker(task(retry=True))
    assert [row.outcome for row in rows] == ["refused"]
    assert record.counts["refused"] == 1
    assert {path.name: path.read_bytes() for path in folder.glob("00003.*")} == before


def test_a_row_that_is_lost_is_an_error(
    worker_folder: tuple[Img2datasetWorker, list[Row], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leave out rows, which img2dataset also does after some errors."""
    worker, _, folder = worker_folder
    run = worker._child.run

    def lose_a_row(request: Request, on_row: RowCallback) -> None:
        run(request, on_row)
        path = Path(request.folder) / f"{request.name}.parquet"
        pq.write_table(pq.read_table(path).slice(1), path)

    monkeypatch.setattr(worker._child, "run", lose_a_row)
    with pytest.raises(PriorkitError, match=r"wrote no row 00004\d in shard 00004"):
        worker(task(4))
    assert not list(folder.glob("00004*"))
    assert not list(folder.glob(".img2dataset-*"))


def test_working_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".img2dataset-abc").mkdir()
    (tmp_path / ".img2dataset-abc/00000.tar").write_bytes(b"half")
    (tmp_path / "00000.tar").write_bytes(b"whole")
    assert Store(str(tmp_path)).names() == ["00000.tar"]
    remove_working_folders(Store(str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["00000.tar"]
    remove_working_folders(Store("memory://nowhere"))
