"""Diagnosis of the local machine: versions, hardware, disk space, Ray, and the packages that each stage needs."""

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
from .requirements import CHAIN, ENGINES, EXTRAS, install_command, installed_version, is_older, requirements

_CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
"""cgroup v2 file that contains the container's memory limit: a number of bytes, or the word `max` for no limit."""


@dataclass(frozen=True)
class Need:
    """Packages that a stage, extra (group of optional dependencies) or engine needs, and which of them are there."""

    name: str
    versions: dict[str, str]
    """Version of each installed package, keyed by package name."""
    missing: list[str]
    """Packages that are not installed."""
    too_old: list[str]
    """Installed packages that are older than the version that priorkit requires."""
    fix: str | None
    """Command that installs the missing and outdated packages; None if no package is missing or outdated."""


@dataclass(frozen=True)
class Diagnosis:
    """Report on the local machine: versions, hardware, free disk space, state of Ray, and missing packages.

    `priorkit doctor` prints it. With `--json`, the command prints these fields and `problems`.
    """

    versions: dict[str, str]
    """Versions of priorkit, Python and the operating system."""
    cores: int
    memory_bytes: int | None
    """Total memory of the machine or memory limit of the container, whichever is lower, in bytes; None if unknown."""
    devices: list[str]
    disk: dict[str, Any]
    """Disk space, with the keys `folder` (the data folder) and `free_bytes` (free space there, in bytes). The value of
    `free_bytes` is None for an object store, or if fsspec is not installed."""
    ray: dict[str, Any]
    """Information about Ray, with the keys `version` (None if Ray is not installed), `RAY_ADDRESS` (value of that
    environment variable, or None) and `authentication` (a description).

    If Ray is installed, and `compute.address` or RAY_ADDRESS names a cluster, the key `address` contains the address.
    If the cluster can be joined, `resources` contains the number of nodes, CPUs and GPUs. Otherwise, the error message
    is in `problem` if `compute.address` names the cluster, or in `note` if only RAY_ADDRESS does.
    """
    chain: list[Need]
    extras: list[Need]
    engines: list[Need]
    notes: list[str]

    @property
    def problems(self) -> list[str]:
        """Problems that prevent a stage from running, one line each.

        A line names the missing and outdated packages of a stage, or says why the Ray cluster at `compute.address`
        cannot be joined. Packages needed only by optional extras (such as `priorkit[report]`) or engines are not
        reported when missing or outdated.
        """
        problems = [f"{need.name}: {describe_fault(need)}" for need in self.chain if need.fix]
        return [*problems, *([self.ray["problem"]] if self.ray.get("problem") else [])]


def diagnose(folder: str, compute: ComputeSettings) -> Diagnosis:
    """Collect the versions, hardware, free disk space, state of Ray and missing packages of the local machine.

    If Ray is installed, and a Ray cluster is configured, the function tries to join it. If it cannot join, it does not
    raise an exception; the result contains the error message.

    Args:
        folder: data folder whose free space is reported.
        compute: settings that may name a Ray cluster. The environment variable RAY_ADDRESS may also name one.
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
        extras=[_need(name, packages) for name, packages in EXTRAS.items()],
        engines=[_need(name, packages) for name, packages in ENGINES.items()],
        notes=[*notes, *([ray["note"]] if ray.get("note") else [])],
    )


def describe_fault(need: Need) -> str:
    """Return text that names the missing and outdated packages, such as `torch not installed; numpy too old`.

    Return an empty string if no package is missing or outdated.
    """
    missing = f"{', '.join(need.missing)} not installed" if need.missing else ""
    old = f"{', '.join(need.too_old)} too old" if need.too_old else ""
    return "; ".join(part for part in (missing, old) if part)


def _need(name: str, packages: tuple[str, ...]) -> Need:
    """Check which of the packages that a stage, extra or engine needs are installed, missing or outdated.

    Args:
        name: name of the stage or extra, or setting that selects the engine.
        packages: names of the packages that it needs.
    """
    installed = {package: installed_version(package) for package in packages}
    versions = {package: version for package, version in installed.items() if version is not None}
    required = requirements()
    missing = [package for package in packages if package not in versions]
    old = [package for package, version in versions.items() if is_older(version, required.get(package, ""))]
    return Need(name, versions, missing, old, install_command([*missing, *old]) if missing or old else None)


def _devices() -> tuple[list[str], list[str]]:
    """Return two lists: the devices that torch can use, and notes for the user.

    Both lists are empty if torch is not installed. A note is added if the machine has NVIDIA's driver, but torch finds
    no GPU.
    """
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
    """Return the machine's memory or the container's memory limit, whichever is lower, in bytes; None if unknown."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _CGROUP_MEMORY.read_text().strip() if _CGROUP_MEMORY.exists() else ""
    return min(total, int(limit)) if limit.isdigit() else total


def _free_bytes(folder: str) -> int | None:
    """Return the free space at a folder in bytes; None for an object store, or if fsspec is not installed."""
    if importlib.util.find_spec("fsspec") is None:
        return None
    from ..compute.stage import free_bytes
    from ..contract.storage import Store

    return free_bytes(Store(folder))


def _ray(compute: ComputeSettings) -> dict[str, Any]:
    """Collect the information for `Diagnosis.ray`.

    If Ray is installed, and `compute.address` or RAY_ADDRESS names a cluster, try to join it. If this fails, return the
    error message under the key `problem` or `note`.
    """
    variable = os.environ.get("RAY_ADDRESS")
    ray_state: dict[str, Any] = {
        "version": installed_version("ray"), "RAY_ADDRESS": variable, "authentication": described_authentication(),
    }  # fmt: skip
    if (compute.address is None and not variable) or ray_state["version"] is None:
        return ray_state
    from ..compute.parallel import ray_cluster

    ray_state["address"] = compute.address or variable
    try:
        with ray_cluster(compute) as ray:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            total = ray.cluster_resources()
    except PriorkitError as error:
        # a cluster named only by RAY_ADDRESS is used only with --workers, so the chain can run without it
        ray_state["note" if compute.address is None else "problem"] = str(error)
    else:
        ray_state["resources"] = {"nodes": len(nodes), "cpus": total.get("CPU", 0.0), "gpus": total.get("GPU", 0.0)}
    return ray_state
