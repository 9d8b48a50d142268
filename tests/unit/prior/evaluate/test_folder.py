"""The folder of an evaluation: what is read back, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from priorkit.pipeline.errors import InputError, PriorkitError
from priorkit.prior.evaluate.folder import evaluate_manifest, read_metrics, read_rows, require_whole, rows_name
from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.evaluate.stage import evaluate

from ..embeddings import DIM, SPLITS, write_embeddings

SETTINGS = EvaluateSettings(
    threads=1, device="cpu", draws=2, bootstrap_samples=100, baselines=("text embedding",), max_rows=30
)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of random predictions; for reading only."""
    folder = tmp_path_factory.mktemp("evaluated")
    embeddings = write_embeddings(folder / "embeddings")
    np.save(folder / "given.npy", np.random.default_rng(0).standard_normal((120, DIM)).astype(np.float32))
    evaluate(str(folder / "given.npy"), str(embeddings), str(folder / "evaluation"), SETTINGS, SPLITS)
    return folder / "evaluation"


@pytest.fixture
def evaluation(evaluated: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(evaluated, tmp_path / "evaluation"))


def test_names_and_the_manifest() -> None:
    assert rows_name("test") == "rows_test.parquet"
    assert (evaluate_manifest().stage, evaluate_manifest().settings, evaluate_manifest().input) == ("evaluate", {}, {})


def test_an_evaluation_is_read_back(evaluated: Path) -> None:
    require_whole(str(evaluated))
    metrics = read_metrics(str(evaluated))
    assert metrics == json.loads((evaluated / "metrics.json").read_text())
    rows = read_rows(str(evaluated), "test")
    assert rows.num_rows == metrics["splits"]["test"]["rows"] == 30
    assert rows.column_names[:3] == ["row_id", "group_id", "given predictions/energy_score"]


def test_another_format_version_is_refused(evaluation: Path) -> None:
    path = evaluation / "metrics.json"
    path.write_text(path.read_text().replace('"format_version": 4', '"format_version": 3'))
    with pytest.raises(InputError, match=r"has format version 3, this priorkit reads 4; run `priorkit evaluate` again"):
        read_metrics(str(evaluation))
    path.write_text("[]")
    with pytest.raises(InputError, match=r"has format version None, this priorkit reads 4"):
        read_metrics(str(evaluation))


@pytest.mark.parametrize("name", ["metrics.json", "rows_test.parquet"])
def test_a_changed_file_is_named(name: str, evaluation: Path) -> None:
    with (evaluation / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(InputError, match=rf"evaluation/{name} differs from what was written"):
        require_whole(str(evaluation))


def test_an_evaluation_that_has_not_ended_is_refused(evaluation: Path) -> None:
    path = evaluation / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "shards": {}}))
    with pytest.raises(InputError, match="the evaluation has not ended"):
        require_whole(str(evaluation))


def test_a_folder_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    for function in (read_metrics, require_whole):
        with pytest.raises(PriorkitError):
            function(str(tmp_path))
