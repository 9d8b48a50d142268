"""Diagnosis of this machine, and of one on which something is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from priorkit.cli import app
from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.doctor import diagnosis as doctor
from priorkit.pipeline.doctor import requirements
from priorkit.pipeline.doctor.requirements import CHAIN, CLIP_RETRIEVAL, ENGINES, EXTRAS


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of packages that the test treats as not installed."""
    names: set[str] = set()
    real = requirements.installed_version
    for module in (requirements, doctor):
        monkeypatch.setattr(module, "installed_version", lambda package: None if package in names else real(package))
    return names


def test_a_complete_installation_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["problems"] == []
    assert [need["name"] for need in found["chain"]] == list(CHAIN)
    assert [need["name"] for need in found["extras"]] == list(EXTRAS)
    assert [need["name"] for need in found["engines"]] == list(ENGINES)
    assert found["chain"][1]["versions"]["torch"] == str(torch.__version__).partition("+")[0]
    assert found["devices"][0] == "cpu"
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 1e8
    assert found["disk"]["folder"] == "data/images"
    assert abs(found["disk"]["free_bytes"] - shutil.disk_usage(tmp_path).free) < 1e9
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_with_the_command_that_installs_them(
    absent: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent |= {"img2dataset", "aiohttp", "matplotlib"}
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert result.stderr == "error: download: aiohttp, img2dataset not installed\n"
    lines = {line.split("│")[1].strip(): line for line in result.stdout.splitlines() if line.count("│") == 3}
    assert 'to fix download: pip install "aiohttp>=3.14.1" "img2dataset>=1.47"' in result.stdout.splitlines()
    assert "ready" in lines["train"]
    assert "matplotlib not installed" in lines["extra report"]


def test_a_missing_engine_is_no_problem_and_its_command_has_no_deps(
    absent: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent |= set(CLIP_RETRIEVAL)
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["doctor"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert (
        "to fix embed.engine=clip-retrieval: pip install --no-deps clip-retrieval all-clip clip-anytorch"
        in result.stdout.splitlines()
    )
    absent.discard("all-clip")
    assert "to fix embed.engine=clip-retrieval: pip install --no-deps clip-retrieval clip-anytorch" in (
        CliRunner().invoke(app, ["doctor"]).stdout.splitlines()
    )


def test_a_missing_extra_is_no_problem(absent: set[str]) -> None:
    absent |= {package for packages in EXTRAS.values() for package in packages}
    assert doctor.diagnose("data", ComputeSettings()).problems == []


def test_a_version_below_its_bound_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda package: "0.1" if package == "ray" else "9999")
    assert doctor.diagnose("data", ComputeSettings()).problems == ["--workers: ray too old"]


def test_a_gpu_that_torch_does_not_see_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.diagnose("data", ComputeSettings()).notes == []
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    (note,) = doctor.diagnose("data", ComputeSettings()).notes
    assert "sees no GPU" in note


@pytest.mark.parametrize(("written", "expected"), [("max", None), ("1000000", 1_000_000)])
def test_the_memory_limit_of_a_container_is_respected(
    written: str, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(f"{written}\n")
    monkeypatch.setattr(doctor, "_CGROUP_MEMORY", tmp_path / "memory.max")
    found = doctor.diagnose("data", ComputeSettings()).memory_bytes
    assert found is not None
    assert found == expected if expected else found > 1e8


def test_an_unreachable_cluster_is_a_problem() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json", "--set", "compute.address=127.0.0.1:1"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["problems"] == [found["ray"]["problem"]]
    assert found["problems"][0].startswith("cannot join Ray at compute.address='127.0.0.1:1'")


def test_other_settings_are_refused() -> None:
    result = CliRunner().invoke(app, ["doctor", "--set", "train.steps=3"])
    assert result.exit_code == 1
    assert "this command reads folders, compute only" in result.stderr


def test_neither_ray_nor_open_clip_is_loaded() -> None:
    """A stand-in for torch, which imports none of them either, saves the time of its import."""
    code = """
import importlib.machinery, sys, types
torch = sys.modules["torch"] = types.ModuleType("torch")
torch.__spec__ = importlib.machinery.ModuleSpec("torch", None)
torch.__version__ = "0"
torch.cuda = types.SimpleNamespace(is_available=lambda: False)
from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.doctor.diagnosis import diagnose
diagnose('data', ComputeSettings())
print([name for name in ('ray', 'open_clip', 'img2dataset', 'pyarrow') if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
