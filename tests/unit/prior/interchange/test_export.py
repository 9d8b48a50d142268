"""Export of priors: what is refused before anything is written. The files are tested with the format's writer."""

from __future__ import annotations

from pathlib import Path

import pytest

from priorkit import export
from priorkit.pipeline.errors import SettingsError

from .diffusers.folders import write_pipeline
from .test_load import EMA, write_folder


def test_a_prior_of_dalle2_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write_folder(EMA, str(tmp_path / "prior"))
    with pytest.raises(SettingsError, match=r"prior: diffusers has no network for a causal-.*; give a decoder"):
        export(tmp_path / "prior", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["prior"]


def test_files_are_listed(tmp_path: Path) -> None:
    write_pipeline(tmp_path / "theirs")
    files = export(tmp_path / "theirs", tmp_path / "ours")
    assert all((tmp_path / "ours" / name).is_file() for name in files)
