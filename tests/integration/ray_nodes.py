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

from .conftest import HANG_SECONDS, wait_for

SYSTEM = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "prestart_worker_first_driver": False,
    "memory_monitor_refresh_ms": 0,
}
"""Ray's settings: a dead node is noticed within 2 seconds instead of 15, no worker starts before it is needed, and none
is killed because other programs use the machine's memory."""
HEAD: dict[str, Any] = {
    "_system_config": SYSTEM, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True
}  # fmt: skip
"""Options of the head node, without the processes that the tests do not need."""


class RayCluster:
    """Ray cluster of nodes on this machine, which this process has joined. A test may kill any node but the head.

    Args:
        head_cpus: CPUs of the head, on which the driver is.
        others: number of other nodes, with 1 CPU each.
    """

    def __init__(self, head_cpus: int, others: int) -> None:
        self._others = others
        self._cluster = Cluster()
        try:
            self._head = self._cluster.add_node(wait=False, num_cpus=head_cpus, object_store_memory=80_000_000, **HEAD)
            self.complete()
            ray.init(address=self._cluster.address, log_to_driver=False)
        except BaseException:
            self.stop()
            raise

    @property
    def nodes(self) -> list[Any]:
        """All nodes that have not been killed, the head first."""
        others = self._cluster.list_all_nodes()
        others.remove(self._head)
        return [self._head, *others]

    def add_node(self) -> None:
        """Start one more node with 1 CPU."""
        self._cluster.add_node(wait=False, num_cpus=1, object_store_memory=80_000_000)
        self._cluster.wait_for_nodes(timeout=HANG_SECONDS)

    def complete(self) -> None:
        """Start a node for each that has been killed."""
        while len(self.nodes) <= self._others:
            self.add_node()

    def kill(self, node: Any) -> None:
        self._cluster.remove_node(node, allow_graceful=False)

    def wait_until_idle(self) -> None:
        """Wait until no worker holds a CPU of the cluster."""
        wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources().get("CPU"))

    def stop(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


@contextlib.contextmanager
def cluster(head_cpus: int, others: int = 0) -> Iterator[RayCluster]:
    """A Ray cluster that ends with the block."""
    started = RayCluster(head_cpus, others)
    try:
        yield started
    finally:
        started.stop()


@contextlib.contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread beside the block; what fails there fails here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)  # if the block fails, it may wait for ever
    thread.start()
    yield
    thread.join()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def losing_a_node(nodes: RayCluster, marks: Marks) -> Iterator[tuple[str, str]]:
    """Two workers on two nodes, of which the last node begins a shard, gets no further and is killed.

    Yields:
        The nodes' names, that of the lost one last.
    """
    head, other = nodes.nodes[-2:]
    head_id, other_id = head.node_id, other.node_id
    marks.hold(other_id)

    def kill_node() -> None:
        wait_for(lambda: marks.nodes() == {head_id, other_id})
        nodes.kill(other)

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
