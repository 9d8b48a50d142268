"""Requirements of the stages, compared with pyproject and with failed imports."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from priorkit.pipeline.doctor import requirements
from priorkit.pipeline.doctor.requirements import CHAIN, explain_missing, install_command, is_older

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize(
    ("version", "requirement", "older"),
    [
        ("2.9.1", "torch>=2.10", True),
        ("2.10.0", "torch>=2.10", False),
        ("2.14.1+cpu", "torch>=2.10", False),
        ("2.10", "torch>=2.10.0", False),
        ("1", "torchvision", False),
        ("2.54.0rc1", "ray[train]>=2.55", True),
        ("2.10.0a0+b558c98.nv26.1", "torch>=2.10", False),
        ("2.9", "torch>=2.10,<3", True),
        ("unknown", "torch>=2.10", False),
        ("1.0", "", False),
        ("3.2", "torch>=2.10,<3", False),
        ("1.0.1", "pillow>=1.0.0.5", False),
        ("1.0.0.4", "pillow>=1.0.0.5", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, requirement: str, older: bool) -> None:
    assert is_older(version, requirement) is older


def test_the_command_has_the_requirements_of_pyproject() -> None:
    assert install_command(["open-clip-torch", "ray"]) == 'pip install "open_clip_torch>=2.32" "ray[train]>=2.55"'


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        ("img2dataset", 'needs img2dataset, which is not installed: pip install "img2dataset>='),
        ("PIL.Image", 'needs pillow, which is not installed: pip install "pillow>='),
        ("yarl", 'needs aiohttp, which is not installed: pip install "aiohttp>='),
        ("open_clip", 'needs open-clip-torch, which is not installed: pip install "open_clip_torch>='),
    ],
)
def test_a_missing_module_is_explained_by_its_package(module: str, wanted: str) -> None:
    message = explain_missing(ModuleNotFoundError(f"No module named {module!r}", name=module), "priorkit download")
    assert message is not None
    assert message.startswith(f"priorkit download {wanted}")


def test_another_missing_module_is_not_explained() -> None:
    assert (
        explain_missing(ModuleNotFoundError("No module named 'priorkit.nothing'", name="priorkit.nothing"), "x") is None
    )
    assert explain_missing(ModuleNotFoundError("no name"), "x") is None


def test_the_light_install_of_the_docs_has_what_sampling_and_doctor_need() -> None:
    page = (ROOT / "docs" / "pages" / "install.md").read_text(encoding="utf-8")
    line = re.search(r'^(pip install "torch.*)$', page, re.MULTILINE)
    assert line is not None
    needed = install_command([*CHAIN["sample, of stored embeddings"], "packaging"])
    assert sorted(line.group(1).split()) == sorted(needed.split())


def test_a_command_names_its_missing_package_and_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "urls.csv").write_text("url,caption\nhttp://127.0.0.1/a.png,a\n")
    lacking = "import sys; sys.modules['aiohttp'] = None; from priorkit.cli import main; sys.argv = {}; main()"
    for arguments in (["priorkit", "download", "urls.csv"], ["priorkit", "--version"]):
        done = subprocess.run(
            [sys.executable, "-c", lacking.format(arguments)], cwd=tmp_path, capture_output=True, text=True
        )
        if "download" in arguments:
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith("error: priorkit download needs aiohttp, which is not installed: pip install")
        else:
            assert (done.returncode, done.stderr) == (0, "")


def test_without_metadata_nothing_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise requirements.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(requirements.importlib.metadata, "requires", absent)
    assert requirements.requirements() == {}
    assert install_command(["ray"]) == 'pip install "ray"'
