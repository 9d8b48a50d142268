"""Small evaluations to report on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.evaluate.stage import evaluate

from ..embeddings import DIM, SPLITS, write_embeddings
from .images import write_images

SETTINGS = EvaluateSettings(
    threads=1, device="cpu", draws=2, bootstrap_samples=100, baselines=("text embedding",), max_rows=40, seed=3
)


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation of given predictions beside embeddings and images; for reading only."""
    folder = tmp_path_factory.mktemp("report")
    write_embeddings(folder / "embeddings")
    write_images(folder / "images", 120)
    np.save(folder / "given.npy", np.random.default_rng(0).standard_normal((120, 2, DIM)).astype(np.float32))
    evaluate(str(folder / "given.npy"), str(folder / "embeddings"), str(folder / "evaluation"), SETTINGS, SPLITS)
    return folder / "evaluation"
