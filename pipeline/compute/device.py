"""Functions that replace `device: auto` and `threads: 0` with actual values, and check that a device is available."""

from __future__ import annotations

import socket
from typing import TypeVar

from ..errors import PriorkitError, SettingsError
from .cluster import Gpus, cluster_gpus
from .cores import available_cores
from .settings import ComputeSettings, DeviceSettings

ResolvedType = TypeVar("ResolvedType", bound=DeviceSettings)

ASSUMED_FLOPS = {"cpu": 5e10, "cuda": 2e13}
"""Assumed speed in float32 operations per second, for the time estimate of `--dry-run`. The `cpu` value is for 2 CPU
cores, and the `cuda` value is for one GPU."""


def choose_device(wanted: str, setting: str) -> str:
    """Resolve a device setting to `cpu` or `cuda`.

    The value `auto` becomes `cuda` if torch can use a GPU in this process, otherwise `cpu`.

    Args:
        wanted: value of the setting: `auto`, `cpu` or `cuda`.
        setting: name of the setting, for error messages.

    Raises:
        SettingsError: the value is unknown, or it is `cuda` and torch finds no GPU.
    """
    import torch  # imported here, since commands without a model do not need it

    if wanted not in ("auto", "cpu", "cuda"):
        raise SettingsError(f"{setting}={wanted}: known are auto, cpu and cuda")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"{setting}=cuda, but torch sees no GPU here; use cpu or auto")
    return wanted


def resolve(
    settings: ResolvedType, section: str, compute: ComputeSettings | None = None, *, threads: int | None = None
) -> ResolvedType:
    """Return the settings with `device: auto` and `threads: 0` replaced by actual values, for use in manifests.

    Args:
        settings: device settings of the stage.
        section: section of the recipe that contains the settings, for error messages.
        compute: settings that control where the work runs; None if it runs in this process. If it runs on Ray, the
            device is resolved for the workers, not for this machine.
        threads: value that replaces `threads: 0`; None means the number of available CPU cores on this machine.

    Raises:
        SettingsError: the device is `cuda`, but torch cannot use a GPU, or the workers get no GPU because
            `compute.gpus_per_worker` is 0.
        PriorkitError: this process must join the Ray cluster to look up its GPUs, but cannot join it.
    """
    if compute is None or compute.backend == "local":
        device = choose_device(settings.device, f"{section}.device")
    else:
        device = "cuda" if settings.device != "cpu" and with_gpus(compute, settings).gpus_per_worker else "cpu"
        if settings.device == "cuda" and device == "cpu":
            if compute.gpus_per_worker is None:
                raise SettingsError(f"{section}.device=cuda, but {_useless(cluster_gpus(compute))}; use cpu or auto")
            raise SettingsError(f"{section}.device=cuda, but compute.gpus_per_worker=0 gives workers none; set it to 1")
    return settings.model_copy(update={"device": device, "threads": settings.threads or threads or available_cores()})


def with_gpus(compute: ComputeSettings, settings: DeviceSettings) -> ComputeSettings:
    """Return the compute settings, with `gpus_per_worker` filled in if it is unset and the work runs on Ray.

    The value is 1 if `device` is not `cpu` and torch can use the cluster's GPUs; otherwise 0.

    Args:
        compute: settings that control where the work runs.
        settings: device settings of the stage.

    Raises:
        PriorkitError: the Ray cluster cannot be joined.
    """
    if compute.backend == "local" or compute.gpus_per_worker is not None:
        return compute
    usable = settings.device != "cpu" and cluster_gpus(compute).name is not None
    return compute.model_copy(update={"gpus_per_worker": 1.0 if usable else 0.0})


def describe_device(wanted: DeviceSettings, resolved: DeviceSettings, compute: ComputeSettings) -> str:
    """Return a description of the device that a stage uses, such as `cuda (NVIDIA H200)` or `cpu, 2 threads`.

    If `device: auto` resolved to `cpu` although the Ray cluster has GPUs, the description says that torch cannot use
    them.

    Args:
        wanted: device settings as given by the user, before `resolve`.
        resolved: device settings that `resolve` returned.
        compute: compute settings as given by the user, before `with_gpus`.
    """
    is_local = compute.backend == "local"
    if resolved.device == "cuda":
        # if the user has set the number of GPUs, do not join the cluster just to learn their name
        ask = is_local or compute.gpus_per_worker is None
        name = cluster_gpus(compute).name if ask else None
        return f"cuda ({name})" if name else "cuda"
    described = f"cpu, {resolved.threads} thread" + ("s" if resolved.threads > 1 else "")
    if not is_local and wanted.device == "auto" and compute.gpus_per_worker is None:
        gpus = cluster_gpus(compute)
        if gpus.count:
            described += f"; {_useless(gpus)}"
    return described


def _useless(gpus: Gpus) -> str:
    if not gpus.count:
        return "the Ray cluster has no GPU"
    return f"torch can use none of the Ray cluster's {gpus.count} GPUs"


def require_device(device: str) -> None:
    """Check that torch can use the device. Call this in the process that does the work.

    Raises:
        PriorkitError: the device is `cuda`, but torch finds no GPU in this process.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise PriorkitError(
            f"the device is cuda, but torch {torch.__version__} sees no GPU on {socket.gethostname()}; install torch "
            "for its GPUs there, or use device: cpu and compute.gpus_per_worker=0"
        )
