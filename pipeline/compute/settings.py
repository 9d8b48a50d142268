"""Worker and device settings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ..settings import Settings


class ComputeSettings(Settings):
    """Settings that control where shards are processed and where priors are trained. They do not change the
    content of shards or the results of evaluations."""

    backend: Literal["local", "ray"] = "local"
    """Backend that runs the work. `local` processes one shard at a time in this process. `ray` uses the Ray cluster at
    `compute.address`, or a cluster that priorkit starts on this machine for the duration of the command."""
    workers: int = Field(default=1, ge=1)
    """Number of Ray actors. Each actor processes one shard at a time. During training, all actors train the same prior
    together. Values above 1 need `backend: ray`."""
    min_workers: int = Field(default=1, ge=1)
    """Minimum number of workers for training. If nodes are lost, training continues with the remaining workers. If the
    cluster has room for fewer workers than this minimum, training fails. The default is 1, because losing workers only
    makes training slower."""
    address: str | None = None
    """Ray cluster to join: `host:6379`, `ray://host:10001`, or `auto` for the cluster running on this machine. `local`
    starts a Ray cluster on this machine for the command. If this setting is unset or `auto`, and the
    environment variable `RAY_ADDRESS` is set, the value of the variable is used. If neither is set, `local` is used."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """Number of CPUs that Ray reserves per worker."""
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """Number of GPUs that Ray reserves per worker. By default, it is 1 if torch can use the cluster's GPUs and the
    stage's `device` is not `cpu`; otherwise 0. For downloads, the default is always 0."""

    @model_validator(mode="after")
    def _workers_need_ray(self) -> Self:
        if self.backend == "local" and (self.workers > 1 or self.address is not None):
            raise ValueError("compute.workers above 1 and compute.address need compute.backend=ray")
        if self.min_workers > self.workers:
            raise ValueError(f"compute.min_workers={self.min_workers} is more than compute.workers={self.workers}")
        return self


class DeviceSettings(Settings):
    """Device and CPU threads for a stage that runs a model. A stage can be resumed only if the fingerprint (hash) of
    its settings is unchanged. The fingerprint covers the resolved device (`cpu` or `cuda`), but not the number of
    threads."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"threads"})

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that runs the model. `auto` uses a GPU if one is available."""
    threads: int = Field(default=0, ge=0)
    """Number of CPU threads; 0 means one thread per available core. The number is recorded in the output folder's
    `manifest.json`, because it affects the last bits of floating-point sums."""
