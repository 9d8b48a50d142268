"""Progress of a training: who observes it, how fast it is, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ...pipeline.compute.stage import ProgressCallback
from ...pipeline.contract.manifest import ShardRecord


class Watch(Protocol):
    """Observer of the training loop on one rank. It receives progress and may request a stop."""

    def report(self, step: int, note: str) -> None:
        """Report that `step` steps are done."""

    def should_stop(self) -> bool:
        """Return whether to stop all ranks with a checkpoint. Called before the first step and once in each step."""

    def before_writing(self) -> None:
        """Raise an error if another process has taken over the training; called before files are written."""


class LocalWatch:
    """Observer of a training in this process. See `Watch`.

    Args:
        steps: steps of the whole training.
    """

    def __init__(self, steps: int, progress: ProgressCallback, should_stop: Callable[[], bool]) -> None:
        self._steps, self._progress = steps, progress
        self.should_stop = should_stop

    def report(self, step: int, note: str) -> None:
        """Update the progress bar."""
        self._progress(step, self._steps, note)

    def before_writing(self) -> None:
        """Do nothing: this process holds the folder's lock, so no other process can take over."""


@dataclass(frozen=True)
class Outcome:
    """Result of one run of the training loop."""

    first_step: int
    """Steps done before this run."""
    step: int
    """Steps done after this run."""
    stopped: bool
    """True if the run stopped on request, before its last step."""
    record: ShardRecord | None
    """Record of the trained prior, on the first rank after the last step; None otherwise."""
    notes: list[str] = field(default_factory=list)
    """Sentences on anything unusual in the embeddings that this rank read."""


class Throughput:
    """Samples and noise draws per second.

    Args:
        draws: noise draws per sample.
    """

    def __init__(self, draws: int) -> None:
        self._draws = draws
        self._rows, self._since = 0, time.monotonic()
        self.rates: dict[str, float] = {}
        """Rates over the last interval by name; empty before the first interval ends."""
        self.note = ""
        """Text for the progress bar."""

    def add(self, rows: int) -> None:
        """Count the rows of a step."""
        self._rows += rows

    def measure(self, loss: float) -> None:
        """End an interval: compute its rates, and the note with the current loss."""
        now = time.monotonic()
        rate = self._rows / max(now - self._since, 1e-9)
        self._rows, self._since = 0, now
        self.rates = {"samples_per_second": rate, "draws_per_second": rate * self._draws}
        self.note = f"loss {loss:.4f}, {rate:,.0f} samples/s, {rate * self._draws:,.0f} draws/s"
