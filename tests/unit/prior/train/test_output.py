"""What a training that goes on remembers of what it had found before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from priorkit.pipeline.contract.storage import Store
from priorkit.prior.model.folder import BEST_NAME, TrainState
from priorkit.prior.network.network import PriorNetwork
from priorkit.prior.train.output import TrainingFolder

LossAt = dict[int, float]


class Training:
    """A training that validates at some steps, with a checkpoint after each."""

    def __init__(self, root: Path, network: PriorNetwork, best_since: int = 0) -> None:
        self.root, self.network = root, network
        self.folder = TrainingFolder(Store(str(root)), "settings", keep=2, best_since=best_since)

    def validate(self, losses: LossAt) -> None:
        """The weights of a step are all its number."""
        for step, loss in losses.items():
            for value in self.network.state_dict().values():
                value.fill_(step)
            self.folder.log(step, {"validation_loss": loss}, 1e-3)
            self.folder.save_if_best(self.network, step, loss)
            state = self.network.state_dict()
            self.folder.save(TrainState(step, network=dict(state), average={}, optimiser={}, normaliser={}))

    def resumed(self, step: int, best_since: int = 0) -> Training:
        """Another process that goes on from the checkpoint of a step."""
        training = Training(self.root, self.network, best_since)
        state = training.folder.restore()
        assert state is not None
        assert state.step == step
        return training

    def best_step(self) -> float:
        """Of the weights that are kept as the best."""
        return float(safetensors.torch.load_file(self.root / BEST_NAME)["query"][0])


@pytest.fixture
def training(tmp_path: Path, make_network: Callable[..., PriorNetwork]) -> Training:
    return Training(tmp_path, make_network(dtype=torch.float32))


def best_bytes(training: Training) -> bytes:
    return (training.root / BEST_NAME).read_bytes()


@pytest.mark.parametrize("later", [{30: 2.5}, {30: 2.0}])
def test_what_validates_no_better_than_before_a_restart_is_not_the_best(training: Training, later: LossAt) -> None:
    training.validate({10: 2.0, 20: 3.0})
    kept = best_bytes(training)
    resumed = training.resumed(20)
    resumed.validate(later)
    assert best_bytes(resumed) == kept
    assert resumed.best_step() == 10
    resumed.validate({40: 1.0})
    assert resumed.best_step() == 40


def test_what_was_found_after_the_checkpoint_is_forgotten(training: Training) -> None:
    training.validate({10: 2.0, 20: 1.0})
    (training.root / "state" / "step_000000020.safetensors").unlink()
    resumed = training.resumed(10)
    resumed.validate({30: 1.5})  # step 20 is made again, and might give something else
    assert resumed.best_step() == 30


def test_losses_of_other_validation_rows_are_not_compared(training: Training) -> None:
    training.validate({10: 1.0, 20: 2.0})
    changed = training.resumed(20, best_since=20)
    assert changed.best_step() == 10  # until there is one of the new rows
    changed.validate({30: 5.0, 40: 6.0})
    assert changed.best_step() == 30
    again = changed.resumed(40, best_since=20)
    again.validate({50: 5.5})
    assert again.best_step() == 30
