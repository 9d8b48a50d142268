"""Map a function over shards: in this process, or on Ray. The only file of the pipeline that imports Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from .config import ComputeSettings
from .errors import PriorkitError

Task = TypeVar("Task")
Result = TypeVar("Result")

_RESTARTS = 3
"""How often Ray replaces a worker that died, and repeats the shard it held, before the run fails."""


def map_shards(
    make_worker: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task], compute: ComputeSettings
) -> Iterator[Result]:
    """Yield `worker(task)` for every task, in the order of completion.

    `make_worker` is called once in each worker, for what is dear to build, such as a model. `tasks` is consumed only as
    fast as the work goes on. The first exception of a task ends the map and is raised here.
    """
    if compute.backend == "local":
        worker: Callable[[Task], Result] | None = None
        for task in tasks:
            worker = worker or make_worker()
            yield worker(task)
    else:
        yield from _map_on_ray(make_worker, tasks, compute)


def _map_on_ray(
    make_worker: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task], compute: ComputeSettings
) -> Iterator[Result]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing phones home unless asked to
    # a worker shows no GPU that Ray did not give it; Ray announces this as its future default
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise PriorkitError(f"compute.backend=ray needs Ray ({error}): pip install 'ray[train]'") from error

    class Worker:
        work: Callable[[Task], Result] | None = None

        def run(self, task: Task) -> Result:
            # made here, because Ray hides what a constructor raises behind an error of its own
            self.work = self.work or make_worker()
            return self.work(task)

    started_here = not ray.is_initialized()
    if started_here:
        try:
            ray.init(address=compute.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise PriorkitError(f"cannot join Ray at compute.address={compute.address!r}: {error}") from error
    actor_class = ray.remote(Worker).options(
        num_cpus=compute.cpus_per_worker,
        num_gpus=compute.gpus_per_worker,
        max_restarts=_RESTARTS,
        max_task_retries=_RESTARTS,
    )
    idle: list[Any] = []
    busy: dict[Any, Any] = {}
    try:
        _require_resources(ray.cluster_resources(), compute)  # type: ignore[no-untyped-call]
        idle = [actor_class.remote() for _ in range(compute.workers)]
        for task in tasks:
            if not idle:
                yield _next_result(ray, busy, idle)
            actor = idle.pop()
            busy[actor.run.remote(task)] = actor
        while busy:
            yield _next_result(ray, busy, idle)
    finally:
        for actor in [*idle, *busy.values()]:
            ray.kill(actor)
        if started_here:
            ray.shutdown()


def _next_result(ray: Any, busy: dict[Any, Any], idle: list[Any]) -> Any:
    ready, _ = ray.wait(list(busy), num_returns=1)
    idle.append(busy.pop(ready[0]))
    try:
        return ray.get(ready[0])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def _require_resources(available: dict[str, float], compute: ComputeSettings) -> None:
    """A cluster that can never hold one worker would make Ray wait for ever."""
    for name, needed in (("CPU", compute.cpus_per_worker), ("GPU", compute.gpus_per_worker)):
        found = available.get(name, 0.0)
        if needed > found:
            raise PriorkitError(
                f"compute.{name.lower()}s_per_worker={needed:g}, but the Ray cluster has {found:g} {name}"
            )
