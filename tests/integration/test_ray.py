"""Ray: the same bytes as in one process, errors as themselves, and workers that die are replaced."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from priorkit.pipeline.compute.parallel import map_shards
from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import download
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed
from priorkit.pipeline.errors import InputError, PriorkitError

from .ray_nodes import SYSTEM

FolderBytes = Callable[[Path], dict[str, bytes]]
pytestmark = pytest.mark.slow
TWO_WORKERS = ComputeSettings(backend="ray", workers=2)


@pytest.fixture(scope="module")
def _end() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def _cluster(_end: None) -> None:
    """One cluster for the module, since each takes seconds to start; after a test that ends it, there is another."""
    if not ray.is_initialized():
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, _system_config=SYSTEM)


def test_download_and_embed_give_the_bytes_of_one_process(
    images_folder: Path, embeddings_folder: Path, url_list: Any, download_settings: DownloadSettings,
    embed_settings: EmbedSettings, tmp_path: Path, folder_bytes: FolderBytes,
) -> None:  # fmt: skip
    images, embeddings = tmp_path / "ray_images", tmp_path / "ray_embeddings"
    result = download(str(url_list.path), str(images), download_settings, compute=TWO_WORKERS)
    assert (result.done_now, result.rows) == (4, 63)
    assert folder_bytes(images) == folder_bytes(images_folder)
    embed(str(images), str(embeddings), embed_settings, compute=TWO_WORKERS)
    assert folder_bytes(embeddings) == folder_bytes(embeddings_folder)
    # the backend is no setting of the result: either goes on with what the other has done
    (embeddings / "img_emb/img_emb_0001.npy").unlink()
    assert embed(str(images), str(embeddings), embed_settings).done_now == 1
    (embeddings / "img_emb/img_emb_0002.npy").unlink()
    assert embed(str(images), str(embeddings), embed_settings, compute=TWO_WORKERS).done_now == 1
    assert folder_bytes(embeddings) == folder_bytes(embeddings_folder)


def test_tasks_are_spread_over_the_workers_and_all_come_back(tmp_path: Path) -> None:
    started = [tmp_path / "0", tmp_path / "1"]

    def make_worker() -> Callable[[int], tuple[int, int]]:
        import time

        def work(task: int, following: int | None) -> tuple[int, int]:
            if task < len(started):  # the first two tasks wait for each other, so each needs a worker
                started[task].touch()
                end = time.monotonic() + 600
                while not all(path.exists() for path in started):
                    assert time.monotonic() < end, "one worker alone works"
                    time.sleep(0.01)
            return task, os.getpid()

        return work

    results = list(map_shards(make_worker, range(20), TWO_WORKERS))
    assert sorted(task for task, _ in results) == list(range(20))
    pids = {pid for _, pid in results}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_tasks_are_made_only_as_fast_as_the_work_goes_on() -> None:
    made: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    results = map_shards(lambda: lambda task, following: task, tasks(), TWO_WORKERS)
    next(results)
    assert len(made) <= 4
    results.close()  # type: ignore[attr-defined]


def test_the_exception_of_a_task_is_raised_as_itself() -> None:
    def make_worker() -> Callable[[int], int]:
        def work(task: int, following: int | None) -> int:
            if task == 3:
                raise InputError("shard 3 is damaged")
            return task

        return work

    with pytest.raises(InputError, match=r"^shard 3 is damaged$"):
        list(map_shards(make_worker, range(6), TWO_WORKERS))


def test_the_exception_of_building_a_worker_is_raised_as_itself() -> None:
    def make_worker() -> Callable[[int], int]:
        raise InputError("no weights here")

    with pytest.raises(InputError, match=r"^no weights here$"):
        list(map_shards(make_worker, range(6), TWO_WORKERS))


def test_a_worker_that_is_killed_is_replaced_and_its_shard_repeated(tmp_path: Path) -> None:
    mark = tmp_path / "killed_once"

    def make_worker() -> Callable[[int], int]:
        def work(task: int, following: int | None) -> int:
            if task == 2 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return task * 10

        return work

    assert sorted(map_shards(make_worker, range(5), TWO_WORKERS)) == [0, 10, 20, 30, 40]
    assert mark.exists()


def test_a_demand_that_the_cluster_can_never_meet_is_refused_at_once() -> None:
    with pytest.raises(PriorkitError, match="cpus_per_worker=1000, but the Ray cluster has 2 CPU"):
        list(
            map_shards(
                lambda: lambda task, following: str(task), [1], ComputeSettings(backend="ray", cpus_per_worker=1000)
            )
        )
    with pytest.raises(PriorkitError, match="gpus_per_worker=1, but the Ray cluster has 0 GPU"):
        list(
            map_shards(
                lambda: lambda task, following: str(task), [1], ComputeSettings(backend="ray", gpus_per_worker=1)
            )
        )


def test_a_cluster_that_is_not_there_is_a_clear_error_and_none_is_left_running() -> None:
    """Nor is Ray's handler of SIGTERM, which would end the process with a dump and another exit code."""
    ray.shutdown()
    handlers: list[Any] = []

    def tasks() -> Iterator[int]:
        handlers.append(signal.getsignal(signal.SIGTERM))
        yield from (1, 2)

    def make_worker() -> Callable[[int, int | None], str]:
        return lambda task, following: str(task)

    def handler(number: int, frame: Any) -> None:
        pass

    with pytest.raises(PriorkitError, match=r"cannot join Ray at compute\.address='auto'"):
        list(map_shards(make_worker, [1], ComputeSettings(backend="ray", address="auto")))
    before = signal.signal(signal.SIGTERM, handler)
    try:
        assert list(map_shards(make_worker, tasks(), ComputeSettings(backend="ray"))) == ["1", "2"]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert handlers == [handler]
    assert not ray.is_initialized()
