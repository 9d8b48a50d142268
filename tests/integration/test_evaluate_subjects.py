"""Evaluation of what was not trained here: copied priors, and checkpoints of DALLE2-pytorch as they are."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from typer.testing import CliRunner

from priorkit.cli import app
from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.evaluate.folder import read_metrics
from priorkit.prior.evaluate.scoring import ScorerMaker, ScoreTask
from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.evaluate.stage import evaluate, plan_evaluate
from priorkit.prior.evaluate.subject import PriorSource
from priorkit.prior.interchange.load import convert
from priorkit.prior.sampling.settings import SampleSettings
from priorkit.prior.train.stage import train

from . import synthetic
from .synthetic import SMALL_TRAIN, changed, write_embeddings
from .test_evaluate import QUICK, READ, assert_near, found_in


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 120 of 480 rows are for testing; for reading only."""
    return write_embeddings(tmp_path_factory.mktemp("synthetic") / "embeddings")


@pytest.fixture(scope="module")
def checkpoint(embeddings: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A prior that DALLE2-pytorch could have, and the checkpoint of it; for reading only."""
    folder = tmp_path_factory.mktemp("checkpoint")
    settings = changed(SMALL_TRAIN, steps=5, network__width=16, network__depth=1)
    train(str(embeddings), str(folder / "prior"), settings, READ)
    convert(str(folder / "prior"), str(folder / "prior.pth"))
    return folder / "prior", folder / "prior.pth"


def test_a_copied_prior_knows_its_training_rows(
    checkpoint: tuple[Path, Path], embeddings: Path, tmp_path: Path
) -> None:
    copied, silent = tmp_path / "copied", tmp_path / "silent"
    convert(str(checkpoint[0]), str(copied))
    other = ReadSettings(test_fraction=0.5)
    for run in (evaluate, plan_evaluate):
        with pytest.raises(SettingsError, match=r"copied was trained with .*0\.25.*would mix in rows"):
            run(str(copied), str(embeddings), str(tmp_path / "evaluation"), QUICK, other)  # type: ignore[operator]
    assert not (tmp_path / "evaluation").exists()
    # of other embeddings any rows may be taken
    strange = write_embeddings(tmp_path / "strange", rows=300, seed=7)
    evaluate(str(copied), str(strange), str(tmp_path / "strange_evaluation"), QUICK, other)
    found = read_metrics(str(tmp_path / "strange_evaluation"))
    assert (found["subject"]["training_rows"], found["read"]) == ("of other embeddings", other.splits())
    # as it was written before it said so
    shutil.copytree(copied, silent)
    described = json.loads((silent / "config.json").read_text())
    assert described.pop("trained_on")["embeddings"] == EmbeddingDataset(str(embeddings)).content_fingerprint
    (silent / "config.json").write_text(json.dumps(described))
    evaluate(str(silent), str(embeddings), str(tmp_path / "evaluation"), QUICK, other)
    assert read_metrics(str(tmp_path / "evaluation"))["subject"]["training_rows"] == "unknown"


# checkpoints of DALLE2-pytorch


def test_a_checkpoint_is_evaluated_as_it_is(
    checkpoint: tuple[Path, Path], embeddings: Path, tmp_path: Path, folder_bytes: Callable[[Path], Any]
) -> None:
    own, pth = map(str, checkpoint)
    config = pth.replace(".pth", ".json")
    evaluate(own, str(embeddings), str(tmp_path / "own"), QUICK)
    rows = len(EmbeddingDataset(str(embeddings), READ).rows("test"))
    arguments = (str(embeddings), str(tmp_path / "evaluation"), QUICK, READ)
    plan = plan_evaluate(pth, *arguments, config=config)
    assert plan.pending_units == rows
    assert plan.seconds > 0
    evaluate(pth, *arguments, config=config)
    found = read_metrics(str(tmp_path / "evaluation"))
    assert_near(found["splits"], read_metrics(str(tmp_path / "own"))["splits"])
    subject = found["subject"]
    assert (subject["kind"], subject["training_rows"]) == ("checkpoint", "unknown")
    assert (subject["path"], subject["config"], subject["function_version"]) == (pth, config, None)
    # the same file at another place is the same, with other options it is not
    before = folder_bytes(tmp_path / "evaluation")
    fs = fsspec.filesystem("memory")
    for path in (pth, config):
        fs.pipe(f"/remote/a {Path(path).name}", Path(path).read_bytes())
    remote = ("memory://remote/a prior.pth", "memory://remote/a prior.json")
    assert evaluate(remote[0], *arguments, config=remote[1]).done_now == 0
    assert evaluate(remote[0], *arguments, config=remote[1], function_version="1.14.2").done_now == rows
    assert read_metrics(str(tmp_path / "evaluation"))["subject"]["function_version"] == "1.14.2"
    assert evaluate(pth, *arguments, config=config).done_now == rows
    assert folder_bytes(tmp_path / "evaluation") == before


def test_options_of_a_checkpoint_are_checked_before_any_work(
    checkpoint: tuple[Path, Path], embeddings: Path, tmp_path: Path
) -> None:
    pth, given = str(checkpoint[1]), str(tmp_path / "given.npy")
    config = pth.replace(".pth", ".json")
    np.save(given, np.ones((480, 16), np.float32))
    guided = QUICK.model_copy(update={"sample": SampleSettings(steps=2, guidance_scale=2.0, guidance="dalle2")})
    cases: list[tuple[str, dict[str, Any], EvaluateSettings, str]] = [
        (pth, {}, QUICK, r"prior\.pth: give config=, the JSON of its training script"),
        (pth, {"config": "laion-model-card"}, QUICK, "does not fit|has shape"),
        (pth, {"config": str(tmp_path / "none.json")}, QUICK, "neither a file nor one of laion-model-card"),
        (pth, {"config": config, "function_version": "7"}, QUICK, "function_version"),
        (pth, {"config": config}, guided, "guidance=dalle2: this prior was trained without dropping the image"),
        (str(tmp_path / "none.pth"), {"config": config}, QUICK, r"none\.pth: no such file"),
        (str(checkpoint[0]), {"config": config}, QUICK, r"config= belongs to checkpoints .*prior is none"),
        (given, {"function_version": "1.15.6"}, QUICK, r"function_version= belongs to checkpoints .*npy is none"),
    ]
    for path, options, settings, message in cases:
        with pytest.raises((InputError, SettingsError), match=message):
            evaluate(path, str(embeddings), str(tmp_path / "evaluation"), settings, READ, **options)
    assert not list(tmp_path.glob("evaluation/metrics.json"))


def test_a_checkpoint_that_takes_token_states_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = write_embeddings(tmp_path / "narrow", rows=200, token_states=True)
    blind = write_embeddings(tmp_path / "blind", rows=200)
    monkeypatch.setattr(synthetic, "W", synthetic.D)  # DALLE2-pytorch has one width for all
    embeddings = write_embeddings(tmp_path / "embeddings", rows=200, token_states=True)
    own, pth = tmp_path / "prior", str(tmp_path / "prior.pth")
    train(str(embeddings), str(own), changed(SMALL_TRAIN, steps=5, network__width=16, network__max_text_len=3), READ)
    convert(str(own), pth)
    config = str(tmp_path / "prior.json")
    evaluate(str(own), str(embeddings), str(tmp_path / "own"), QUICK)
    evaluate(pth, str(embeddings), str(tmp_path / "evaluation"), QUICK, READ, config=config)
    found, expected = (read_metrics(str(tmp_path / name))["splits"] for name in ("evaluation", "own"))
    assert_near(found, expected)
    for other, said in ((narrow, "stores token states of 6, .* takes those of 16"), (blind, "stores no token states")):
        with pytest.raises(InputError, match=said):
            evaluate(pth, str(other), str(tmp_path / "other"), QUICK, READ, config=config)


def test_makers_of_scorers_go_to_other_processes(checkpoint: tuple[Path, Path], embeddings: Path) -> None:
    pth = str(checkpoint[1])
    source = PriorSource(pth, pth.replace(".pth", ".json"))
    maker = pickle.loads(pickle.dumps(ScorerMaker(str(embeddings), READ, QUICK, source)))
    scores = maker()(ScoreTask("test", "prior", 0))
    assert (scores.broken, scores.draws) == (None, 2)


def test_the_command_evaluates_a_checkpoint_and_warns(
    checkpoint: tuple[Path, Path], embeddings: Path, tmp_path: Path
) -> None:
    pth = str(checkpoint[1])
    folders = ["--embeddings", str(embeddings), "--evaluation", str(tmp_path / "evaluation")]
    quick = ["--set", "read.test_fraction=0.1", "--set", "evaluate.draws=2", "--set", "evaluate.threads=1"]
    quick += ["--set", "evaluate.sample.steps=2", "--set", "evaluate.bootstrap_samples=100"]
    run = functools.partial(CliRunner().invoke, app)
    refused = run(["evaluate", pth, *folders, *quick, "--dry-run"])
    assert refused.exit_code == 1
    assert "give config=" in refused.stderr
    options = ["--config", pth.replace(".pth", ".json"), "--function-version", "1.15.6", "--weights", "online"]
    planned = run(["evaluate", pth, *folders, *quick, *options, "--dry-run", "--json"])
    assert json.loads(planned.stdout)["pending_units"] > 20
    done = run(["evaluate", pth, *folders, *quick, *options])
    assert done.exit_code == 0, done.stderr
    assert f"warning: {pth}: On which rows it was trained is not known" in done.stderr
    assert found_in(read_metrics(str(tmp_path / "evaluation")))["weights"] == "online"
    own = run(["evaluate", str(checkpoint[0]), *folders, *quick[2:]])
    assert own.exit_code == 0, own.stderr
    assert "warning" not in own.stderr
