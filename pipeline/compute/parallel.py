"""Processing of shards, either one at a time in this process, or in parallel on Ray.

No other module of the pipeline imports Ray.
"""

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
"""Function that processes its first argument, a task, and returns the result. The second argument is the task that will
probably follow, so that the function can start reading it; None if no following task is known."""

_ATTEMPTS = 4
"""Maximum number of attempts to process a shard. The run fails when this many workers have died while processing the
same shard. It also fails when `_ATTEMPTS * compute.workers` workers in a row have died during startup."""
_CHECK_SECONDS = 5.0
"""Seconds between checks that the cluster has room for a worker. These checks run only while no worker is busy."""


def map_shards(
    make_worker: Callable[[], Worker[Task, Result]], tasks: Iterable[Task], compute: ComputeSettings
) -> Generator[Result, None, None]:
    """Call a worker function with every task, and yield the results in order of completion.

    `make_worker` creates the worker function, which receives two arguments: a task, and a prediction of the worker's
    next task, or None if there is no prediction. The worker function can start reading the next task in the background.
    If the worker function raises an exception, the exception propagates, and no more results are yielded.

    Close the generator explicitly unless you consume all results. Otherwise, the traceback of an exception could keep
    the generator alive, and the worker's threads would run until the interpreter exits.

    If a Ray worker dies, another worker takes over its task. A new worker replaces the dead worker if the cluster has
    room; otherwise, the remaining workers continue without a replacement.

    Args:
        make_worker: called once in each worker to create the worker function and expensive objects such as a model. If
            the worker function is a context manager, this process enters it at the start and exits it at the end. On
            Ray, it is neither entered nor exited, and the worker processes are killed at the end.
        tasks: tasks in the order in which they are started. Each task is requested only shortly before it is started.
        compute: settings that control where the work runs.

    Raises:
        PriorkitError: Ray is not installed, its cluster cannot be joined or has no room for a worker, workers keep
            dying at startup, or several workers have died on the same task.
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
    """Context manager that joins or starts the Ray cluster that the settings name, and yields the `ray` module.

    If this process has already joined a cluster, that cluster is used, and the process stays connected on exit.

    Raises:
        PriorkitError: Ray is not installed, or the cluster cannot be started or joined.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends usage statistics by default
    # hide GPUs from workers to which Ray has assigned none; Ray has announced this as its future default
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
    """Check that the Ray cluster is large enough for a number of workers.

    All resources of the cluster's nodes are counted, including those that other jobs are using now. Without this check,
    Ray would wait forever for resources that the cluster does not have.

    Args:
        ray: the `ray` module, connected to the cluster.
        compute: settings with the number of CPUs and GPUs that each worker needs.
        workers: number of workers.

    Raises:
        PriorkitError: no node is large enough for one worker, or the cluster has room for fewer than `workers` workers.
    """
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
    """Return the number of workers that fit on a node (machine) of the Ray cluster.

    Args:
        node: total resources of the node, keyed by name, such as `CPU`.
        compute: settings with the resources that each worker needs.
    """
    return min(int(node.get(name, 0.0) // needed) for name, needed in _needs(compute) if needed)


def _needs(compute: ComputeSettings) -> tuple[tuple[str, float], ...]:
    """Return the resources that each worker needs, as two pairs: `("CPU", number)` and `("GPU", number)`.

    An unset `gpus_per_worker` counts as 0.
    """
    return ("CPU", compute.cpus_per_worker), ("GPU", compute.gpus_per_worker or 0.0)


class _Pool(Generic[Task, Result]):
    """Pool of Ray actors that each process one task at a time.

    Ray's own restarts are disabled, because a task that Ray retries on a restarted actor waits forever if no node has
    room for that actor. Instead, this pool starts a new actor, and assigns tasks to an actor only once it is running.
    """

    def __init__(self, ray: Any, make_worker: Callable[[], Worker[Task, Result]], compute: ComputeSettings) -> None:
        class Actor:
            work: Worker[Task, Result] | None = None

            def ready(self) -> None:
                """Do nothing. Ray completes this call once the actor is running."""

            def run(self, task: Task, following: Task | None) -> Result:
                # created here, because Ray replaces an exception raised in a constructor with its own exception
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
        """Actors that have not yet confirmed that they are running, keyed by the object reference of their pending
        `ready` call."""
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Task]] = {}
        """Busy actors and their tasks, keyed by the object reference of the actor's pending `run` call."""
        self._failed_starts = 0
        """Number of consecutive failed actor starts."""

    def map(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Start the actors, and yield the results of the tasks in order of completion.

        An exception that the worker function raises is raised again here.

        Args:
            tasks: tasks in the order in which they are started.

        Raises:
            PriorkitError: the cluster has no room for a worker, workers keep dying at startup, or several workers have
                died on the same task.
        """
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
        """Process a finished `ready` call: add the actor to the idle actors, or replace it if it died during startup.

        Raises:
            PriorkitError: `_ATTEMPTS * compute.workers` actors in a row have died during startup.
        """
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
        """Yield the result of a finished `run` call. If its actor has died, yield nothing and start a new actor.

        The tasks of the dead actor are put back into `upcoming`. Idle actors get no tasks until they have responded
        again, because the same failure may have killed them. An exception that the worker function raised is raised
        again here.

        Args:
            reference: object reference of the `run` call.
            upcoming: tasks that have not started yet.

        Raises:
            PriorkitError: `_ATTEMPTS` actors have died while they processed the same task.
        """
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
            # idle actors may have died when the same node failed, so they get no work until they respond
            self._starting.update({waiting.ready.remote(): waiting for waiting in self._idle})
            self._idle = []
        else:
            self._idle.append(actor)
            yield result


class _Upcoming(Generic[Task]):
    """Queue of tasks that have not started yet, or that must be started again because their actor died.

    For each busy actor, one further task is reserved as its next task, so that the actor can start reading it. When
    only reserved tasks are left, idle actors take them.
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)
        self._reserved: dict[Any, Task] = {}
        self._returned: list[Task] = []
        """Tasks that were put back because an actor died while processing them. A task is listed once per death, so
        that the deaths can be counted."""

    def take(self, actor: Any) -> Task | None:
        """Return the task that an actor should process now, or None if no task is left.

        The actor's reserved task comes first, then the next unreserved task, and last a task reserved for another
        actor.
        """
        if actor in self._reserved:
            return self._reserved.pop(actor)
        task = next(self._tasks, None)
        if task is None and self._reserved:
            task = self._reserved.pop(next(iter(self._reserved)))
        return task

    def reserve(self, actor: Any) -> Task | None:
        """Reserve a next task for an actor, and return it. Return None if all remaining tasks are reserved."""
        task = next(self._tasks, None)
        if task is not None:
            self._reserved[actor] = task
        return task

    def put_back(self, task: Task, actor: Any) -> int:
        """Put back the current task and the reserved task of a dead actor, so that other actors process them.

        Returns:
            Number of times that `task`, the current task, has been put back so far.
        """
        returned = [task, self._reserved.pop(actor)] if actor in self._reserved else [task]
        self._tasks = itertools.chain(returned, self._tasks)
        self._returned.append(task)
        return self._returned.count(task)

    def is_empty(self) -> bool:
        """Return True if no task is left in the queue, not even a reserved one."""
        task = next(self._tasks, None)
        if task is not None:
            self._tasks = itertools.chain([task], self._tasks)
        return task is None and not self._reserved
