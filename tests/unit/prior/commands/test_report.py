"""The command `report`: its page, its sentences, and its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.evaluate.stage import evaluate

from ..embeddings import DIM, SPLITS, write_embeddings
from .running import good, refused


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an evaluation of given predictions in `data`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    write_embeddings(Path("data/embeddings"))
    np.save("given.npy", np.random.default_rng(0).standard_normal((120, DIM)).astype(np.float32))
    settings = EvaluateSettings(
        threads=1, device="cpu", draws=2, bootstrap_samples=100, baselines=("text embedding",), max_rows=20
    )
    evaluate("given.npy", "data/embeddings", "data/evaluation", settings, SPLITS)
    return tmp_path


def test_a_page_is_written_and_its_missing_parts_are_printed(folder: Path) -> None:
    shown = good("report", "--output", "a.html").stdout.splitlines()
    size = (folder / "a.html").stat().st_size
    assert shown[-1] == f"report: {folder / 'a.html'} ({size / 1e6:.1f} MB)"
    assert all(line.startswith("missing: ") for line in shown[:-1])
    described = json.loads(good("report", "--json").stdout)
    assert (described["report"], described["bytes"]) == (str(folder / "data/evaluation.html"), size)
    assert [f"missing: {sentence}" for sentence in described["missing"]] == shown[:-1]


def test_another_location_of_the_subject_and_of_the_embeddings_is_taken(folder: Path) -> None:
    Path("given.npy").rename("moved.npy")
    Path("data/embeddings").rename("elsewhere")
    good("report", "--prior", "moved.npy", "--embeddings", "elsewhere")
    np.save("other.npy", np.ones((120, DIM), np.float32))
    assert "other.npy is not what data/evaluation is of" in refused("report", "--prior", "other.npy")


def test_a_folder_without_an_evaluation_is_named(folder: Path) -> None:
    assert "nowhere" in refused("report", "nowhere")
