"""The order of a training: steps, log lines, validations, checkpoints and stops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.model.folder import load_state
from priorkit.prior.train.job import TrainJob
from priorkit.prior.train.loop import run_loop
from priorkit.prior.train.progress import Outcome

MakeJob = Callable[..., TrainJob]


class CountingWatch:
    """A watch that records reports and requests a stop at the call number `stop_at`."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps: list[int] = []
        self.calls = self.writes = 0
        self._stop_at = stop_at

    def report(self, step: int, note: str) -> None:
        self.steps.append(step)

    def should_stop(self) -> bool:
        self.calls += 1
        return self.calls == self._stop_at

    def before_writing(self) -> None:
        self.writes += 1


def log(job: TrainJob) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(job.prior, "metrics.jsonl").read_text().splitlines()]


def checkpoints(job: TrainJob) -> list[str]:
    return sorted(path.name for path in Path(job.prior, "state").iterdir())


def test_a_whole_training_logs_validates_and_saves_at_its_intervals(job: TrainJob, dataset: EmbeddingDataset) -> None:
    watch = CountingWatch()
    outcome = run_loop(job, dataset, watch)
    assert (outcome.first_step, outcome.step, outcome.stopped) == (0, 6, False)
    assert outcome.record is not None
    assert outcome.record.rows == len(dataset.rows("train"))
    assert watch.steps == [0, 1, 2, 3, 4, 5, 6]
    assert watch.calls == 7  # before the first step, and in each step
    assert [line["step"] for line in log(job) if "loss" in line] == [2, 4, 6]
    assert [line["step"] for line in log(job) if "validation_loss" in line] == [3, 6]
    assert checkpoints(job) == ["step_000000004.safetensors", "step_000000006.safetensors"]
    assert log(job)[-1]["learning_rate"] == pytest.approx(3e-3 * (0.1 + 0.45 * (1 - 2**-0.5)), rel=1e-6)


def test_a_stop_saves_a_checkpoint_and_no_prior(job: TrainJob, dataset: EmbeddingDataset) -> None:
    outcome = run_loop(job, dataset, CountingWatch(stop_at=4))
    assert outcome == Outcome(0, 3, True, None, dataset.notes)
    assert checkpoints(job) == ["step_000000003.safetensors"]
    assert not Path(job.prior, "model.safetensors").exists()


def test_a_stop_before_the_first_step_trains_nothing(job: TrainJob, dataset: EmbeddingDataset) -> None:
    outcome = run_loop(job, dataset, CountingWatch(stop_at=1))
    assert (outcome.step, outcome.stopped) == (0, True)


def test_a_stop_in_the_last_step_changes_nothing(job: TrainJob, dataset: EmbeddingDataset) -> None:
    outcome = run_loop(job, dataset, CountingWatch(stop_at=7))
    assert (outcome.step, outcome.stopped) == (6, False)
    assert outcome.record is not None


def test_a_limit_is_no_stop(make_train_job: MakeJob, dataset: EmbeddingDataset) -> None:
    outcome = run_loop(make_train_job(limit=2), dataset, CountingWatch())
    assert outcome == Outcome(0, 2, False, None, dataset.notes)


def test_a_resumed_training_gives_the_same_weights(
    make_train_job: MakeJob, dataset: EmbeddingDataset, tmp_path: Path
) -> None:
    whole = make_train_job()
    run_loop(whole, dataset, CountingWatch())
    state = load_state(Store(whole.prior), whole.fingerprint)
    Path(whole.prior).rename(tmp_path / "whole")
    run_loop(make_train_job(limit=3), dataset, CountingWatch())
    resumed = make_train_job()
    outcome = run_loop(resumed, dataset, CountingWatch())
    assert (outcome.first_step, outcome.step) == (3, 6)
    again = load_state(Store(resumed.prior), resumed.fingerprint)
    assert state is not None
    assert again is not None
    assert state.tensors().keys() == again.tensors().keys()
    assert all(torch.equal(value, again.tensors()[name]) for name, value in state.tensors().items())
