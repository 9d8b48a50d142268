"""Environment variables that stop OpenMP threads from spinning (busy-waiting), set before torch loads OpenMP.

By default, a thread that has finished its part of a computation spins until all other threads have finished. If another
process keeps one core busy, the spinning threads compete with the threads that still compute, and a training step takes
ten times as long as on an idle machine. Without spinning, the step takes less than twice as long. On an idle machine,
the variables make no difference to the time. They never change results.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_VARIABLES = {"gomp": {"GOMP_SPINCOUNT": "0"}, "omp": {"KMP_BLOCKTIME": "0"}}
"""Environment variables to set, with their values, keyed by OpenMP runtime: `gomp` is GNU's libgomp, and `omp` is
Intel's libiomp5 or LLVM's libomp."""
_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Environment variables that control how OpenMP threads wait. If the user has set any of them, priorkit sets none."""


def stop_spinning() -> None:
    """Set the environment variables that stop OpenMP threads of this process from spinning.

    Do nothing if the user has set any of `_CHOICES`, or if torch is already loaded.
    """
    if "torch" not in sys.modules:
        os.environ.update(without_spinning(os.environ))


def without_spinning(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables, with their values, that stop torch's OpenMP threads from spinning.

    If torch's OpenMP runtime is unknown, return the variables for all runtimes. If `environment` contains any of
    `_CHOICES`, return an empty dictionary.
    """
    if any(name in environment for name in _CHOICES):
        return {}
    runtimes = runtimes_of_torch()
    return {name: value for runtime in runtimes or _VARIABLES for name, value in _VARIABLES[runtime].items()}


def chosen(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables in an environment that control how OpenMP threads wait, with their values.

    These are the variables named in `_CHOICES`. Return an empty dictionary if none of them is set.
    """
    return {name: environment[name] for name in _CHOICES if name in environment}


def runtimes_of_torch() -> set[str]:
    """Return the OpenMP runtimes that torch loads, as keys of `_VARIABLES`. The set is empty if none is found.

    Runtimes are recognised by the names of installed library files. Wheels contain a runtime in `torch/lib` or
    `torch.libs`. A Conda package of torch uses the runtime in the Conda environment. In such an environment, libgomp
    may be a link to LLVM's runtime, so links are resolved.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return set()
    package = Path(spec.origin).parent
    for folder in (package / "lib", package.parent / "torch.libs", Path(sys.prefix) / "lib"):
        runtimes = {runtime for path in _libraries(folder) if (runtime := _runtime(path.resolve().name)) is not None}
        if runtimes:
            return runtimes
    return set()


def _libraries(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if "omp" in path.name]
    except OSError:
        return []


def _runtime(name: str) -> str | None:
    if name.startswith("libgomp"):
        return "gomp"
    return "omp" if name.startswith(("libiomp5", "libomp.", "libomp-", "libomp5")) else None
