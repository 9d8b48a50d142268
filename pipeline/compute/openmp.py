"""Threads of OpenMP that wait without spinning. Set through the environment, before torch loads its runtime.

A thread that is done with its part of a sum spins until the others are. Beside one busy process that takes a core
from the others, and a training step takes ten times as long; without spinning it takes less than twice as long, and
alone the same time. Results do not depend on it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_WAYS = {"gomp": {"GOMP_SPINCOUNT": "0"}, "omp": {"KMP_BLOCKTIME": "0"}}
"""By runtime: GNU's libgomp, and Intel's libiomp5 or LLVM's libomp, which read the same variables."""
_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables by which a user chooses how threads wait."""


def stop_spinning() -> None:
    """Set the environment of this process so, unless the user has chosen, or torch is loaded already."""
    if "torch" not in sys.modules:
        os.environ.update(without_spinning(os.environ))


def without_spinning(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to an environment so that torch's threads do not spin; none where the user has chosen."""
    if any(name in environment for name in _CHOICES):
        return {}
    runtimes = runtimes_of_torch()
    return {name: value for runtime in runtimes or _WAYS for name, value in _WAYS[runtime].items()}


def chosen(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment that say how threads wait."""
    return {name: environment[name] for name in _CHOICES if name in environment}


def runtimes_of_torch() -> set[str]:
    """Runtimes that torch loads, as keys of `_WAYS`, seen by the files beside it; empty where there is none of them.

    Wheels bring theirs in `torch/lib` or `torch.libs`. Conda's torch links that of its environment, where libgomp may
    be a link to LLVM's.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return set()
    package = Path(spec.origin).parent
    for folder in (package / "lib", package.parent / "torch.libs", Path(sys.prefix) / "lib"):
        found = {runtime for path in _libraries(folder) if (runtime := _runtime(path.resolve().name)) is not None}
        if found:
            return found
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
