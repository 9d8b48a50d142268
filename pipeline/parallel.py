"""Map a function over shards: in this process, or on Ray. The only file of the pipeline that imports Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Optional, TypeAlias, TypeVar

from .config import ComputeSettings
from .errors import PriorkitError

Task = TypeVar("Task")
Result = TypeVar("Result")
Worker: TypeAlias = Callable[[Task, Optional[Task]], Result]
"""Does a task; told of the next one too."""

_RESTARTS = 3
"""How often Ray replaces a worker that died, and repeats the shard it held, before the run fails."""


def map_shards(
    make_worker: Callable[[], Worker[Task, Result]], tasks: Iterable[Task], compute: ComputeSettings
) -> Iterator[Result]:
    """Yield `worker(task, following)` for every task, in the order of completion.

    `following` is what the worker is likely to be given next, so that it may read ahead; None if that is not known.
    `make_worker` is called once in each worker, for what is dear to build, such as a model. `tasks` is consumed only as
    fast as the work goes on. The first exception of a task ends the map and is raised here.
    """
    if compute.backend == "local":
        worker: Worker[Task, Result] | None = None
        upcoming = iter(tasks)
        task = next(upcoming, None)
        while task is not None:
            worker = worker or make_worker()
            following = next(upcoming, None)
            yield worker(task, following)
            task = following
    else:
        yield from _map_on_ray(make_worker, tasks, compute)


def _map_on_ray(
    make_worker: Callable[[], Worker[Task, Result]], tasks: Iterable[Task], compute: ComputeSettings
) -> Iterator[Result]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing phones home unless asked to
    # a worker shows no GPU that Ray did not give it; Ray announces this as its future default
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise PriorkitError(f"compute.backend=ray needs Ray ({error}): pip install 'ray[train]'") from error

    class Actor:
        work: Worker[Task, Result] | None = None

        def run(self, task: Task, following: Task | None) -> Result:
            # made here, because Ray hides what a constructor raises behind an error of its own
            self.work = self.work or make_worker()
            return self.work(task, following)

    started_here = not ray.is_initialized()
    if started_here:
        try:
            ray.init(address=compute.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise PriorkitError(f"cannot join Ray at compute.address={compute.address!r}: {error}") from error
    actor_class = ray.remote(Actor).options(
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
        upcoming = _Upcoming(tasks)
        while True:
            while idle and (task := upcoming.take(idle[-1])) is not None:
                actor = idle.pop()
                busy[actor.run.remote(task, upcoming.reserve(actor))] = actor
            if not busy:
                break
            yield _next_result(ray, busy, idle)
    finally:
        for actor in [*idle, *busy.values()]:
            ray.kill(actor)
        if started_here:
            ray.shutdown()


class _Upcoming(Generic[Task]):
    """Tasks, of which each actor has one reserved that it may read ahead; at the end another may take that one over."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)
        self._reserved: dict[Any, Task] = {}

    def take(self, actor: Any) -> Task | None:
        """The task that an actor shall do now; None when all are given out."""
        if actor in self._reserved:
            return self._reserved.pop(actor)
        task = next(self._tasks, None)
        if task is None and self._reserved:
            task = self._reserved.pop(next(iter(self._reserved)))
        return task

    def reserve(self, actor: Any) -> Task | None:
        """The task that an actor will most likely do next."""
        task = next(self._tasks, None)
        if task is not None:
            self._reserved[actor] = task
        return task


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
