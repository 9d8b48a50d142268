"""What this machine has for each stage, and what is missing: versions, devices, cores, memory, disk and Ray."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compute.cores import available_cores
from ..compute.ray_address import described_authentication
from ..compute.settings import ComputeSettings
from ..errors import PriorkitError
from .requirements import CHAIN, EXTRAS, install_command, installed_version, is_older, requirements

_CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
"""What a container may use."""


@dataclass(frozen=True)
class Need:
    """What one stage or extra needs, and whether it is there."""

    name: str
    versions: dict[str, str]
    """Of the packages that are installed."""
    missing: list[str]
    """Packages that are not."""
    too_old: list[str]
    mend: str | None
    """The command that brings the rest; None if nothing is amiss."""


@dataclass(frozen=True)
class Diagnosis:
    """All that `priorkit doctor` found."""

    versions: dict[str, str]
    """Of priorkit, Python and the system."""
    cores: int
    memory_bytes: int | None
    """What this process may use at most."""
    devices: list[str]
    disk: dict[str, Any]
    """`folder`, and `free_bytes` there; None on an object store."""
    ray: dict[str, Any]
    """`version`, `RAY_ADDRESS` and `authentication`; of a cluster that a setting or that variable names also `address`
    and `resources`, or `problem`, or `note` where only the variable names it."""
    chain: list[Need]
    extras: list[Need]
    notes: list[str]

    @property
    def problems(self) -> list[str]:
        """What keeps a stage from running, one line each."""
        found = [f"{need.name}: {amiss(need)}" for need in self.chain if need.mend]
        return [*found, *([self.ray["problem"]] if self.ray.get("problem") else [])]


def diagnose(folder: str, compute: ComputeSettings) -> Diagnosis:
    """Look at this machine.

    Args:
        folder: where the data shall go.
        compute: whose Ray cluster is tried, if it names one.
    """
    (devices, notes), ray = _devices(), _ray(compute)
    return Diagnosis(
        versions={
            "priorkit": installed_version("priorkit") or "not installed",
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
        cores=available_cores(),
        memory_bytes=_memory(),
        devices=devices,
        disk={"folder": folder, "free_bytes": _free_bytes(folder)},
        ray=ray,
        chain=[_need(name, packages) for name, packages in CHAIN.items()],
        extras=[_need(name, packages, extra=name) for name, packages in EXTRAS.items()],
        notes=[*notes, *([ray["note"]] if ray.get("note") else [])],
    )


def amiss(need: Need) -> str:
    """What is wrong with a need, in words; empty if nothing is."""
    missing = f"{', '.join(need.missing)} not installed" if need.missing else ""
    old = f"{', '.join(need.too_old)} too old" if need.too_old else ""
    return "; ".join(part for part in (missing, old) if part)


def _need(name: str, packages: tuple[str, ...], extra: str | None = None) -> Need:
    found = {package: installed_version(package) for package in packages}
    versions = {package: version for package, version in found.items() if version is not None}
    stated = requirements()
    missing = [package for package in packages if package not in versions]
    old = [package for package, version in versions.items() if is_older(version, stated.get(package, ""))]
    return Need(name, versions, missing, old, install_command([*missing, *old]) if missing or old else None)


def _devices() -> tuple[list[str], list[str]]:
    """The devices that torch can use, and what to know of them."""
    if importlib.util.find_spec("torch") is None:
        return [], []
    import torch

    names = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        names.append(f"cuda:{index} {properties.name}, {properties.total_memory / 1e9:.0f} GB")
    notes = []
    if not names and shutil.which("nvidia-smi"):
        notes.append(
            f"this machine has NVIDIA's driver, but torch {torch.__version__} sees no GPU; see pytorch.org for the "
            "command that installs torch for your version of CUDA"
        )
    return ["cpu", *names], notes


def _memory() -> int | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _CGROUP_MEMORY.read_text().strip() if _CGROUP_MEMORY.exists() else ""
    return min(total, int(limit)) if limit.isdigit() else total


def _free_bytes(folder: str) -> int | None:
    if importlib.util.find_spec("fsspec") is None:
        return None
    from ..compute.stage import free_bytes
    from ..contract.storage import Store

    return free_bytes(Store(folder))


def _ray(compute: ComputeSettings) -> dict[str, Any]:
    named = os.environ.get("RAY_ADDRESS")
    found: dict[str, Any] = {
        "version": installed_version("ray"), "RAY_ADDRESS": named, "authentication": described_authentication(),
    }  # fmt: skip
    if (compute.address is None and not named) or found["version"] is None:
        return found
    from ..compute.parallel import ray_cluster

    found["address"] = compute.address or named
    try:
        with ray_cluster(compute) as ray:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            total = ray.cluster_resources()
    except PriorkitError as error:
        # without --workers nothing needs the cluster that only a variable names
        found["note" if compute.address is None else "problem"] = str(error)
    else:
        found["resources"] = {"nodes": len(nodes), "cpus": total.get("CPU", 0.0), "gpus": total.get("GPU", 0.0)}
    return found
