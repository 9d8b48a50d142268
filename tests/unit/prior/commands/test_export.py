"""The command `export`: its options, its output, and its messages about mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..interchange.diffusers.folders import write_pipeline
from .running import good, refused, write_prior


def test_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_pipeline(tmp_path / "theirs")
    shown = good("export", "theirs", "ours").stdout
    assert shown.startswith("wrote ours: README.md, model_index.json, prior/config.json")
    assert "exists; choose another folder, or --overwrite" in refused("export", "theirs", "ours")
    found = json.loads(good("export", "theirs", "ours", "--overwrite", "--dtype", "float16", "--json").stdout)
    assert found["dtype"] == "float16"
    assert len(found["files"]) == 5


def test_mistakes_of_export_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_prior(tmp_path / "prior", {})
    assert "has no network for a causal-transformer" in refused("export", "prior", "ours")
    assert "dtype='half': known are" in refused("export", "prior", "ours", "--dtype", "half")
    assert "nothing: no prior is there" in refused("export", "nothing", "ours")
    assert not (tmp_path / "ours").exists()
