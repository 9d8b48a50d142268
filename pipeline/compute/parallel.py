"""Map a function over shards: in this process, or on Ray. The only file of the pipeline that imports Ray."""

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
"""Does a task; told of the next one too."""

_ATTEMPTS = 4
"""Workers that may die over one shard until the run fails; or, for each place, as they start."""
_CHECK_SECONDS = 5.0
"""While no worker is there to work, it is looked again so often whether the cluster can still hold one."""


def map_shards(
    make_worker: Callable[[], Worker[Task, Result]], tasks: Iterable[Task], compute: ComputeSettings
) -> Generator[Result, None, None]:
    """Yield `worker(task, following)` for every task, in the order of completion.

    Close the generator where it may not come to its end: an exception keeps it, and the worker's threads, until the
    interpreter ends.

    `following` is what the worker is likely to be given next, so that it may read ahead; None if that is not known.
    `make_worker` is called once in each worker, for what is dear to build, such as a model; what it gives may be a
    context, which is left at the end here, and ends with its process on Ray. `tasks` is consumed only as fast as the
    work goes on. The first exception of a task ends the map and is raised here.

    On Ray, the task of a worker that died is given to another, and the worker is replaced where there is room for a
    new one; where there is none, those that are left do the work.

    Raises:
        PriorkitError: Ray cannot be had, or cannot hold a worker; or a task has taken down one worker after the other.
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
    """The module `ray`, joined to the cluster that the settings name, or to one that is started for the block.

    Raises:
        PriorkitError: Ray is not installed, there is no such cluster, or it does not let this process join.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing phones home unless asked to
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
    """PriorkitError if a cluster could not hold so many workers even if nothing else ran: Ray would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, needed in _needs(compute):
        found = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if needed > found:
            raise PriorkitError(
                f"compute.{name.lower()}s_per_worker={needed:g}, "
                f"but the Ray cluster has {found:g} {name} on the node that has most"
            )
        nodes = [node for node in nodes if node.get(name, 0.0) >= needed]
    room = sum(places(node, compute) for node in nodes)
    if workers > room:
        raise PriorkitError(
            f"compute.min_workers={workers}, but the Ray cluster has room for {room} workers of "
            f"{compute.cpus_per_worker:g} CPU and {compute.gpus_per_worker or 0:g} GPU"
        )


def places(node: dict[str, float], compute: ComputeSettings) -> int:
    """Workers that a node has room for."""
    return min(int(node.get(name, 0.0) // needed) for name, needed in _needs(compute) if needed)


def _needs(compute: ComputeSettings) -> tuple[tuple[str, float], ...]:
    """Resources of one worker; GPUs that a stage has left open are none."""
    return ("CPU", compute.cpus_per_worker), ("GPU", compute.gpus_per_worker or 0.0)


class _Pool(Generic[Task, Result]):
    """Actors that each do one task at a time.

    Ray's own restarts are off: a task that it repeats on a restarted actor waits for ever where no node has room for
    that actor any more. Here an actor is given work only once it runs.
    """

    def __init__(self, ray: Any, make_worker: Callable[[], Worker[Task, Result]], compute: ComputeSettings) -> None:
        class Actor:
            work: Worker[Task, Result] | None = None

            def ready(self) -> None:
                """Returns when the actor has found its place."""

            def run(self, task: Task, following: Task | None) -> Result:
                # made here, because Ray hides what a constructor raises behind an error of its own
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
        """Actors that do not run yet, by what tells that they do."""
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Task]] = {}
        """Actors at work with their tasks, by the result to come."""
        self._failed_starts = 0
        """In a row."""

    def map(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Results in the order of completion."""
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
        """End all actors at once."""
        for actor in [*self._starting.values(), *self._idle, *(actor for actor, _ in self._busy.values())]:
            self._ray.kill(actor)

    def _start(self) -> None:
        actor = self._actor_class.remote()
        self._starting[actor.ready.remote()] = actor

    def _welcome(self, reference: Any) -> None:
        """Take in an actor that has started, or has died over it."""
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
        """The result of a task; none if its actor has died, which puts the task back and another actor in place."""
        actor, task = self._busy.pop(reference)
        try:
            result = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            self._idle.append(actor)
            raise error.cause from error
        except self._death as error:
            self._ray.kill(actor)  # one that is only out of reach must not write beside its successor
            if upcoming.put_back(task, actor) == _ATTEMPTS:
                raise PriorkitError(
                    f"shard {getattr(task, 'name', task)} has taken down {_ATTEMPTS} Ray workers; "
                    f"they may need more memory, so fewer workers or smaller batches ({error})"
                ) from error
            self._start()
            # those that waited may have died with the same node: they get no work before they have answered
            self._starting.update({waiting.ready.remote(): waiting for waiting in self._idle})
            self._idle = []
        else:
            self._idle.append(actor)
            yield result


class _Upcoming(Generic[Task]):
    """Tasks, of which each actor has one reserved that it may read ahead; at the end another may take that one over."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)
        self._reserved: dict[Any, Task] = {}
        self._deaths: list[Task] = []
        """Tasks that were put back, once for each time."""

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

    def put_back(self, task: Task, actor: Any) -> int:
        """Take back what a dead actor was to do, and say how often that has happened to its task."""
        returned = [task, self._reserved.pop(actor)] if actor in self._reserved else [task]
        self._tasks = itertools.chain(returned, self._tasks)
        self._deaths.append(task)
        return self._deaths.count(task)

    def is_empty(self) -> bool:
        """Whether all tasks are given out."""
        task = next(self._tasks, None)
        if task is not None:
            self._tasks = itertools.chain([task], self._tasks)
        return task is None and not self._reserved
