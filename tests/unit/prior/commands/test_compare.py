"""The command `compare`: its tables, its marks, and its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.evaluate.compare import compare, to_json
from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.evaluate.stage import evaluate

from ..embeddings import DIM, write_embeddings
from .running import good, refused

READ = ReadSettings(validation_fraction=0, test_fraction=0.6)


@pytest.fixture
def evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Evaluations of predictions near the truth, of random ones, and of random ones on other rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    write_embeddings(Path("embeddings"))
    random = np.random.default_rng(0).standard_normal((120, DIM)).astype(np.float32)
    near = np.load("embeddings/img_emb/img_emb_0.npy").astype(np.float32) + 0.1 * random
    for name, made, seed in (("near", near, 0), ("random", random, 0), ("other", random, 1)):
        settings = EvaluateSettings(
            threads=1, device="cpu", draws=2, bootstrap_samples=100, baselines=("text embedding",), max_rows=40,
            seed=seed,
        )  # fmt: skip
        np.save(f"{name}.npy", made)
        evaluate(f"{name}.npy", "embeddings", name, settings, READ)
    return ["near", "random", "other"]


def test_a_table_has_values_differences_and_marks(evaluations: list[str]) -> None:
    shown = good("compare", *evaluations[:2]).stdout
    score = compare(evaluations[:2])[0]
    line = next(line for line in shown.splitlines() if "energy score" in line)
    for cell in (*(f"{one.value:.4f}" for one in score.values), f"{score.differences[0].value:+.4f}"):
        assert cell in line
    assert "] *" in line
    assert "difference [95%]" in shown
    assert "*: the interval excludes 0" in shown
    assert "Other rows" not in shown
    same = good("compare", "near", "near").stdout
    assert "] *" not in same


def test_other_rows_are_reported(evaluations: list[str]) -> None:
    shown = good("compare", "near", "other").stdout
    assert "difference [95%], other rows" in shown
    assert "Other rows: differences are those of independent means" in " ".join(shown.split())


def test_the_json_is_that_of_the_comparison(evaluations: list[str]) -> None:
    shown = good("compare", *evaluations[:2], "--json").stdout
    assert json.loads(shown) == json.loads(json.dumps(to_json(compare(evaluations[:2]))))
    shown = good("compare", *evaluations[:2], "--predictor", "text embedding", "--json").stdout
    assert all(one["differences"][0]["value"] == 0 for one in json.loads(shown))


def test_mistakes_are_named(evaluations: list[str]) -> None:
    assert "compare needs at least two evaluations" in refused("compare", "near")
    assert "has no predictor 'x'" in refused("compare", *evaluations[:2], "--predictor", "x")
    assert "nowhere holds no result of `priorkit evaluate`" in refused("compare", "near", "nowhere")
