"""Ray clusters of several nodes on this machine, of which any may be killed."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from priorkit.pipeline.compute.settings import ComputeSettings

from .conftest import wait_for

QUICK_DEATHS = {
    "health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 3
}  # fmt: skip
"""Ray's own limits let a dead node pass for a live one for a quarter of a minute."""


@contextlib.contextmanager
def cluster(*cpus: int) -> Iterator[tuple[Cluster, list[Any]]]:
    """A Ray cluster of nodes on this machine, the head first."""
    made = Cluster()
    try:
        nodes = []
        for number, count in enumerate(cpus):
            head = {"_system_config": QUICK_DEATHS, "include_dashboard": False} if number == 0 else {}
            nodes.append(made.add_node(num_cpus=count, object_store_memory=80_000_000, **head))
        made.wait_for_nodes()
        ray.init(address=made.address, log_to_driver=False)
        yield made, nodes
    finally:
        ray.shutdown()
        made.shutdown()


@contextlib.contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread beside the block; what fails there fails here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def losing_a_node(marks: Marks) -> Iterator[tuple[str, str]]:
    """A cluster of two nodes, of which the second begins a shard, gets no further and is killed.

    Yields:
        The nodes' names, that of the lost one last.
    """
    with cluster(1, 1) as (made, (head, other)):
        head_id, other_id = head.node_id, other.node_id
        marks.hold(other_id)

        def kill_node() -> None:
            wait_for(lambda: marks.nodes() == {head_id, other_id})
            made.remove_node(other, allow_graceful=False)

        with meanwhile(kill_node):
            yield head_id, other_id


class Marks:
    """Notes of what workers begin: (process, node, shard)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def begun(self) -> set[tuple[int, str, str]]:
        found = [path.name.split(".") for path in self.folder.iterdir()]
        return {(int(pid), node, shard) for pid, node, shard in found}

    def nodes(self) -> set[str]:
        return {node for _, node, _ in self.begun()}

    def hold(self, node: str) -> None:
        """Workers of a node shall begin a shard and get no further."""
        Path(f"{self.folder}-{node}").touch()

    def begun_by(self, node: str) -> set[str]:
        """Shards that a node has begun."""
        return {shard for _, where, shard in self.begun() if where == node}

    def processes(self, node: str | None = None) -> set[int]:
        return {pid for pid, where, _ in self.begun() if node in (None, where)}

    def noted_map(self, map_shards: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """A `map_shards` whose workers note what they begin, and take a moment over it."""
        folder = str(self.folder)

        def noted(make_worker: Any, tasks: Iterable[Any], compute: ComputeSettings) -> Iterator[Any]:
            def make_noting_worker() -> Callable[[Any, Any], Any]:
                worker = make_worker()

                def work(task: Any, following: Any) -> Any:
                    node = ray.get_runtime_context().get_node_id()
                    open(os.path.join(folder, f"{os.getpid()}.{node}.{task.name}"), "w").close()
                    time.sleep(0.2)
                    while os.path.exists(f"{folder}-{node}"):
                        time.sleep(0.05)
                    return worker(task, following)

                return work

            return map_shards(make_noting_worker, tasks, compute)

        return noted
