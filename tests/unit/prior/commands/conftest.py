"""Working directories with priors, for commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from priorkit.prior.interchange.load import convert

from .running import write_prior


@pytest.fixture(scope="session")
def priors(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A folder with two priors of the tiny CLIP, and one of no CLIP; tests get copies."""
    folder = tmp_path_factory.mktemp("priors")
    clip = {"model": f"local-dir:{tiny_clip}", "pretrained": None}
    write_prior(folder / "prior", clip)
    write_prior(folder / "with_states", clip, max_text_len=4)
    write_prior(folder / "no_clip", {})
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, priors: Path) -> Path:
    """A folder with a `.pth` and its JSON, without a CLIP; tests get copies."""
    folder = tmp_path_factory.mktemp("checkpoint")
    convert(str(priors / "no_clip"), str(folder / "theirs.pth"))
    return folder


@pytest.fixture
def here(tmp_path: Path, priors: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two priors of the tiny CLIP, and one of no CLIP."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(priors, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def exported(here: Path, checkpoint: Path) -> Path:
    """A `.pth` and its JSON, without a CLIP, in the working directory."""
    shutil.copytree(checkpoint, here, dirs_exist_ok=True)
    return here
