"""The map over shards in this process; Ray's is in the integration tests."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator

import pytest

from priorkit.pipeline.compute.parallel import map_shards
from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.errors import InputError, PriorkitError

LOCAL = ComputeSettings()


def test_one_worker_gives_the_results_in_order() -> None:
    made: list[int] = []

    def make_worker() -> Callable[[int], int]:
        made.append(1)
        return lambda task, following: task * 2

    assert list(map_shards(make_worker, range(5), LOCAL)) == [0, 2, 4, 6, 8]
    assert made == [1]


def test_no_task_builds_no_worker() -> None:
    def make_worker() -> Callable[[int], int]:
        raise AssertionError

    assert list(map_shards(make_worker, [], LOCAL)) == []


def test_tasks_are_taken_one_ahead_and_passed_to_the_worker() -> None:
    events: list[str] = []

    def tasks() -> Iterator[int]:
        for number in range(3):
            events.append(f"made {number}")
            yield number

    for done, told in map_shards(lambda: lambda task, following: (task, following), tasks(), LOCAL):
        events.append(f"done {done} before {told}")
    assert events == [
        "made 0", "made 1", "done 0 before 1", "made 2", "done 1 before 2", "done 2 before None",
    ]  # fmt: skip


def test_an_exception_ends_the_map_and_is_raised_unchanged() -> None:
    seen: list[int] = []

    def work(task: int, following: int | None) -> int:
        seen.append(task)
        if task == 1:
            raise InputError("shard 1")
        return task

    with pytest.raises(InputError, match="shard 1"):
        list(map_shards(lambda: work, range(5), LOCAL))
    assert seen == [0, 1]


def test_the_local_map_does_not_import_ray() -> None:
    import subprocess

    code = (
        "import sys; from priorkit.pipeline.compute.parallel import map_shards; "
        "from priorkit.pipeline.config import ComputeSettings; "
        "list(map_shards(lambda: lambda task, following: str(task), [1], ComputeSettings())); "
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_without_a_cluster_is_an_error_at_once(scheme: str) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        address = f"{scheme}127.0.0.1:{bound.getsockname()[1]}"
        compute = ComputeSettings(backend="ray", address=address)
        with pytest.raises(PriorkitError, match=r"cannot join Ray at compute\.address=.*; start it there"):
            next(map_shards(lambda: lambda task, following: task, [1], compute))
