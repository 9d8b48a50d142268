"""Embed on Ray while its workers and its nodes are killed: the same bytes, or an error that says what happened."""

from __future__ import annotations

import io
import os
import random
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from priorkit.pipeline.compute import stage
from priorkit.pipeline.compute.parallel import map_shards
from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed
from priorkit.pipeline.errors import PriorkitError

from ..conftest import picture
from .conftest import wait_for
from .ray_nodes import Marks, RayCluster, losing_a_node, meanwhile

FolderBytes = Callable[[Path], dict[str, bytes]]
TWO_WORKERS = ComputeSettings(backend="ray", workers=2)
SHARDS, SAMPLES = 10, 24
pytestmark = pytest.mark.slow

NODES = (0, 2)
"""Size of the shared cluster: no CPU on the head and 1 on each of two nodes."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * SAMPLES, (shard + 1) * SAMPLES):
                for extension, data in (("jpg", picture(number)), ("txt", f"a picture, number {number}".encode())):
                    info = tarfile.TarInfo(f"{number:06d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


@pytest.fixture(scope="module")
def expected_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("expected") / "out"


@pytest.fixture
def expected(
    shards: Path, embed_settings: EmbedSettings, expected_folder: Path, folder_bytes: FolderBytes
) -> dict[str, bytes]:
    """What one process makes of the shards without being disturbed."""
    if not expected_folder.exists():
        embed(str(shards), str(expected_folder), embed_settings)
    return folder_bytes(expected_folder)


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Marks:
    """Makes the workers of `embed` note each shard they begin, and take a moment over it."""
    made = Marks(tmp_path / "marks")
    monkeypatch.setattr(stage, "map_shards", made.noted_map(map_shards))
    return made


def test_workers_that_are_killed_at_any_instant_change_no_byte(
    nodes: RayCluster, shards: Path, expected: dict[str, bytes], marks: Marks, embed_settings: EmbedSettings,
    tmp_path: Path, folder_bytes: FolderBytes,
) -> None:  # fmt: skip
    instants = random.Random(0)
    killed: list[int] = []

    def kill_some() -> None:
        for _ in range(3):  # a shard that takes down four is an error
            before = len(marks.begun())
            wait_for(lambda before=before: len(marks.begun()) > before)  # type: ignore[misc]
            newest = max(marks.folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
            time.sleep(instants.uniform(0, 0.5))
            pid = int(newest.name.split(".")[0])
            if pid not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    with meanwhile(kill_some):
        result = embed(str(shards), str(tmp_path / "out"), embed_settings, compute=TWO_WORKERS)
    assert (result.done_now, result.counts) == (SHARDS, {"success": SHARDS * SAMPLES})
    assert len(killed) >= 2
    assert len(marks.processes()) > 2
    assert folder_bytes(tmp_path / "out") == expected


def test_a_node_that_is_killed_changes_no_byte(
    nodes: RayCluster, shards: Path, expected: dict[str, bytes], marks: Marks, embed_settings: EmbedSettings,
    tmp_path: Path, folder_bytes: FolderBytes,
) -> None:  # fmt: skip
    """The other node has no room for one more worker: the one that it has does the work of both."""
    with losing_a_node(nodes, marks) as (left_id, lost_id):
        embed(str(shards), str(tmp_path / "out"), embed_settings, compute=TWO_WORKERS)
    assert folder_bytes(tmp_path / "out") == expected
    (lost,) = marks.begun_by(lost_id)
    assert lost in marks.begun_by(left_id)
    assert len(marks.processes(left_id)) == 1


def test_a_worker_is_replaced_on_another_node_where_there_is_room(
    nodes: RayCluster, shards: Path, expected: dict[str, bytes], marks: Marks, embed_settings: EmbedSettings,
    tmp_path: Path, folder_bytes: FolderBytes,
) -> None:  # fmt: skip
    """The only worker is on the node that dies; the other node has had no room for it until then."""
    _, blocked, other = nodes.nodes
    blocker = ray.remote(lambda: time.sleep(3600)).options(num_cpus=1, scheduling_strategy=_on_node(blocked.node_id))
    blocking = blocker.remote()
    wait_for(lambda: ray.available_resources().get("CPU", 0) == 1)

    def kill_node() -> None:
        wait_for(lambda: len(marks.begun()) >= 3)
        assert marks.nodes() == {other.node_id}
        nodes.kill(other)
        ray.cancel(blocking, force=True)

    try:
        with meanwhile(kill_node):
            embed(str(shards), str(tmp_path / "out"), embed_settings, compute=ComputeSettings(backend="ray", workers=1))
    finally:
        ray.cancel(blocking, force=True)
    assert blocked.node_id in marks.nodes()
    assert folder_bytes(tmp_path / "out") == expected


def _on_node(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=node, soft=False)


def test_fewer_places_than_workers_is_no_wait_for_ever_and_a_deadly_task_is_named(
    nodes: RayCluster, tmp_path: Path
) -> None:
    more = ComputeSettings(backend="ray", workers=5)
    assert sorted(map_shards(lambda: lambda task, following: task, range(12), more)) == list(range(12))

    folder = str(tmp_path)

    def make_worker() -> Callable[[int, int | None], int]:
        def work(task: int, following: int | None) -> int:
            if task == 3:
                open(os.path.join(folder, str(os.getpid())), "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return task

        return work

    with pytest.raises(PriorkitError, match="shard 3 has taken down 4 Ray workers"):
        list(map_shards(make_worker, range(6), TWO_WORKERS))
    assert len(list(tmp_path.iterdir())) == 4


def test_a_cluster_that_loses_all_its_room_is_an_error_and_not_a_wait_for_ever(
    nodes: RayCluster,
) -> None:
    def make_worker() -> Callable[[int, int | None], int]:
        def work(task: int, following: int | None) -> int:
            while task:  # the second task goes on until the nodes are killed
                time.sleep(0.05)
            return task

        return work

    results = map_shards(make_worker, range(100), ComputeSettings(backend="ray"))
    assert next(results) == 0
    for node in nodes.nodes[1:]:
        nodes.kill(node)
    with pytest.raises(PriorkitError, match="cpus_per_worker=1, but the Ray cluster has 0 CPU"):
        list(results)
