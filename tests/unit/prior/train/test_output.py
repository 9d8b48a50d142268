"""Files of a training: best weights across restarts, the log, due checkpoints, and the published prior."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError
from priorkit.prior.model.folder import BEST_NAME, TrainState
from priorkit.prior.network.network import PriorNetwork
from priorkit.prior.train import output
from priorkit.prior.train.job import TrainJob
from priorkit.prior.train.output import LOG_NAME, Recorder, TrainingFolder, read_log
from priorkit.prior.train.ranks import Ranks
from priorkit.prior.train.step import Learner

LossAt = dict[int, float]


class Watch:
    """A watch that counts how often it is asked before writing."""

    def __init__(self) -> None:
        self.writes = 0

    def report(self, step: int, note: str) -> None:
        pass

    def should_stop(self) -> bool:
        return False

    def before_writing(self) -> None:
        self.writes += 1


class Training:
    """A training that validates at some steps and saves a checkpoint after each."""

    def __init__(self, root: Path, network: PriorNetwork, best_since: int = 0) -> None:
        self.root, self.network = root, network
        self.folder = TrainingFolder(Store(str(root)), "settings", keep=2, best_since=best_since)

    def validate(self, losses: LossAt) -> None:
        """Validate and save at some steps; all weights of a step are its number."""
        for step, loss in losses.items():
            for value in self.network.state_dict().values():
                value.fill_(step)
            self.folder.log(step, {"validation_loss": loss}, 1e-3)
            self.folder.save_if_best(self.network, step, loss)
            state = self.network.state_dict()
            self.folder.save(TrainState(step, network=dict(state), average={}, optimiser={}, normaliser={}))

    def resumed(self, step: int, best_since: int = 0) -> Training:
        """Resume in another object, as another process would, from the checkpoint of a step."""
        training = Training(self.root, self.network, best_since)
        state = training.folder.restore()
        assert state is not None
        assert state.step == step
        return training

    def best_step(self) -> float:
        """Return the step of the best weights."""
        return float(safetensors.torch.load_file(self.root / BEST_NAME)["query"][0])


@pytest.fixture
def training(tmp_path: Path, make_network: Callable[..., PriorNetwork]) -> Training:
    return Training(tmp_path, make_network(dtype=torch.float32))


def best_bytes(training: Training) -> bytes:
    return (training.root / BEST_NAME).read_bytes()


@pytest.mark.parametrize("later", [{30: 2.5}, {30: 2.0}])
def test_weights_no_better_than_those_before_a_restart_are_not_saved(training: Training, later: LossAt) -> None:
    training.validate({10: 2.0, 20: 3.0})
    before = best_bytes(training)
    resumed = training.resumed(20)
    resumed.validate(later)
    assert best_bytes(resumed) == before
    assert resumed.best_step() == 10
    resumed.validate({40: 1.0})
    assert resumed.best_step() == 40


def test_losses_after_the_checkpoint_are_forgotten(training: Training) -> None:
    training.validate({10: 2.0, 20: 1.0})
    (training.root / "state" / "step_000000020.safetensors").unlink()
    resumed = training.resumed(10)
    resumed.validate({30: 1.5})  # step 20 is trained again, perhaps with another result
    assert resumed.best_step() == 30


def test_losses_of_other_validation_rows_are_not_compared(training: Training) -> None:
    training.validate({10: 1.0, 20: 2.0})
    changed = training.resumed(20, best_since=20)
    assert changed.best_step() == 10  # until a loss of the new rows is known
    changed.validate({30: 5.0, 40: 6.0})
    assert changed.best_step() == 30
    again = changed.resumed(40, best_since=20)
    again.validate({50: 5.5})
    assert again.best_step() == 30


@pytest.fixture
def folder(job: TrainJob) -> TrainingFolder:
    return TrainingFolder(Store(job.prior), job.fingerprint, keep=2)


def empty_state(step: int) -> TrainState:
    return TrainState(step, network={}, average={}, optimiser={}, normaliser={})


def test_the_log_is_cut_at_the_checkpoint(job: TrainJob, folder: TrainingFolder) -> None:
    for step in (2, 4):
        folder.log(step, {"loss": step / 2}, 0.5)
        folder.save(empty_state(step))
    folder.log(6, {"loss": 3.0}, 0.5)
    resumed = TrainingFolder(Store(job.prior), job.fingerprint, keep=2)
    state = resumed.restore()
    assert state is not None
    assert state.step == 4
    resumed.save(state)
    lines = [json.loads(line) for line in Path(job.prior, "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "loss": step / 2, "learning_rate": 0.5} for step in (2, 4)]


def test_a_checkpoint_without_a_log_is_removed(job: TrainJob, folder: TrainingFolder) -> None:
    folder.save(empty_state(2))
    Path(job.prior, "metrics.jsonl").unlink()
    assert folder.restore() is None
    assert list(Path(job.prior, "state").iterdir()) == []


def test_metrics_are_logged_with_the_learning_rate_of_their_step(job: TrainJob, folder: TrainingFolder) -> None:
    recorder = Recorder(job, folder, Watch(), 0)
    recorder.log(1, {"loss": 1.0}, {"validation_loss": 2.0}, {"samples_per_second": 9.0})
    recorder.log(2, {}, {}, {})
    recorder.save(empty_state(2))
    lines = [json.loads(line) for line in Path(job.prior, "metrics.jsonl").read_text().splitlines()]
    rate = 1.5e-3  # of the first of two warmup steps
    assert lines == [
        {"step": 1, "loss": 1.0, "learning_rate": rate},
        {"step": 1, "validation_loss": 2.0, "learning_rate": rate},
    ]


def test_a_checkpoint_is_due_by_steps_or_by_minutes(
    job: TrainJob, folder: TrainingFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(output.time, "monotonic", lambda: now)
    recorder = Recorder(job, folder, Watch(), 0)
    assert [recorder.is_checkpoint_due(step) for step in (3, 4, 5)] == [False, True, False]
    now += 600.5
    assert recorder.is_checkpoint_due(5)
    recorder.save(empty_state(5))
    assert not recorder.is_checkpoint_due(6)


def test_the_watch_is_asked_before_every_file(job: TrainJob, folder: TrainingFolder) -> None:
    learner, watch = Learner(job.config, job.settings, Ranks(0, 1, torch.device("cpu"))), Watch()
    recorder = Recorder(job, folder, watch, 0)
    recorder.save_if_best(learner.average, 3, 1.0)
    recorder.save(learner.state(3))
    record = recorder.publish(learner.average, learner.normaliser, image_norm=None, rows=42)
    assert watch.writes == 3
    assert (record.name, record.rows, record.input, record.settings) == ("prior", 42, job.record_input, job.fingerprint)
    assert set(record.files) == {"config.json", "model.safetensors", "metrics.jsonl"}
    recorder.close()


@pytest.mark.parametrize(
    "line", ['{"step": 1', "[]", "7", '{"loss": 1.0}', '{"step": 1.5}', '{"step": 1, "loss": "low"}', "[" * 100_000]
)
def test_a_damaged_log_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / LOG_NAME).write_text('{"step": 1, "loss": 1.0, "rate": 1}\n')
    assert read_log(Store(str(tmp_path))) == [{"step": 1, "loss": 1.0, "rate": 1}]
    with (tmp_path / LOG_NAME).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged .*--overwrite"):
        read_log(Store(str(tmp_path)))
