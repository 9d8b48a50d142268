"""Settings of workers and devices."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ..settings import Settings


class ComputeSettings(Settings):
    """Place of the work on shards and of training. Never changes shards or evaluations."""

    backend: Literal["local", "ray"] = "local"
    """`local` works in this process, one shard at a time; `ray` on a Ray cluster, which may be started here."""
    workers: int = Field(default=1, ge=1)
    """Number of Ray actors that each work on one shard at a time, or train together; above 1 needs `backend: ray`."""
    min_workers: int = Field(default=1, ge=1)
    """Smallest number of workers for training if nodes are lost; 1, since fewer workers only change the speed."""
    address: str | None = None
    """Ray cluster to join: `host:6379`, `ray://host:10001`, or `auto` for the one on this machine. If unset, it is
    `RAY_ADDRESS`; without that, or with `local`, Ray is started on this machine for the command."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """Number of CPUs that Ray reserves for each worker."""
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """Number of GPUs that Ray reserves for each worker. If unset, it is 1 if torch can use the cluster's GPUs and the
    stage's `device` is not `cpu`, otherwise 0; a download uses none."""

    @model_validator(mode="after")
    def _workers_need_ray(self) -> Self:
        if self.backend == "local" and (self.workers > 1 or self.address is not None):
            raise ValueError("compute.workers above 1 and compute.address need compute.backend=ray")
        if self.min_workers > self.workers:
            raise ValueError(f"compute.min_workers={self.min_workers} is more than compute.workers={self.workers}")
        return self


class DeviceSettings(Settings):
    """Device and threads of a stage with a model. The resolved device is part of the identity; threads are not."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"threads"})

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model; `auto` is a GPU if there is one."""
    threads: int = Field(default=0, ge=0)
    """Number of CPU threads; 0 is one per core. It affects the last bits of sums, so the manifest records it."""
