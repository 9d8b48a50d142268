"""Devices and threads of a computation: the values that `auto` and 0 stand for, and their checks."""

from __future__ import annotations

import socket
from typing import TypeVar

from ..errors import PriorkitError, SettingsError
from .cluster import Gpus, cluster_gpus
from .cores import available_cores
from .settings import ComputeSettings, DeviceSettings

ResolvedType = TypeVar("ResolvedType", bound=DeviceSettings)

ASSUMED_FLOPS = {"cpu": 5e10, "cuda": 2e13}
"""Floating-point operations per second, float32, of 2 cores and of one GPU: for the estimates of `--dry-run`."""


def choose_device(wanted: str, setting: str) -> str:
    """Return `cpu` or `cuda` for a setting of `auto`, `cpu` or `cuda`.

    Args:
        wanted: value of the setting.
        setting: name of the setting, for the error.

    Raises:
        SettingsError: the value is unknown, or it is `cuda` and there is no GPU.
    """
    import torch  # here, since commands without a model do not need it

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
    """Replace `auto` and 0 with the actual device and number of threads, so that manifests record them.

    Args:
        section: name of the settings in a recipe, for the error.
        compute: place of the work; on Ray the device is that of a worker, not of this machine.
        threads: number of threads for the setting 0; None for the cores of this machine.

    Raises:
        SettingsError: the device is `cuda` and there is no GPU.
        PriorkitError: the Ray cluster must be asked for its GPUs, and cannot be joined.
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
    """Set the number of GPUs of each Ray worker of a stage, if the settings leave it open.

    Raises:
        PriorkitError: the Ray cluster cannot be joined.
    """
    if compute.backend == "local" or compute.gpus_per_worker is not None:
        return compute
    usable = settings.device != "cpu" and cluster_gpus(compute).name is not None
    return compute.model_copy(update={"gpus_per_worker": 1.0 if usable else 0.0})


def describe_device(wanted: DeviceSettings, resolved: DeviceSettings, compute: ComputeSettings) -> str:
    """Return a description of the device of a stage, for its summary.

    Args:
        wanted: settings before `resolve`.
        resolved: settings after `resolve`.
        compute: settings as given by the user.
    """
    is_local = compute.backend == "local"
    if resolved.device == "cuda":
        # if the user has set the number of GPUs, do not join a cluster only to ask for their name
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
    """Check in the process that does the work that torch can use the device.

    Raises:
        PriorkitError: the device is a GPU, and torch sees none in this process.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise PriorkitError(
            f"the device is cuda, but torch {torch.__version__} sees no GPU on {socket.gethostname()}; install torch "
            "for its GPUs there, or use device: cpu and compute.gpus_per_worker=0"
        )
