"""Ray Train around the training loop. With `pipeline/parallel.py` the only importer of Ray.

A *coordinator*, an actor beside the driver, is what the first rank and the driver know each other by: it is told of
progress and of errors, and says whether to stop. Workers and nodes that die are replaced by Ray Train, from the newest
checkpoint, by as many as there is room for; what a worker raises ends the training and is raised by the driver.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..pipeline.config import ComputeSettings
from ..pipeline.errors import PriorkitError
from ..pipeline.parallel import ray_cluster, require_room
from ..pipeline.stage import ProgressCallback
from .job import TrainJob
from .loop import Outcome, run_loop
from .ranks import PeerLost

_ATTEMPTS = 4
"""Starts of the workers, one after the other, in which no step was made until the training fails."""
_START_FAILURES = 100
"""Groups of workers that Ray Train could not start until the training fails."""
_ASK_SECONDS = 1.0
"""Between two reports of the first rank."""
_LOOK_SECONDS = 0.25
"""Between two looks of the driver at the coordinator."""
_PATIENCE_SECONDS = 300.0
"""That a cluster may have too few nodes for `min_workers`, in case others come in their place."""
_END_SECONDS = 60.0
"""That Ray Train is given to end once the training is over."""


class TakenOver(RuntimeError):
    """Other workers have taken over the training while this one was out of reach."""


@dataclass(frozen=True)
class Status:
    """What the driver sees of a training."""

    attempt: int = 0
    """Starts of the workers so far."""
    step: int = 0
    """Steps done."""
    note: str = ""
    outcome: Outcome | None = None
    """How it ended; None while it runs."""
    error: bytes | None = None
    """What a worker raised, and its traceback, pickled; None if none did."""

    @property
    def is_over(self) -> bool:
        """Whether workers that start now have nothing to do."""
        return self.outcome is not None or self.error is not None


class Coordinator:
    """Between the driver and the first rank. Runs as an actor; its methods are called from other processes."""

    def __init__(self) -> None:
        self._status = Status()
        self._stop = False
        self._first_step: int | None = None
        self._reached = 0
        """Steps done when the workers last started."""
        self._vain = 0
        """Starts in a row since which no step was made."""

    def begin(self) -> int:
        """The first rank starts to work; returns the number of this attempt."""
        self._vain = 0 if self._status.step > self._reached else self._vain + 1
        self._reached = self._status.step
        if self._vain > _ATTEMPTS:
            self._fail(
                PriorkitError(
                    f"Ray workers died {_ATTEMPTS} times in a row before they had made a step more; they may need more "
                    "memory, so smaller batches or train.accumulate; see Ray's logs for the cause. The same command "
                    "goes on from the newest checkpoint"
                ),
                "",
            )
        self._status = replace(self._status, attempt=self._status.attempt + 1)
        return self._status.attempt

    def report(self, attempt: int, step: int, note: str) -> bool | None:
        """The first rank has made steps; returns whether to stop, or None if others have taken over."""
        if attempt != self._status.attempt:
            return None
        self._first_step = step if self._first_step is None else self._first_step
        self._status = replace(self._status, step=step, note=note)
        return self._stop

    def finish(self, attempt: int, outcome: Outcome) -> None:
        """The first rank has come to an end."""
        if attempt == self._status.attempt:
            first = outcome.first_step if self._first_step is None else self._first_step
            self._status = replace(self._status, outcome=replace(outcome, first_step=first), step=outcome.step)

    def fail(self, error: bytes) -> None:
        """A rank has raised; the first to do so counts."""
        if self._status.error is None:
            self._status = replace(self._status, error=error)

    def _fail(self, error: Exception, text: str) -> None:
        self.fail(pickle.dumps((error, text)))

    def stop(self) -> None:
        """Ask the ranks to stop with a checkpoint."""
        self._stop = True

    def status(self) -> Status:
        """What there is to see."""
        return self._status


def train_on_ray(
    job: TrainJob, compute: ComputeSettings, progress: ProgressCallback, should_stop: Callable[[], bool]
) -> Outcome:
    """Train on the workers of a Ray cluster. The prior's folder is held by the caller.

    Raises:
        PriorkitError: what a worker has raised, or workers that die again and again, or too few nodes.
    """
    # paths that workers are given are absolute, and Ray Train would move them into a folder of its own
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    with ray_cluster(compute) as ray, tempfile.TemporaryDirectory(prefix="priorkit-ray-") as folder:
        require_room(ray, compute, compute.min_workers)
        coordinator = _start_coordinator(ray)
        try:
            with _in_thread(lambda: _fit(job, compute, coordinator, folder)) as running:
                return _watch(ray, job, compute, coordinator, running, progress, should_stop)
        finally:
            ray.kill(coordinator)


def _start_coordinator(ray: Any) -> Any:
    """Beside the driver, since where that dies nobody waits for the training."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Coordinator).options(num_cpus=0, scheduling_strategy=here).remote()


def _fit(job: TrainJob, compute: ComputeSettings, coordinator: Any, folder: str) -> None:
    """Let Ray Train run the loop in its workers."""
    import ray.train.torch
    from ray.train.v2.api.config import LoggingConfig

    train: Any = ray.train  # whose types are those of its first version

    def work() -> None:
        _work(job, coordinator)

    resources = {"CPU": compute.cpus_per_worker, "GPU": compute.gpus_per_worker}
    train.torch.TorchTrainer(
        work,
        scaling_config=train.ScalingConfig(
            num_workers=(compute.min_workers, compute.workers),
            use_gpu=compute.gpus_per_worker > 0,
            resources_per_worker={name: value for name, value in resources.items() if value},
        ),
        run_config=train.RunConfig(
            name="train",
            storage_path=folder,  # nothing of the training is written there
            failure_config=train.FailureConfig(max_failures=-1, controller_failure_limit=_START_FAILURES),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    ).fit()


def _work(job: TrainJob, coordinator: Any) -> None:
    """One rank, in a worker of Ray Train."""
    import ray

    if ray.get(coordinator.status.remote()).is_over:
        return  # Ray Train starts workers anew after an error: they end at once, and so does the training
    rank = ray.train.get_context().get_world_rank()
    try:
        watch = RayWatch(ray, coordinator, ray.get(coordinator.begin.remote()) if rank == 0 else None)
        outcome = run_loop(job, job.open_embeddings(), watch)
        if watch.attempt is not None:
            ray.get(coordinator.finish.remote(watch.attempt, outcome))
    except (PeerLost, TakenOver, ray.exceptions.RayError):
        raise  # Ray Train starts all workers anew
    except Exception as error:
        ray.get(coordinator.fail.remote(_pickled(error)))
        raise


class RayWatch:
    """Looks on through the coordinator, at most once a second. See `loop.Watch`.

    Args:
        attempt: of the first rank; None of others, which neither tell nor ask.
    """

    def __init__(self, ray: Any, coordinator: Any, attempt: int | None) -> None:
        self._ray, self._coordinator, self.attempt = ray, coordinator, attempt
        self._told = float("-inf")
        self._last: tuple[int, str] = (0, "")
        self._stop = False

    def report(self, step: int, note: str) -> None:
        """Tell the driver, through the coordinator."""
        self._last = (step, note)
        if self.attempt is not None and time.monotonic() - self._told > _ASK_SECONDS:
            self._tell()

    def should_stop(self) -> bool:
        """Whether the driver was asked to stop when it was last told."""
        return self._stop

    def before_writing(self) -> None:
        """See `loop.Watch`."""
        self._tell()

    def _tell(self) -> None:
        answer = self._ray.get(self._coordinator.report.remote(self.attempt, *self._last))
        if answer is None:
            raise TakenOver("another worker has taken over")
        self._stop, self._told = answer, time.monotonic()


def _pickled(error: Exception) -> bytes:
    """An error with its traceback, or its text where it cannot be pickled."""
    text = traceback.format_exc()
    try:
        data = pickle.dumps((error, text))
        pickle.loads(data)
    except Exception:
        return pickle.dumps((PriorkitError(f"{type(error).__name__}: {error}"), text))
    return data


class _Thread(threading.Thread):
    """Does something beside the block, and keeps what it raised."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(name="priorkit-ray-train", daemon=True)
        self._work = work
        self.error: Exception | None = None

    def run(self) -> None:
        """See `threading.Thread`."""
        try:
            self._work()
        except Exception as error:
            self.error = error


@contextlib.contextmanager
def _in_thread(work: Callable[[], None]) -> Iterator[_Thread]:
    """Ray Train in a thread: in the main one it would take over Ctrl-C, and nobody could look on."""
    thread = _Thread(work)
    thread.start()
    yield thread
    thread.join(_END_SECONDS)


def _watch(
    ray: Any,
    job: TrainJob,
    compute: ComputeSettings,
    coordinator: Any,
    running: _Thread,
    progress: ProgressCallback,
    should_stop: Callable[[], bool],
) -> Outcome:
    """Show progress and pass on stop requests until the training is over."""
    asked, changed, before = False, time.monotonic(), Status()
    while True:
        is_running = running.is_alive()  # looked at first: what it has told before its end is then seen
        status = ray.get(coordinator.status.remote())
        if status.error is not None:
            error, text = pickle.loads(status.error)
            raise error from (None if isinstance(error, PriorkitError) else RuntimeError(text))
        if status.outcome is not None:
            progress(status.step, job.settings.steps, status.note)
            return status.outcome  # type: ignore[no-any-return]
        if not is_running:
            raise PriorkitError(f"Ray Train ended before the training did: {running.error}") from running.error
        if should_stop() and not asked:
            ray.get(coordinator.stop.remote())
            asked = True
        if status != before:
            before, changed = status, time.monotonic()
        waiting = time.monotonic() - changed
        progress(status.step, job.settings.steps, status.note if status.attempt else "starting Ray's workers")
        if waiting > _PATIENCE_SECONDS:
            _require_room_still(ray, compute, status.step)
        time.sleep(_LOOK_SECONDS)


def _require_room_still(ray: Any, compute: ComputeSettings, step: int) -> None:
    try:
        require_room(ray, compute, compute.min_workers)
    except PriorkitError as error:
        raise PriorkitError(
            f"after step {step:,}, too few nodes were left, and none came in {_PATIENCE_SECONDS:.0f} s: {error}; the "
            "same command goes on from the newest checkpoint"
        ) from None
