"""Map a function over shards, in this process or on Ray. No other module of the pipeline imports Ray."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, Optional, TypeAlias, TypeVar

from ..errors import PriorkitError
from .ray_start import open_cluster
from .settings import ComputeSettings

Task = TypeVar("Task")
Result = TypeVar("Result")
Worker: TypeAlias = Callable[[Task, Optional[Task]], Result]
"""Function that does a task, and also gets the next one, to read ahead."""

_ATTEMPTS = 4
"""Number of workers that may die on one shard, or per requested worker at their start, before the run fails."""
_CHECK_SECONDS = 5.0
"""Seconds between checks that the cluster still has room for a worker, while none is running."""


def map_shards(
    make_worker: Callable[[], Worker[Task, Result]], tasks: Iterable[Task], compute: ComputeSettings
) -> Generator[Result, None, None]:
    """Yield `worker(task, following)` for every task, in the order of completion.

    Close the generator if it may not be exhausted: an exception keeps a reference to it, and so the worker's threads
    run until the interpreter ends. The first exception of a task ends the map and is raised here.

    On Ray, another worker gets the task of a worker that died, and a new worker takes its place if the cluster has
    room. If it has none, the remaining workers continue.

    Args:
        make_worker: called once in each worker, to build expensive things such as a model. If the result is a context
            manager, it is closed at the end; on Ray it ends with its process.
        tasks: consumed only as fast as the work proceeds. `following` is the task that the worker will probably get
            next, so that it can read ahead; None if that is not known.
        compute: place of the work.

    Raises:
        PriorkitError: Ray is not available or has no room for a worker, or one task has ended several workers.
    """
    if compute.backend == "local":
        worker: Worker[Task, Result] | None = None
        upcoming = iter(tasks)
        task = next(upcoming, None)
        with contextlib.ExitStack() as stack:
            while task is not None:
                if worker is None:
                    worker = make_worker()
                    if isinstance(worker, contextlib.AbstractContextManager):
                        stack.enter_context(worker)
                following = next(upcoming, None)
                yield worker(task, following)
                task = following
    else:
        yield from _map_on_ray(make_worker, tasks, compute)


def _map_on_ray(
    make_worker: Callable[[], Worker[Task, Result]], tasks: Iterable[Task], compute: ComputeSettings
) -> Iterator[Result]:
    with ray_cluster(compute) as ray:
        pool = _Pool(ray, make_worker, compute)
        try:
            yield from pool.map(tasks)
        finally:
            pool.stop()


@contextlib.contextmanager
def ray_cluster(compute: ComputeSettings) -> Iterator[Any]:
    """Join the cluster in the settings, or one that is started for the block, and return the module `ray`.

    Raises:
        PriorkitError: Ray is not installed, there is no such cluster, or it does not let this process join.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends usage statistics by default
    # a worker shows no GPU that Ray did not give it; Ray announces this as its future default
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise PriorkitError(f"compute.backend=ray needs Ray ({error}): pip install 'ray[train]'") from error

    if ray.is_initialized():
        yield ray
        return
    with open_cluster(ray, compute.address):
        yield ray


def require_room(ray: Any, compute: ComputeSettings, workers: int) -> None:
    """Raise PriorkitError if an idle cluster has no room for this number of workers; Ray itself would wait forever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, needed in _needs(compute):
        available = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if needed > available:
            raise PriorkitError(
                f"compute.{name.lower()}s_per_worker={needed:g}, "
                f"but the Ray cluster has {available:g} {name} on the node that has most"
            )
        nodes = [node for node in nodes if node.get(name, 0.0) >= needed]
    room = sum(places(node, compute) for node in nodes)
    if workers > room:
        raise PriorkitError(
            f"compute.min_workers={workers}, but the Ray cluster has room for {room} workers of "
            f"{compute.cpus_per_worker:g} CPU and {compute.gpus_per_worker or 0:g} GPU"
        )


def places(node: dict[str, float], compute: ComputeSettings) -> int:
    """Return the number of workers that a node has room for."""
    return min(int(node.get(name, 0.0) // needed) for name, needed in _needs(compute) if needed)


def _needs(compute: ComputeSettings) -> tuple[tuple[str, float], ...]:
    """Return the resources of one worker; no GPU if the setting is open."""
    return ("CPU", compute.cpus_per_worker), ("GPU", compute.gpus_per_worker or 0.0)


class _Pool(Generic[Task, Result]):
    """Ray actors that each do one task at a time.

    Ray's own restarts are off: a task that Ray repeats on a restarted actor waits forever if no node has room for that
    actor. Here an actor gets work only when it runs.
    """

    def __init__(self, ray: Any, make_worker: Callable[[], Worker[Task, Result]], compute: ComputeSettings) -> None:
        class Actor:
            work: Worker[Task, Result] | None = None

            def ready(self) -> None:
                """Return when the actor runs."""

            def run(self, task: Task, following: Task | None) -> Result:
                # made here, because Ray hides an exception of a constructor behind its own
                self.work = self.work or make_worker()
                return self.work(task, following)

        self._ray, self._compute = ray, compute
        self._actor_class = ray.remote(Actor).options(
            num_cpus=compute.cpus_per_worker, num_gpus=compute.gpus_per_worker or 0, max_restarts=0, max_task_retries=0
        )
        exceptions = ray.exceptions
        self._death = (
            exceptions.RayActorError,
            exceptions.NodeDiedError,
            exceptions.ObjectLostError,
            exceptions.OutOfMemoryError,
            exceptions.WorkerCrashedError,
        )
        self._starting: dict[Any, Any] = {}
        """Actors that do not run yet, by the reference to the result of `ready`."""
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Task]] = {}
        """Busy actors and their tasks, by the reference to the result of `run`."""
        self._failed_starts = 0
        """Number of failed starts in a row."""

    def map(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield the results in the order of completion."""
        require_room(self._ray, self._compute, 1)
        for _ in range(self._compute.workers):
            self._start()
        upcoming = _Upcoming(tasks)
        while True:
            while self._idle and (task := upcoming.take(self._idle[-1])) is not None:
                actor = self._idle.pop()
                self._busy[actor.run.remote(task, upcoming.reserve(actor))] = (actor, task)
            if not self._busy and upcoming.is_empty():
                return
            ready, _ = self._ray.wait([*self._busy, *self._starting], num_returns=1, timeout=_CHECK_SECONDS)
            if not ready and not self._busy:
                require_room(self._ray, self._compute, 1)
            for reference in ready:
                if reference in self._starting:
                    self._welcome(reference)
                else:
                    yield from self._result(reference, upcoming)

    def stop(self) -> None:
        """Kill all actors."""
        for actor in [*self._starting.values(), *self._idle, *(actor for actor, _ in self._busy.values())]:
            self._ray.kill(actor)

    def _start(self) -> None:
        actor = self._actor_class.remote()
        self._starting[actor.ready.remote()] = actor

    def _welcome(self, reference: Any) -> None:
        """Add an actor that has started to the idle ones, or replace one that died at its start."""
        actor = self._starting.pop(reference)
        try:
            self._ray.get(reference)
        except self._death as error:
            self._failed_starts += 1
            if self._failed_starts == _ATTEMPTS * self._compute.workers:
                raise PriorkitError(
                    f"{self._failed_starts} Ray workers in a row died as they started; "
                    f"see Ray's logs for the cause ({error})"
                ) from error
            self._ray.kill(actor)
            self._start()
        else:
            self._failed_starts = 0
            self._idle.append(actor)

    def _result(self, reference: Any, upcoming: _Upcoming[Task]) -> Iterator[Result]:
        """Yield the result of a task; if its actor died, put the task back and start another actor instead."""
        actor, task = self._busy.pop(reference)
        try:
            result = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            self._idle.append(actor)
            raise error.cause from error
        except self._death as error:
            self._ray.kill(actor)  # an actor that is only unreachable must not write at the same time as its successor
            if upcoming.put_back(task, actor) == _ATTEMPTS:
                raise PriorkitError(
                    f"shard {getattr(task, 'name', task)} has taken down {_ATTEMPTS} Ray workers; "
                    f"they may need more memory, so fewer workers or smaller batches ({error})"
                ) from error
            self._start()
            # idle actors may have died with the same node: they get no work before they answer
            self._starting.update({waiting.ready.remote(): waiting for waiting in self._idle})
            self._idle = []
        else:
            self._idle.append(actor)
            yield result


class _Upcoming(Generic[Task]):
    """Tasks that are not started; each actor has one reserved, to read ahead, which another may take at the end."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)
        self._reserved: dict[Any, Task] = {}
        self._returned: list[Task] = []
        """Tasks that were put back, once for each time."""

    def take(self, actor: Any) -> Task | None:
        """Return the task that an actor does now; None if no task is left."""
        if actor in self._reserved:
            return self._reserved.pop(actor)
        task = next(self._tasks, None)
        if task is None and self._reserved:
            task = self._reserved.pop(next(iter(self._reserved)))
        return task

    def reserve(self, actor: Any) -> Task | None:
        """Reserve and return the task that an actor will probably do next; None if no task is left."""
        task = next(self._tasks, None)
        if task is not None:
            self._reserved[actor] = task
        return task

    def put_back(self, task: Task, actor: Any) -> int:
        """Put back the tasks of a dead actor, and return how often `task` was put back."""
        returned = [task, self._reserved.pop(actor)] if actor in self._reserved else [task]
        self._tasks = itertools.chain(returned, self._tasks)
        self._returned.append(task)
        return self._returned.count(task)

    def is_empty(self) -> bool:
        """Return whether no task is left."""
        task = next(self._tasks, None)
        if task is not None:
            self._tasks = itertools.chain([task], self._tasks)
        return task is None and not self._reserved
