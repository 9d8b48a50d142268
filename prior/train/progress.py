"""Training progress: observers, throughput and the outcome of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ...pipeline.compute.stage import ProgressCallback
from ...pipeline.contract.manifest import ShardRecord


class Watch(Protocol):
    """Observer of the training loop on one rank. The loop sends it progress, and asks it whether to stop."""

    def report(self, step: int, note: str) -> None:
        """Receive the progress of the training loop, which calls this method before each step and once at the end.

        Args:
            step: number of completed steps.
            note: text for the progress bar.
        """

    def should_stop(self) -> bool:
        """Return True if training must write a checkpoint and stop. A stop request on one rank stops all ranks.

        The training loop calls this method before the first step and once per step.
        """

    def before_writing(self) -> None:
        """Raise an error if other workers have taken over this training run and this rank must therefore not write.

        The training loop calls this method before it writes checkpoints, best weights or the finished prior.
        """


class LocalWatch:
    """Observer of a training loop that runs in the calling process, without Ray. See `Watch`.

    Args:
        steps: total number of steps.
        progress: called with the number of completed steps, the total number of steps and a text for the progress bar.
        should_stop: function that returns True to stop training.
    """

    def __init__(self, steps: int, progress: ProgressCallback, should_stop: Callable[[], bool]) -> None:
        self._steps, self._progress = steps, progress
        self.should_stop = should_stop

    def report(self, step: int, note: str) -> None:
        """Pass the progress on to the `progress` function."""
        self._progress(step, self._steps, note)

    def before_writing(self) -> None:
        """Do nothing, because this process holds the lock on the prior folder and no other process can take over."""


@dataclass(frozen=True)
class Outcome:
    """Result of one call of `run_loop`: the steps it covered and, if the prior was finished, its manifest record."""

    first_step: int
    """Number of steps completed before this run."""
    step: int
    """Total number of completed steps when this run ended."""
    stopped: bool
    """True if the run ended early because a stop was requested."""
    record: ShardRecord | None
    """Manifest record of the finished prior. None if training is not complete, and on all ranks except the first."""
    notes: list[str] = field(default_factory=list)
    """Remarks for the user about the embeddings that this rank read."""


class Throughput:
    """Meter for training throughput, in samples per second and in draws (noisy copies of samples) per second.

    Call `add` after every step and `measure` at the end of an interval. The next interval then starts.

    Args:
        draws: number of draws per sample in each step.
    """

    def __init__(self, draws: int) -> None:
        self._draws = draws
        self._rows, self._since = 0, time.monotonic()
        self.rates: dict[str, float] = {}
        """Throughput in the last interval, by metric name; empty until the first interval ends."""
        self.note = ""
        """Text for the progress bar."""

    def add(self, rows: int) -> None:
        """Add the rows of one completed step to the current interval.

        Args:
            rows: number of rows in the step, summed over all ranks.
        """
        self._rows += rows

    def measure(self, loss: float) -> None:
        """End the current interval: compute `rates` and write the new `note`.

        Args:
            loss: training loss, which is shown in the note.
        """
        now = time.monotonic()
        rate = self._rows / max(now - self._since, 1e-9)
        self._rows, self._since = 0, now
        self.rates = {"samples_per_second": rate, "draws_per_second": rate * self._draws}
        self.note = f"loss {loss:.4f}, {rate:,.0f} samples/s, {rate * self._draws:,.0f} draws/s"
