"""Functions that look up the GPUs of a Ray cluster and describe the cluster in the summary that a stage prints."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from ..errors import PriorkitError
from .parallel import places, ray_cluster
from .ray_address import cluster_address, explain_failure
from .ray_start import JOINED
from .settings import ComputeSettings

_GPU_SECONDS = 120.0
"""Maximum number of seconds to wait for a free GPU of the Ray cluster, in case other jobs are using all of them."""


def describe_cluster(compute: ComputeSettings) -> str:
    """Return text for the summary of a stage, such as `2 workers at head:6379 (RAY_ADDRESS)`.

    The text contains the configured number of workers and the location of the Ray cluster. If the stage joined a
    cluster that does not have room for all of these workers, the text also says how many fit. Return an empty
    string if the stage does not use Ray.
    """
    if compute.backend == "local":
        return ""
    workers = f"{compute.workers} worker" + ("s" if compute.workers > 1 else "")
    if _is_joined():
        return f"{workers} on the cluster that this process has joined"
    joined = JOINED.get(compute.address)
    if joined is None:  # no shards were pending, so the stage did not join the cluster
        return f"{workers} {cluster_address(compute.address).described()}"
    room = sum(places(node, compute) for node in joined.nodes)
    fewer = f" (room for {room})" if room < compute.workers else ""
    return f"{workers}{fewer} {joined.place.described()}"


@dataclass(frozen=True)
class Gpus:
    """Number of GPUs in a Ray cluster or on this machine, and the name of one of them."""

    count: int
    name: str | None
    """Name of one GPU, as reported by torch, or `in use by other jobs` if no GPU of the cluster became free. None if
    there is no GPU or torch cannot use it."""


_GPUS: dict[tuple[str | None, str | None], Gpus] = {}
"""Cached GPUs of each cluster, keyed by the values of `compute.address` and the environment variable `RAY_ADDRESS`. All
stages that one command runs use the same cached result."""


def cluster_gpus(compute: ComputeSettings) -> Gpus:
    """Return the number of GPUs on the machine or Ray cluster that will do the work, and the name of one GPU.

    If the work runs in this process, or on a cluster that priorkit will start on this machine, only the GPUs of this
    machine are counted. Otherwise, the work runs on an existing Ray cluster, and this process joins that cluster to
    look up its GPUs, unless the result is cached.

    Raises:
        PriorkitError: the cluster cannot be joined, or the Ray worker that looks up the GPU's name fails.
    """
    if compute.backend == "local" or (not _is_joined() and cluster_address(compute.address).is_own):
        return gpus_here()
    name = (compute.address, os.environ.get("RAY_ADDRESS"))
    if name in _GPUS and not _is_joined():
        return _GPUS[name]
    with ray_cluster(compute) as ray:
        count = int(ray.cluster_resources().get("GPU", 0))
        _GPUS[name] = Gpus(count, _gpu_of_worker(ray) if count else None)
    return _GPUS[name]


def _gpu_of_worker(ray: Any) -> str | None:
    """Start a Ray worker on a GPU, and return the GPU's name.

    Returns:
        Name of the GPU, as reported by torch on the worker; None if torch on the worker cannot use the GPU. If no GPU
        becomes free within `_GPU_SECONDS`, return the text `in use by other jobs`.

    Raises:
        PriorkitError: the worker fails.
    """
    request = ray.remote(gpus_here).options(num_cpus=0, num_gpus=1).remote()
    try:
        gpus: Gpus = ray.get(request, timeout=_GPU_SECONDS)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(request, force=True)
        return "in use by other jobs"
    except ray.exceptions.RayError as error:
        raise PriorkitError(
            f"a worker with a GPU of the Ray cluster fails: {explain_failure(str(error))}; see Ray's logs, or set "
            "compute.gpus_per_worker"
        ) from error
    return gpus.name


def gpus_here() -> Gpus:
    """Return the GPUs that torch can use in this process."""
    import torch

    if not torch.cuda.is_available():
        return Gpus(0, None)
    return Gpus(torch.cuda.device_count(), torch.cuda.get_device_name(0))


def _is_joined() -> bool:
    """Return True if this process is connected to a Ray cluster, for example because the user's code called `ray.init`
    before it called priorkit."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(getattr(ray, "is_initialized", lambda: False)())
