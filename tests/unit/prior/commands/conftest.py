"""Working directories with priors, for commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from priorkit.prior.interchange.load import convert

from .running import write_prior


@pytest.fixture
def here(tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two priors of the tiny CLIP, and one of no CLIP."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    clip = {"model": f"local-dir:{tiny_clip}", "pretrained": None}
    write_prior(tmp_path / "prior", clip)
    write_prior(tmp_path / "with_states", clip, max_text_len=4)
    write_prior(tmp_path / "no_clip", {})
    return tmp_path


@pytest.fixture
def exported(here: Path) -> Path:
    """A `.pth` and its JSON, without a CLIP, in the working directory."""
    convert("no_clip", "theirs.pth")
    return here
