"""Ray clusters of several nodes on this machine, of which any may be killed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.cluster_utils import Cluster

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
