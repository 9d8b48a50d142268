"""Training that stops early: when it stops, what it publishes, and that stops and resumes change nothing of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.train import validation
from priorkit.prior.train.settings import TrainSettings
from priorkit.prior.train.stage import plan_train, train

from .synthetic import SMALL_TRAIN, changed, write_embeddings

SPLIT = ReadSettings(validation_fraction=0.1)
SETTINGS = changed(SMALL_TRAIN, steps=20, validate_every=2, checkpoint_every=3, patience=3)
LOSSES = {2: 5.0, 4: 2.0, 6: 3.0, 8: 2.0, 10: 2.5, 12: 1.0, 14: 9.0, 16: 9.0, 18: 9.0, 20: 9.0}
"""Loss of each validation run. At step 10, it has not fallen for three runs."""
FILES = ("model.safetensors", "best.safetensors", "metrics.jsonl", "config.json")


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embeddings(tmp_path_factory.mktemp("early") / "embeddings")


@pytest.fixture(scope="module", autouse=True)
def given_losses() -> Iterator[None]:
    """Validation that finds the losses in `LOSSES`."""

    def found(self: validation.Validation, learner: Any, step: int) -> dict[str, float]:
        return {"validation_loss": LOSSES[step]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation.Validation, "__call__", found)
        yield


@pytest.fixture(scope="module")
def finished(embeddings: Path, given_losses: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a training that was never interrupted and stopped early; for reading only."""
    folder = tmp_path_factory.mktemp("finished") / "prior"
    run(embeddings, folder)
    return folder


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def last_step(folder: Path) -> int:
    step: int = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    return step


def run(embeddings: Path, prior: Path, settings: TrainSettings = SETTINGS, **options: Any) -> Any:
    return train(str(embeddings), str(prior), settings, SPLIT, **options)


def test_training_stops_when_the_loss_has_not_fallen(embeddings: Path, tmp_path: Path) -> None:
    """An equal loss is no new lowest one. The prior of step 10 is published, and the best weights are of step 4."""
    done = run(embeddings, tmp_path / "early")
    assert (done.done_now, last_step(tmp_path / "early")) == (10, 10)
    assert done.notes[-1] == (
        "stopped early after step 10 of 20: the validation loss was lowest at step 4 (2.0000), and not in the 3 "
        "validation runs since; the weights of that step are `best`"
    )
    run(embeddings, tmp_path / "whole", changed(SETTINGS, patience=None), limit=4)
    best = (tmp_path / "whole/best.safetensors").read_bytes()
    assert (tmp_path / "early/best.safetensors").read_bytes() == best
    run(embeddings, tmp_path / "whole", changed(SETTINGS, patience=None), limit=10)
    state = "state/step_000000010.safetensors"
    assert (tmp_path / "early" / state).read_bytes() == (tmp_path / "whole" / state).read_bytes()
    again = run(embeddings, tmp_path / "early")
    assert (again.done_now, again.notes) == (0, done.notes[:-1])
    plan = plan_train(str(embeddings), str(tmp_path / "early"), SETTINGS, SPLIT)
    assert (plan.pending_units, plan.seconds) == (0, 0)


@pytest.mark.parametrize("stops", [(3,), (4, 5, 9), (6, 8), (10,), tuple(range(1, 10))])
def test_stops_do_not_change_when_training_ends(
    embeddings: Path, finished: Path, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    """The count of validation runs is that of the log, whichever checkpoint training resumes from."""
    for stop in stops:
        run(embeddings, tmp_path / "parts", limit=stop)
    done = run(embeddings, tmp_path / "parts")
    assert done.done_now == 10 - stops[-1]
    assert results(tmp_path / "parts") == results(finished)


def test_a_kill_between_the_last_checkpoint_and_the_prior_is_made_good(
    embeddings: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "killed")
    for name in ("model.safetensors", "config.json", "manifest.json"):
        (tmp_path / "killed" / name).unlink()
    run(embeddings, tmp_path / "other", limit=3)  # a manifest of the same run that has not ended
    (tmp_path / "killed/manifest.json").write_bytes((tmp_path / "other/manifest.json").read_bytes())
    assert run(embeddings, tmp_path / "killed").done_now == 0
    assert results(tmp_path / "killed") == results(finished)


def test_more_patience_goes_on_and_is_recorded(embeddings: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "prior")
    more = changed(SETTINGS, patience=4)
    assert plan_train(str(embeddings), str(tmp_path / "prior"), more, SPLIT).pending_units == 10
    assert run(embeddings, tmp_path / "prior", more).done_now == 10  # the loss falls at step 12
    assert last_step(tmp_path / "prior") == 20
    manifest = json.loads((tmp_path / "prior/manifest.json").read_text())
    assert manifest["about"]["changes"] == [{"step": 10, "name": "train.patience", "from": 3, "to": 4}]
    assert run(embeddings, tmp_path / "prior", more).done_now == 0


def test_without_patience_nothing_of_the_manifest_changes(embeddings: Path, tmp_path: Path) -> None:
    run(embeddings, tmp_path / "without", changed(SETTINGS, steps=2, patience=None))
    text = (tmp_path / "without/manifest.json").read_text()
    assert "patience" not in text
    run(embeddings, tmp_path / "with", changed(SETTINGS, steps=2, patience=50))
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("without", "with")]
    assert manifests[0]["settings_fingerprint"] == manifests[1]["settings_fingerprint"]


def test_patience_needs_validation_rows(embeddings: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"train\.patience=3 needs validation rows, and read\.validation_fraction"):
        train(str(embeddings), str(tmp_path / "a"), SETTINGS, ReadSettings(validation_fraction=0))
    with pytest.raises(InputError, match=r"train\.patience=3: no row of .* is in the validation split"):
        train(str(embeddings), str(tmp_path / "b"), SETTINGS, ReadSettings(validation_fraction=1e-9))


def test_the_measured_time_of_a_step_replaces_the_estimate(embeddings: Path, tmp_path: Path) -> None:
    prior, settings = tmp_path / "prior", changed(SETTINGS, patience=None)
    plan = plan_train(str(embeddings), str(prior), settings, SPLIT)
    assert plan.time_basis == "estimate"
    assert plan.seconds > 0
    run(embeddings, prior, settings, limit=6)
    stats = json.loads((prior / "stats/stats_prior.json").read_text())
    assert (stats["steps"], stats["workers"]) == (6, 1)
    (prior / "stats/stats_prior.json").write_text(json.dumps({**stats, "seconds": 12.0}))
    plan = plan_train(str(embeddings), str(prior), settings, SPLIT)
    assert (plan.pending_units, plan.time_basis) == (14, "measured")
    assert plan.seconds == pytest.approx(28.0)
    other = plan_train(str(embeddings), str(prior), settings, SPLIT, overwrite=True)
    assert other.time_basis == "estimate"
    (prior / "stats/stats_prior.json").write_text("{}")  # only an estimate depends on it
    assert plan_train(str(embeddings), str(prior), settings, SPLIT).time_basis == "estimate"
    run(embeddings, prior, settings, overwrite=True, limit=2)
    assert json.loads((prior / "stats/stats_prior.json").read_text())["steps"] == 2
