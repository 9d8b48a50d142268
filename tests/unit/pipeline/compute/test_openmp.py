"""Variables that stop OpenMP threads from spinning."""

from __future__ import annotations

import importlib.machinery
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from priorkit.pipeline.compute import openmp
from priorkit.pipeline.compute.openmp import chosen, runtimes_of_torch, without_spinning

SPINNING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"}
SHOW = "import os, sys, json; print(json.dumps({n: os.environ.get(n) for n in ('GOMP_SPINCOUNT', 'KMP_BLOCKTIME')}))"


def in_process(code: str, **variables: str) -> dict[str, str | None]:
    kept = {name: value for name, value in os.environ.items() if name not in SPINNING}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **variables}, check=True, capture_output=True, text=True
    )
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "module", ["pipeline.config", "prior.network.settings", "pipeline.download.decoding.decoder_process", "cli"]
)
def test_every_module_sets_the_variables_before_torch_is_loaded(module: str) -> None:
    found = in_process(f"import priorkit.{module}; {SHOW}; assert 'torch' not in sys.modules")
    assert {name for name, value in found.items() if value == "0"} == {
        name for runtime in runtimes_of_torch() for name in openmp._VARIABLES[runtime]
    }


def test_variables_of_the_user_are_not_changed() -> None:
    found = in_process(f"import priorkit.prior; {SHOW}", OMP_WAIT_POLICY="active")
    assert found == {"GOMP_SPINCOUNT": None, "KMP_BLOCKTIME": None}
    assert in_process(f"import priorkit.prior; {SHOW}", GOMP_SPINCOUNT="7")["GOMP_SPINCOUNT"] == "7"


def test_nothing_is_set_if_torch_is_loaded_already() -> None:
    found = in_process(f"import sys; sys.modules['torch'] = sys; import priorkit.prior.network.settings; {SHOW}")
    assert found == {"GOMP_SPINCOUNT": None, "KMP_BLOCKTIME": None}
    assert in_process(f"import priorkit; {SHOW}") == found  # the package alone changes nothing


@pytest.mark.parametrize(
    ("folder", "names", "expected"),
    [
        ("torch/lib", ["libgomp.so.1", "libtorch.so"], {"GOMP_SPINCOUNT": "0"}),
        ("torch/lib", ["libgomp-24e2ab19.so.1.0.0"], {"GOMP_SPINCOUNT": "0"}),
        ("torch.libs", ["libgomp-947d5fa1.so.1.0.0"], {"GOMP_SPINCOUNT": "0"}),
        ("torch/lib", ["libomp.dylib"], {"KMP_BLOCKTIME": "0"}),
        ("torch/lib", ["libiomp5.so", "libgomp.so.1"], {"KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "0"}),
        ("prefix/lib", ["libiomp5.so"], {"KMP_BLOCKTIME": "0"}),
        ("torch/lib", ["libompi.so"], {"KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "0"}),
    ],
)
def test_the_variables_fit_the_runtime_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, names: list[str], expected: dict[str, str]
) -> None:
    for name in ("torch/__init__.py", *(f"{folder}/{name}" for name in names)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    spec = importlib.machinery.ModuleSpec("torch", None, origin=str(tmp_path / "torch/__init__.py"))
    monkeypatch.setattr(openmp.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    assert without_spinning({}) == expected


def test_condas_link_to_another_runtime_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch/lib").mkdir(parents=True)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libomp.so").touch()
    (tmp_path / "torch/lib/libgomp.so.1").symlink_to(tmp_path / "lib/libomp.so")
    spec = importlib.machinery.ModuleSpec("torch", None, origin=str(tmp_path / "torch/__init__.py"))
    monkeypatch.setattr(openmp.importlib.util, "find_spec", lambda name: spec)
    assert without_spinning({}) == {"KMP_BLOCKTIME": "0"}


def test_chosen_variables_are_returned() -> None:
    assert chosen({"GOMP_SPINCOUNT": "0", "HOME": "/"}) == {"GOMP_SPINCOUNT": "0"}
