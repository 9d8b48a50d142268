"""Settings of workers and devices."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ..settings import Settings


class ComputeSettings(Settings):
    """Where shards are worked on, and where training runs. Never changes a byte of shards or evaluations."""

    backend: Literal["local", "ray"] = "local"
    """`local`: in this process, one shard at a time. `ray`: on a Ray cluster, or one that Ray starts here."""
    workers: int = Field(default=1, ge=1)
    """Ray actors that each work on one shard at a time, or train together; needs `backend: ray` when above 1."""
    min_workers: int = Field(default=1, ge=1)
    """Workers that training needs at least, where nodes are lost; 1, since fewer workers change only its speed."""
    address: str | None = None
    """Ray cluster to join: `host:6379`, `ray://host:10001`, or `auto` for the one that runs on this machine. Unset, it
    is `RAY_ADDRESS`, or without that (or with `local`) Ray is started on this machine for the command."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs that Ray reserves for each worker."""
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """GPUs that Ray reserves for each worker. Unset, it is 1 where torch can use the cluster's GPUs and the stage's
    `device` is not `cpu`, else 0; a download uses none."""

    @model_validator(mode="after")
    def _workers_need_ray(self) -> Self:
        if self.backend == "local" and (self.workers > 1 or self.address is not None):
            raise ValueError("compute.workers above 1 and compute.address need compute.backend=ray")
        if self.min_workers > self.workers:
            raise ValueError(f"compute.min_workers={self.min_workers} is more than compute.workers={self.workers}")
        return self


class DeviceSettings(Settings):
    """What a stage that runs a model computes on. The resolved device is part of the identity; threads are recorded."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"threads"})

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 is one for each core. Sums depend on it in their last bits, so the manifest records it."""
