"""Training on Ray Train. Only this module and `pipeline/compute/parallel.py` import Ray.

The driver and the workers communicate through a coordinator (see `coordinator.py`). Training continues when workers
or nodes die: Ray Train restarts as many workers as the cluster has room for, and the loop resumes from the newest
checkpoint. An exception in a worker leads to such a restart if Ray raised it, or if workers were lost or replaced.
Any other exception in a worker ends training, and the driver raises that exception.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

from ...pipeline.compute.openmp import chosen
from ...pipeline.compute.parallel import ray_cluster, require_room
from ...pipeline.compute.settings import ComputeSettings
from ...pipeline.compute.stage import ProgressCallback
from ...pipeline.errors import PriorkitError
from .coordinator import Coordinator, RayWatch, Status, TakenOver
from .job import TrainJob
from .loop import run_loop
from .progress import Outcome
from .ranks import PeerLost

_START_FAILURES = 100
"""Maximum number of failed attempts to start the workers before Ray Train ends with an error."""
_POLL_SECONDS = 0.25
"""Seconds between the driver's status requests to the coordinator."""
_PATIENCE_SECONDS = 300.0
"""Seconds without progress after which the driver checks that the cluster has resources for `min_workers` workers.

If the resources are insufficient, training fails.
"""
_END_SECONDS = 60.0
"""Maximum number of seconds to wait for Ray Train to shut down after training.

The actor that runs Ray Train is killed after the shutdown, or when this time has passed.
"""


def train_on_ray(
    job: TrainJob, compute: ComputeSettings, progress: ProgressCallback, should_stop: Callable[[], bool]
) -> Outcome:
    """Train on the workers of a Ray cluster. The caller must hold the lock on the prior folder.

    Raises:
        PriorkitError: workers died repeatedly, the cluster does not have the resources for `min_workers` workers, or a
            worker raised a PriorkitError.
    """
    with ray_cluster(compute) as ray, tempfile.TemporaryDirectory(prefix="priorkit-ray-") as folder:
        require_room(ray, compute, compute.min_workers)
        coordinator, trainer = _start_beside_driver(ray, Coordinator), _start_beside_driver(ray, _Trainer)
        try:
            # pass OpenMP variables to the workers, because Ray workers import torch before priorkit could set them
            fit = trainer.fit.remote(job, compute, coordinator, folder, chosen(os.environ))
            return _watch(ray, job, compute, coordinator, fit, progress, should_stop)
        finally:
            if ray.get(coordinator.status.remote()).is_over:
                ray.wait([fit], timeout=_END_SECONDS)  # let Ray Train release its cluster resources
            ray.kill(trainer)
            ray.kill(coordinator)


def _start_beside_driver(ray: Any, actor: type) -> Any:
    """Start an actor on the driver's node, so that it survives the failure of any other node. Return its handle."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(actor).options(num_cpus=0, scheduling_strategy=here).remote()


class _Trainer:
    """Ray actor that runs Ray Train.

    Ray Train does not run in the driver process, because it would intercept Ctrl-C there, and could block the driver
    forever while waiting for nodes.
    """

    def fit(
        self, job: TrainJob, compute: ComputeSettings, coordinator: Any, folder: str, environment: dict[str, str]
    ) -> None:
        """Run the training loop in Ray Train workers, and return when Ray Train has ended.

        Args:
            coordinator: handle of the coordinator actor.
            folder: temporary folder that Ray Train requires.
            environment: environment variables to set in the workers.
        """
        # keep the workers' working directory, which Ray Train would otherwise change
        os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
        # save a process that announces nodes about to be removed, since the training loop does not react to it
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        import ray.train.torch
        from ray.train.v2.api.config import LoggingConfig

        train: Any = ray.train  # Any, because Ray's type hints still describe the v1 API
        gpus = compute.gpus_per_worker or 0.0
        resources = {"CPU": compute.cpus_per_worker, "GPU": gpus}
        train.torch.TorchTrainer(
            lambda: _work(job, coordinator),
            scaling_config=train.ScalingConfig(
                num_workers=(compute.min_workers, compute.workers),
                use_gpu=gpus > 0,
                resources_per_worker={name: value for name, value in resources.items() if value},
            ),
            torch_config=train.torch.TorchConfig(backend="nccl" if job.settings.device == "cuda" else "gloo"),
            run_config=train.RunConfig(
                name="train",
                storage_path=folder,  # required by Ray, but nothing is written there
                failure_config=train.FailureConfig(max_failures=-1, controller_failure_limit=_START_FAILURES),
                worker_runtime_env={"env_vars": environment},
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        ).fit()


def _work(job: TrainJob, coordinator: Any) -> None:
    """Run the training loop on one rank, in a Ray Train worker. If training is already over, do nothing.

    Rank 0 sends the outcome to the coordinator. A rank that fails sends its error to the coordinator, unless Ray Train
    handles the error by restarting the workers.
    """
    import ray

    if ray.get(coordinator.status.remote()).is_over:
        return  # Ray Train restarts workers after an error; returning at once lets Ray Train end
    rank = ray.train.get_context().get_world_rank()
    try:
        watch = RayWatch(ray, coordinator, ray.get(coordinator.begin.remote()) if rank == 0 else None)
        outcome = run_loop(job, job.open_embeddings(), watch)
        if watch.attempt is not None:
            ray.get(coordinator.finish.remote(watch.attempt, outcome))
    except (PeerLost, TakenOver, ray.exceptions.RayError):
        raise  # Ray Train restarts all workers
    except Exception as error:
        ray.get(coordinator.fail.remote(_pickled(error)))
        raise


def _pickled(error: Exception) -> bytes:
    """Pickle an error and its traceback text, in the format of `Status.error`. Call this while handling the error.

    If the error cannot be pickled, it is replaced by a PriorkitError that quotes its type and message.
    """
    text = traceback.format_exc()
    try:
        data = pickle.dumps((error, text))
        pickle.loads(data)
    except Exception:
        return pickle.dumps((PriorkitError(f"{type(error).__name__}: {error}"), text))
    return data


def _watch(
    ray: Any,
    job: TrainJob,
    compute: ComputeSettings,
    coordinator: Any,
    fit: Any,
    progress: ProgressCallback,
    should_stop: Callable[[], bool],
) -> Outcome:
    """Show progress and forward stop requests to the coordinator until training ends. Return the outcome of training.

    Args:
        coordinator: handle of the coordinator actor.
        fit: Ray reference to the pending result of `_Trainer.fit`.
        progress: called with the number of completed steps, the total number of steps and a text for the progress bar.
        should_stop: returns True if training must stop. It is called several times per second.

    Raises:
        Exception: the exception that a worker raised.
        PriorkitError: Ray Train ended without an outcome, or there was no progress for a long time and the cluster no
            longer has the resources for `min_workers` workers.
    """
    is_stopping, changed_at, before = False, time.monotonic(), Status()
    while True:
        is_running = not ray.wait([fit], timeout=0)[0]  # checked before the status is read, so that no report is missed
        status = ray.get(coordinator.status.remote())
        if status.error is not None:
            error, text = pickle.loads(status.error)
            raise error from (None if isinstance(error, PriorkitError) else RuntimeError(text))
        if status.outcome is not None:
            progress(status.step, job.settings.steps, status.note)
            return status.outcome  # type: ignore[no-any-return]
        if not is_running:
            raise _failure(ray, fit)
        if should_stop() and not is_stopping:
            ray.get(coordinator.stop.remote())
            is_stopping = True
        if status != before:
            before, changed_at = status, time.monotonic()
        seconds_unchanged = time.monotonic() - changed_at
        progress(status.step, job.settings.steps, status.note if status.attempt else "starting Ray's workers")
        if seconds_unchanged > _PATIENCE_SECONDS:
            _require_remaining_room(ray, compute, status.step)
        time.sleep(_POLL_SECONDS)


def _failure(ray: Any, fit: Any) -> PriorkitError:
    """Return the error to raise if Ray Train has ended, but no worker has reported an outcome or an error.

    Args:
        fit: Ray reference to the result of `_Trainer.fit`.
    """
    try:
        cause = ray.get(fit)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", error)
    return explain_end(str(cause))


def explain_end(text: str) -> PriorkitError:
    """Return a PriorkitError with a short message that explains why Ray Train ended.

    If the workers found no GPUs, the message suggests a fix. Otherwise, it quotes the last line of the error text.

    Args:
        text: error text from Ray Train. It may contain tracebacks with escaped newlines.
    """
    if "no GPUs found" in text:
        return PriorkitError(
            "Ray reserves GPUs for the workers, but torch sees none there; install torch for these GPUs on the nodes, "
            "or set train.device=cpu and compute.gpus_per_worker=0"
        )
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip()]
    return PriorkitError(f"Ray Train ended before the training did: {lines[-1] if lines else 'no reason is given'}")


def _require_remaining_room(ray: Any, compute: ComputeSettings, step: int) -> None:
    """Raise a PriorkitError if the remaining nodes do not have the resources for `min_workers` workers.

    Args:
        step: number of completed steps, for the error message.
    """
    try:
        require_room(ray, compute, compute.min_workers)
    except PriorkitError as error:
        raise PriorkitError(
            f"after step {step:,}, too few nodes were left, and none came in {_PATIENCE_SECONDS:.0f} s: {error}; the "
            "same command resumes from the newest checkpoint"
        ) from None
