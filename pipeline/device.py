"""What this machine has to compute with: the device and the cores that `auto` and 0 stand for."""

from __future__ import annotations

import os
from typing import TypeVar

from .config import ComputeSettings, DeviceSettings
from .errors import SettingsError

ResolvedType = TypeVar("ResolvedType", bound=DeviceSettings)

ASSUMED_FLOPS = {"cpu": 5e10, "cuda": 2e13}
"""For the estimates of `--dry-run`: what 2 cores, and one GPU, sustain in float32, a second."""


def choose_device(wanted: str, setting: str) -> str:
    """`cpu` or `cuda` for a setting of `auto`, `cpu` or `cuda`.

    Args:
        wanted: the setting's value.
        setting: the setting's name, for the error.

    Raises:
        SettingsError: it is none of these, or a GPU is asked for and there is none.
    """
    import torch  # here, so that cores can be counted without it

    if wanted not in ("auto", "cpu", "cuda"):
        raise SettingsError(f"{setting}={wanted}: known are auto, cpu and cuda")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"{setting}=cuda, but torch sees no GPU here; use cpu or auto")
    return wanted


def resolve(settings: ResolvedType, section: str, compute: ComputeSettings | None = None) -> ResolvedType:
    """Replace `auto` and 0 by what there is, so that manifests name what was used.

    Args:
        section: the settings' name in a recipe, for the error.
        compute: where the work is done; on Ray what counts is what a worker is given, not what this machine has.
    """
    if compute is not None and compute.backend == "ray":
        if settings.device == "cuda" and not compute.gpus_per_worker:
            raise SettingsError(f"{section}.device=cuda, but compute.gpus_per_worker=0 gives workers none; set it to 1")
        device = "cpu" if settings.device == "cpu" or not compute.gpus_per_worker else "cuda"
        threads = settings.threads or max(1, int(compute.cpus_per_worker))
        return settings.model_copy(update={"device": device, "threads": threads})
    device = choose_device(settings.device, f"{section}.device")
    return settings.model_copy(update={"device": device, "threads": settings.threads or available_cores()})


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
