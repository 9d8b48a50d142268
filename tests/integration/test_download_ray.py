"""Download on Ray while workers and nodes are killed: the same bytes, and no finished shard is fetched again."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from priorkit.pipeline.compute.parallel import map_shards
from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.download import stage as download_module
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import download
from priorkit.pipeline.errors import PriorkitError

from .conftest import wait_for
from .ray_nodes import Marks, RayCluster, losing_a_node, meanwhile

FolderBytes = Callable[[Path], dict[str, bytes]]
TWO_WORKERS = ComputeSettings(backend="ray", workers=2)
ROWS_PER_SHARD, SHARDS = 5, 13
LAST_SHARDS = {"00011", "00012"}
"""At the end a worker may take over what another has begun to fetch ahead."""
pytestmark = pytest.mark.slow

NODES = (1, 1)
"""Size of the shared cluster: 1 CPU on the head and 1 on another node."""


@pytest.fixture
def download_settings() -> DownloadSettings:
    return DownloadSettings(
        rows_per_shard=ROWS_PER_SHARD, image_size=32, allow_private_addresses=True, concurrency=4, decode_processes=1
    )


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Marks:
    """Makes the workers of `download` note each shard they begin, and take a moment over it."""
    made = Marks(tmp_path / "marks")
    monkeypatch.setattr(download_module, "map_shards", made.noted_map(map_shards))
    return made


@pytest.fixture
def expected(images_folder: Path, image_server: Any, folder_bytes: FolderBytes) -> dict[str, bytes]:
    """What one process fetches without being disturbed."""
    image_server.requests.clear()
    return folder_bytes(images_folder)


def fetched_twice(image_server: Any, url_list: Any) -> set[str]:
    """Names of the shards of which something was asked for more than once."""
    counts = collections.Counter(image_server.requests)
    paths = [url.removeprefix(image_server.url) for url in url_list.urls]
    return {f"{row // ROWS_PER_SHARD:05d}" for row, path in enumerate(paths) if counts[path] > 1}


def test_two_nodes_share_the_work(
    nodes: RayCluster, url_list: Any, image_server: Any, download_settings: DownloadSettings,
    expected: dict[str, bytes], marks: Marks, tmp_path: Path, folder_bytes: FolderBytes,
) -> None:  # fmt: skip
    told: list[tuple[int, int | None, str]] = []
    result = download(
        str(url_list.path), str(tmp_path / "out"), download_settings, compute=TWO_WORKERS,
        progress=lambda done, total, note: told.append((done, total, note)),
    )  # fmt: skip
    assert marks.nodes() == {node.node_id for node in nodes.nodes}
    assert (result.done_now, result.rows) == (SHARDS, 63)
    assert folder_bytes(tmp_path / "out") == expected
    assert fetched_twice(image_server, url_list) <= LAST_SHARDS
    assert told[0][:2] == (0, 63)
    assert told[-1][:2] == (63, 63)
    assert "95% success" in told[-1][2]


def test_a_worker_that_is_killed_costs_no_finished_shard(
    nodes: RayCluster, url_list: Any, image_server: Any, download_settings: DownloadSettings,
    expected: dict[str, bytes], marks: Marks, tmp_path: Path, folder_bytes: FolderBytes,
) -> None:  # fmt: skip
    killed: list[str] = []
    finished: set[str] = set()

    def kill_one() -> None:
        wait_for(lambda: len(marks.begun()) >= 4)
        newest = max(marks.folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        pid, _, shard = newest.name.split(".")
        finished.update(path.stem for path in (tmp_path / "out/shards").glob("*.json"))
        os.kill(int(pid), signal.SIGKILL)
        killed.append(shard)

    with meanwhile(kill_one):
        result = download(str(url_list.path), str(tmp_path / "out"), download_settings, compute=TWO_WORKERS)
    assert result.done_now == SHARDS
    assert folder_bytes(tmp_path / "out") == expected
    twice = fetched_twice(image_server, url_list)
    assert finished
    assert not twice & finished
    assert len(twice - LAST_SHARDS - set(killed)) <= 1  # what it had fetched ahead


def test_a_node_that_is_killed_costs_no_finished_shard(
    nodes: RayCluster, url_list: Any, image_server: Any, download_settings: DownloadSettings,
    expected: dict[str, bytes], marks: Marks, tmp_path: Path, folder_bytes: FolderBytes,
) -> None:  # fmt: skip
    with losing_a_node(nodes, marks) as (left_id, lost_id):
        download(str(url_list.path), str(tmp_path / "out"), download_settings, compute=TWO_WORKERS)
    assert folder_bytes(tmp_path / "out") == expected
    (lost,) = marks.begun_by(lost_id)
    assert lost in marks.begun_by(left_id)
    assert fetched_twice(image_server, url_list) <= {lost, *LAST_SHARDS}


def test_a_cluster_that_is_lost_is_gone_on_from_in_one_process(
    nodes: RayCluster, url_list: Any, image_server: Any, download_settings: DownloadSettings,
    expected: dict[str, bytes], marks: Marks, tmp_path: Path, folder_bytes: FolderBytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """All workers die, again and again, until the run gives up; then the same without Ray."""

    def kill_all() -> None:
        wait_for(lambda: len(marks.begun()) >= 6)
        seen: set[int] = set()
        while not ended:
            for pid in marks.processes() - seen:
                seen.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    ended: list[bool] = []
    with meanwhile(kill_all):
        try:
            with pytest.raises(PriorkitError, match="has taken down 4 Ray workers"):
                download(str(url_list.path), str(tmp_path / "out"), download_settings, compute=TWO_WORKERS)
        finally:
            ended.append(True)
    done = {path.stem for path in (tmp_path / "out/shards").glob("*.json")}
    assert done
    image_server.requests.clear()
    monkeypatch.setattr(download_module, "map_shards", map_shards)
    result = download(str(url_list.path), str(tmp_path / "out"), download_settings)
    assert result.done_now == SHARDS - len(done)
    assert folder_bytes(tmp_path / "out") == expected
    asked = {path.strip("/") for path in image_server.requests}
    finished_rows = {
        url.rpartition("/")[2] for row, url in enumerate(url_list.urls) if f"{row // ROWS_PER_SHARD:05d}" in done
    }
    assert not asked & finished_rows
