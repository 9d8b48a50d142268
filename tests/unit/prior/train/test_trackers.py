"""The folder of trackers, and steps that W&B is sent once; both trackers run in the integration tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import SettingsError
from priorkit.prior.train import trackers as module
from priorkit.prior.train.settings import TrainSettings
from priorkit.prior.train.trackers import WeightsAndBiases, check_trackers, open_trackers


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that import quickly stand for those of the trackers."""
    monkeypatch.setattr(module, "_MODULES", {"tensorboard": "json", "wandb": "priorkit_has_no_such_module"})


def test_the_folder_is_in_that_of_the_prior_unless_it_is_set(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert check_trackers(TrainSettings(), store) is None
    assert check_trackers(TrainSettings(trackers=("tensorboard",)), store) == tmp_path / "trackers"
    elsewhere = TrainSettings(trackers=("tensorboard",), tracker_folder=str(tmp_path / "runs"))
    assert check_trackers(elsewhere, store) == tmp_path / "runs"
    assert check_trackers(elsewhere, Store("memory://prior")) == tmp_path / "runs"


def test_no_trackers_are_opened_unless_they_are_set(tmp_path: Path) -> None:
    assert open_trackers(TrainSettings(), Store(str(tmp_path)), "name", {}, 0) == []


def test_a_remote_prior_needs_a_tracker_folder() -> None:
    with pytest.raises(SettingsError, match="tensorboard write to a local folder, and memory:///prior is none"):
        check_trackers(TrainSettings(trackers=("tensorboard",)), Store("memory://prior"))


def test_a_tracker_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"wandb is not installed .*: pip install 'priorkit\[wandb\]'"):
        check_trackers(TrainSettings(trackers=("wandb",)), Store(str(tmp_path)))


class Run:
    """A run that keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, dict[str, float]]] = []

    def log(self, values: Mapping[str, float], step: int, commit: bool) -> None:
        assert commit
        self.sent.append((step, dict(values)))


def test_a_step_is_sent_to_wandb_once(tmp_path: Path) -> None:
    tracker = object.__new__(WeightsAndBiases)  # without a connection
    run = Run()
    tracker._run, tracker._id, tracker._last, tracker._state_file = run, "abc", 3, tmp_path / "run.json"
    for step in (2, 3, 4, 4, 6):
        tracker.log(step, {"loss": step / 2})
    assert run.sent == [(4, {"loss": 2.0}), (6, {"loss": 3.0})]
    assert json.loads((tmp_path / "run.json").read_text()) == {"id": "abc", "step": 6}
