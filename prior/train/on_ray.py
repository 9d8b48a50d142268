"""Ray Train around the training loop. With `pipeline/compute/parallel.py` the only importer of Ray.

The driver and the first rank know each other by a coordinator (see `coordinator.py`). Workers and nodes that die are
replaced by Ray Train, from the newest checkpoint, by as many as there is room for; what a worker raises ends the
training and is raised by the driver.
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
from .loop import Outcome, run_loop
from .ranks import PeerLost

_START_FAILURES = 100
"""Groups of workers that Ray Train could not start until the training fails."""
_LOOK_SECONDS = 0.25
"""Between two looks of the driver at the coordinator."""
_PATIENCE_SECONDS = 300.0
"""That a cluster may have too few nodes for `min_workers`, in case others come in their place."""
_END_SECONDS = 60.0
"""That Ray Train is given to end once the training is over."""


def train_on_ray(
    job: TrainJob, compute: ComputeSettings, progress: ProgressCallback, should_stop: Callable[[], bool]
) -> Outcome:
    """Train on the workers of a Ray cluster. The prior's folder is held by the caller.

    Raises:
        PriorkitError: what a worker has raised, or workers that die again and again, or too few nodes.
    """
    with ray_cluster(compute) as ray, tempfile.TemporaryDirectory(prefix="priorkit-ray-") as folder:
        require_room(ray, compute, compute.min_workers)
        coordinator, trainer = _start_beside_driver(ray, Coordinator), _start_beside_driver(ray, _Trainer)
        try:
            # a worker of a cluster that runs already loads torch before a module of ours can say how it waits
            fit = trainer.fit.remote(job, compute, coordinator, folder, chosen(os.environ))
            return _watch(ray, job, compute, coordinator, fit, progress, should_stop)
        finally:
            if ray.get(coordinator.status.remote()).is_over:
                ray.wait([fit], timeout=_END_SECONDS)  # it gives back what the cluster holds for it
            ray.kill(trainer)
            ray.kill(coordinator)


def _start_beside_driver(ray: Any, actor: type) -> Any:
    """An actor on the driver's node, since where that dies nobody waits for the training."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(actor).options(num_cpus=0, scheduling_strategy=here).remote()


class _Trainer:
    """Ray Train, in a process that can be ended: in the driver's it takes over Ctrl-C, and waits for nodes for ever."""

    def fit(
        self, job: TrainJob, compute: ComputeSettings, coordinator: Any, folder: str, environment: dict[str, str]
    ) -> None:
        """Let Ray Train run the loop in its workers, with these variables in their environment."""
        # paths that workers are given are absolute, and Ray Train would move them into a folder of its own
        os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
        import ray.train.torch
        from ray.train.v2.api.config import LoggingConfig

        train: Any = ray.train  # whose types are those of its first version
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
                storage_path=folder,  # nothing of the training is written there
                failure_config=train.FailureConfig(max_failures=-1, controller_failure_limit=_START_FAILURES),
                worker_runtime_env={"env_vars": environment},
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


def _pickled(error: Exception) -> bytes:
    """An error with its traceback, or its text where it cannot be pickled."""
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
    """Show progress and pass on stop requests until the training is over."""
    asked, changed, before = False, time.monotonic(), Status()
    while True:
        is_running = not ray.wait([fit], timeout=0)[0]  # looked at first: what it has told before its end is then seen
        status = ray.get(coordinator.status.remote())
        if status.error is not None:
            error, text = pickle.loads(status.error)
            raise error from (None if isinstance(error, PriorkitError) else RuntimeError(text))
        if status.outcome is not None:
            progress(status.step, job.settings.steps, status.note)
            return status.outcome  # type: ignore[no-any-return]
        if not is_running:
            raise _failure(ray, fit)
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


def _failure(ray: Any, fit: Any) -> PriorkitError:
    """Why Ray Train has ended, though the training has not."""
    try:
        cause = ray.get(fit)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", error)
    return explain_end(str(cause))


def explain_end(text: str) -> PriorkitError:
    """The error for the text of one of Ray Train's, which may hold tracebacks, also escaped ones."""
    if "no GPUs found" in text:
        return PriorkitError(
            "Ray reserves GPUs for the workers, but torch sees none there; install torch for these GPUs on the nodes, "
            "or set train.device=cpu and compute.gpus_per_worker=0"
        )
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip()]
    return PriorkitError(f"Ray Train ended before the training did: {lines[-1] if lines else 'no reason is given'}")


def _require_room_still(ray: Any, compute: ComputeSettings, step: int) -> None:
    try:
        require_room(ray, compute, compute.min_workers)
    except PriorkitError as error:
        raise PriorkitError(
            f"after step {step:,}, too few nodes were left, and none came in {_PATIENCE_SECONDS:.0f} s: {error}; the "
            "same command goes on from the newest checkpoint"
        ) from None
