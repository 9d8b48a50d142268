"""`download.engine: img2dataset` under our plan, commit protocol, resume, retry, summary and Ray."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from priorkit.cli import app
from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import download, plan_download
from priorkit.pipeline.errors import FolderError, InputError, PriorkitError

from ..conftest import picture
from .conftest import PRIORKIT, Gate, Workspace, committed, environment, stop, wait_for
from .flaky_server import FlakyServer

FolderBytes = Callable[[Path], dict[str, bytes]]
ROWS, SHARDS = 30, 3
SETTINGS = DownloadSettings(engine="img2dataset", rows_per_shard=10, image_size=32, concurrency=4, retries=0)
FAILING = {3: 503, 4: 404, 21: 429}


@pytest.fixture
def flaky(flaky_server: FlakyServer) -> FlakyServer:
    flaky_server.status = dict(FAILING)
    flaky_server.asked.clear()
    return flaky_server


@pytest.fixture(scope="module")
def source(flaky_server: FlakyServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("list") / "list.parquet"
    urls = [f"{flaky_server.url}/{number}.jpg" for number in range(ROWS)]
    columns = {"url": urls, "caption": [f"number {number}" for number in range(ROWS)], "score": [0.5] * ROWS}
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.fixture(scope="module")
def downloaded(flaky_server: FlakyServer, source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished download with failures."""
    flaky_server.status = dict(FAILING)
    folder = tmp_path_factory.mktemp("downloaded") / "images"
    result = download(source, str(folder), SETTINGS)
    assert (result.done_now, result.rows) == (SHARDS, ROWS)
    assert result.counts == {"success": 27, "http_5xx": 1, "http_4xx": 1, "http_429": 1}
    assert result.statistics["errors"] == {"http_4xx 404": 1, "http_429": 1, "http_5xx 503": 1}
    assert result.statistics["bytes"] == sum(len(picture(n)) for n in range(ROWS) if n not in FAILING)
    assert result.notes == SETTINGS.engine_notes() != []
    return folder


@pytest.fixture
def images(downloaded: Path, tmp_path: Path) -> Path:
    """A copy of the finished download."""
    return Path(shutil.copytree(downloaded, tmp_path / "images"))


@pytest.mark.slow
def test_a_finished_folder_is_left_alone_and_a_lost_shard_made_again(
    flaky: FlakyServer, source: str, downloaded: Path, images: Path, folder_bytes: FolderBytes
) -> None:
    assert download(source, str(images), SETTINGS).done_now == 0
    assert flaky.asked == []
    (images / "00001.tar").unlink()
    plan = plan_download(source, str(images), SETTINGS)
    assert (plan.pending_units, plan.pending_rows, plan.notes) == (1, 10, SETTINGS.engine_notes())
    (images / ".img2dataset-killed").mkdir()
    assert download(source, str(images), SETTINGS).done_now == 1
    assert sorted(flaky.asked) == list(range(10, 20))
    assert folder_bytes(images) == folder_bytes(downloaded)
    assert not list(images.glob(".img2dataset-*"))


@pytest.mark.slow
def test_a_retry_gives_the_result_of_one_run_that_did_not_fail(
    flaky: FlakyServer, source: str, images: Path, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    flaky.status = {4: 404}
    result = download(source, str(images), SETTINGS, retry_failed=True)
    assert sorted(flaky.asked) == [3, 21]
    assert (result.done_now, result.counts) == (2, {"success": 29, "http_4xx": 1})
    assert result.statistics["retried"] == {"rows": 2, "success": 2}
    download(source, str(tmp_path / "expected"), SETTINGS)
    assert folder_bytes(images) == folder_bytes(tmp_path / "expected")


def test_a_folder_of_one_engine_is_refused_by_the_other(source: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"made with other settings \(.*engine: 'img2dataset' -> absent"):
        download(source, str(images), DownloadSettings(rows_per_shard=10, image_size=32))
    changed = SETTINGS.model_copy(update={"image_size": 33})
    with pytest.raises(FolderError, match=r"made with other settings \(image_size: 32 -> 33\)"):
        download(source, str(images), changed)


def test_a_column_that_img2dataset_cannot_write_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["http://h/x"], "caption": ["a"], "day": pa.array([0], pa.date32())}), path)
    for work in (download, plan_download):
        with pytest.raises(InputError, match=r"column 'day' holds date32.*download\.keep_columns"):
            work(str(path), str(tmp_path / "images"), SETTINGS)
    assert not (tmp_path / "images").exists()


@pytest.mark.slow
def test_a_collapse_of_success_stops_the_download_within_a_shard(
    source: str, flaky: FlakyServer, tmp_path: Path
) -> None:
    flaky.status = dict.fromkeys(range(ROWS), 403)
    settings = DownloadSettings(engine="img2dataset", rows_per_shard=30, concurrency=1, retries=0, success_window=5)
    told: list[int] = []
    with pytest.raises(PriorkitError, match=r"success has collapsed: 0 of the last 5 rows .* http_4xx 403"):
        download(source, str(tmp_path), settings, progress=lambda done, total, note: told.append(done))
    assert len(flaky.asked) < ROWS
    assert not list(tmp_path.glob(".img2dataset-*"))


@pytest.mark.slow
def test_an_object_store_holds_the_same_files(
    flaky: FlakyServer, source: str, downloaded: Path, tmp_path: Path
) -> None:
    store = Store(f"memory://{tmp_path.name}")
    download(source, store.url, SETTINGS)
    for name, data in committed(downloaded).items():
        with store.open(name) as file:
            assert file.read() == data, name


@pytest.mark.slow
def test_two_ray_workers_write_the_same_bytes(
    flaky: FlakyServer, source: str, downloaded: Path, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    compute = ComputeSettings(backend="ray", workers=2)
    result = download(source, str(tmp_path / "images"), SETTINGS, compute=compute)
    assert result.cluster
    assert folder_bytes(tmp_path / "images") == folder_bytes(downloaded)


ENGINE = ("--set=download.engine=img2dataset", "--set=download.rows_per_shard=40", "--set=download.image_size=32")


@pytest.fixture
def urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A list in an empty working directory, whose URLs no test asks for."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"url": ["http://h/x"] * 3, "caption": ["a"] * 3}), "urls.parquet")
    return "urls.parquet"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["download", *arguments], env={"COLUMNS": "160"})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--set=download.timeout_seconds=10",), "timeout_seconds=10.0 cannot be combined with engine=img2dat"),
        (("--set=download.allow_private_addresses=false",), "allow_private_addresses=False cannot be combined"),
        (("--set=download.robots_txt=true",), "robots_txt=True cannot be combined"),
        (("--set=download.decode_processes=2",), "decode_processes=2 cannot be combined"),
        (("--verify-hash", "md5"), "hash_column=md5 cannot be combined"),
        (("--set=download.engine=native", "--set=download.img2dataset.timeout=5"), "no effect without engine=img2dat"),
        (("--set=download.img2dataset.timout=5",), "did you mean 'timeout'"),
    ],
)
def test_settings_that_img2dataset_cannot_honour_are_refused(urls: str, options: tuple[str, ...], named: str) -> None:
    result = run(urls, *ENGINE, *options)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("error") == 1
    assert named in result.stderr
    assert len(result.stderr) < 400
    assert os.listdir() == [urls]


def test_the_plan_lists_the_defaults_that_are_not_applied(urls: str) -> None:
    command = (urls, "--dry-run", *ENGINE)
    notes = SETTINGS.model_copy().engine_notes()
    planned = json.loads(run(*command, "--json").stdout)["notes"]
    assert planned[:-1] == notes
    assert "download.concurrency=2048" in planned[-1]
    text = re.sub(r"\s+", " ", run(*command).stdout)
    assert all(f"note: {note}" in text for note in planned)
    assert json.loads(run(urls, "--dry-run", "--json").stdout)["notes"] == []


def start(workspace: Workspace, *arguments: str) -> subprocess.Popen[str]:
    """Start a command in a process whose number is known."""
    return subprocess.Popen(
        [PRIORKIT, *arguments],
        cwd=workspace.path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def children(pid: int) -> set[int]:
    """Running children of a process."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def has_ended(pid: int) -> bool:
    """Return True if a process is gone, or is a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
def test_a_kill_changes_no_byte_and_leaves_no_process_and_no_file(workspace: Workspace, gate: Gate) -> None:
    command = ("download", "urls.parquet", *ENGINE)
    folder = workspace.folder("download")
    workspace.run(*command)
    expected = committed(folder)
    shutil.rmtree(folder)
    gate.close_after(50)
    process = start(workspace, *command)
    try:
        gate.wait_until_held()
        running = children(process.pid)
        assert len(running) == 1
        assert list(folder.glob(".img2dataset-*"))
        process.kill()
        process.communicate(timeout=600)
        wait_for(lambda: all(map(has_ended, running)))
        assert not list(folder.glob(".img2dataset-*"))
        assert sorted(path.name for path in folder.glob("*.tar")) == ["00000.tar"]
    finally:
        gate.open()
    gate.requests.clear()
    summary = workspace.json(*command)
    assert summary["done_now"] == 2
    assert len(summary["notes"]) == len(SETTINGS.engine_notes()) + 1
    first = {int(name) for path in gate.requests if (name := path.strip("/").partition(".")[0]).isdigit()}
    assert min(first) >= 40
    assert committed(folder) == expected


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_soon_when_asked(workspace: Workspace, gate: Gate, number: signal.Signals) -> None:
    gate.close_after(5)
    process = start(workspace, "download", "urls.parquet", *ENGINE)
    try:
        gate.wait_until_held()
        running = children(process.pid)
        stop(process, number)
        wait_for(lambda: all(map(has_ended, running)))
    finally:
        process.kill()
        gate.open()
    assert not list(workspace.folder("download").glob(".img2dataset-*"))
