"""img2dataset's process: it downloads a shard, and every way in which it can fail is an error of one line."""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from priorkit.pipeline.download.img2dataset_engine.child import Child
from priorkit.pipeline.download.img2dataset_engine.request import INPUT_NAME, Request, make_request
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.errors import PriorkitError

from .....conftest import QuietHandler, picture, serving

SETTINGS = DownloadSettings(engine="img2dataset", rows_per_shard=10, image_size=32, retries=0)
Rows = list[tuple[str, str, str | None, int]]


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    """A process that all tests share, since it takes seconds to start. A failure ends it."""
    made = Child()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[Callable[[], None]]]]:
    """A server's address, and actions that it takes before it answers."""
    actions: list[Callable[[], None]] = []

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            for action in actions:
                action()
            body = picture(int(self.path[1:])) if self.path[1:].isdigit() else b"no image"
            self.send_response(404 if self.path == "/gone" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as url:
        yield url, actions


def write_request(folder: Path, urls: list[str | None], **columns: list[Any]) -> Request:
    folder.mkdir()
    table = pa.table({**columns, "url": pa.array(urls, pa.string())})
    with pa.ipc.new_file(folder / INPUT_NAME, table.schema) as writer:
        writer.write_table(table)
    return make_request("00003", str(folder), table.column_names, None, SETTINGS)


def ignore(*arguments: object) -> None:
    pass


def test_a_shard_is_downloaded_and_each_row_reported(
    child: Child, server: tuple[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url, _ = server
    folder = tmp_path / "folder"
    rows: Rows = []
    request = write_request(folder, [f"{url}/1", f"{url}/gone", f"{url}/page", "", None])
    child.run(request, lambda *row: rows.append(row))
    body = len(picture(1))
    assert sorted(rows) == [
        ("000030", "success", None, body),
        ("000031", "failed_to_download", "HTTP Error 404: Not Found", 0),
        ("000032", "failed_to_resize", "Image decoding error", len(b"no image")),
        ("000033", "failed_to_download", "unknown url type: ''", 0),
        ("000034", "failed_to_download", "unknown url type: 'None'", 0),
    ]
    assert {path.name for path in folder.iterdir()} == {"00003.tar", "00003.parquet", "00003_stats.json"}
    assert json.loads((folder / "00003_stats.json").read_text())["count"] == 5
    assert capfd.readouterr() == ("", "")


def test_a_row_that_img2dataset_would_lose_is_an_error(child: Child, server: tuple[str, Any], tmp_path: Path) -> None:
    request = write_request(tmp_path / "folder", [f"{server[0]}/1"], day=[datetime.date(2026, 1, 1)])
    with pytest.raises(PriorkitError, match=r"shard 00003: row 000030: Object of type date is not JSON serializable"):
        child.run(request, ignore)


@pytest.mark.slow
def test_an_error_of_the_disk_keeps_its_number(child: Child, tmp_path: Path) -> None:
    request = write_request(tmp_path / "folder", [""])
    (tmp_path / "folder" / INPUT_NAME).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"list\.arrow|No such file"):
        child.run(request, ignore)


@pytest.mark.slow
def test_a_process_that_dies_is_named_and_replaced(child: Child, server: tuple[str, Any], tmp_path: Path) -> None:
    url, actions = server

    def kill() -> None:
        assert child._process is not None
        os.kill(child._process.pid, signal.SIGKILL)

    actions.append(kill)
    request = write_request(tmp_path / "folder", [f"{url}/1"])
    try:
        with pytest.raises(PriorkitError, match=r"was ended by SIGKILL in shard 00003; .* engine=native"):
            child.run(request, ignore)
    finally:
        actions.clear()
    assert child._process is None
    rows: Rows = []
    child.run(write_request(tmp_path / "again", [f"{url}/1"]), lambda *row: rows.append(row))
    assert [row[1] for row in rows] == ["success"]


@pytest.mark.slow
def test_a_callback_that_fails_ends_the_process(child: Child, tmp_path: Path) -> None:
    def fail(*row: object) -> None:
        raise PriorkitError("enough")

    with pytest.raises(PriorkitError, match="enough"):
        child.run(write_request(tmp_path / "folder", [""]), fail)
    assert child._process is None


def test_a_process_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    request = write_request(tmp_path / "folder", [""])
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    with pytest.raises(PriorkitError, match=r"img2dataset cannot be started: .* code 1; ModuleNotFoundError: "):
        Child().run(request, ignore)
