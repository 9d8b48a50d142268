"""What the first rank and the driver of a training on Ray know each other by. Knows Ray by what it is handed.

The *coordinator* runs as an actor beside the driver: it is told of progress and of errors, says whether to stop, and
counts the starts of workers that came to nothing.
"""

from __future__ import annotations

import pickle
import time
from dataclasses import dataclass, replace
from typing import Any

from ...pipeline.errors import PriorkitError
from .loop import Outcome

_ATTEMPTS = 4
"""Starts of the workers, one after the other, in which no step was made until the training fails."""
_ASK_SECONDS = 1.0
"""Between two reports of the first rank."""


class TakenOver(RuntimeError):
    """Other workers have taken over the training while this one was out of reach."""


@dataclass(frozen=True)
class Status:
    """What the driver sees of a training."""

    attempt: int = 0
    """Starts of the workers so far."""
    step: int = 0
    """Steps done."""
    note: str = ""
    outcome: Outcome | None = None
    """How it ended; None while it runs."""
    error: bytes | None = None
    """What a worker raised, and its traceback, pickled; None if none did."""

    @property
    def is_over(self) -> bool:
        """Whether workers that start now have nothing to do."""
        return self.outcome is not None or self.error is not None


class Coordinator:
    """Between the driver and the first rank. Runs as an actor; its methods are called from other processes."""

    def __init__(self) -> None:
        self._status = Status()
        self._stop = False
        self._first_step: int | None = None
        self._reached = 0
        """Most steps that were done when workers started."""
        self._vain = 0
        """Starts in a row since which no step was made."""

    def begin(self) -> int:
        """The first rank starts to work; returns the number of this attempt."""
        self._vain = 0 if self._status.step > self._reached else self._vain + 1
        self._reached = max(self._reached, self._status.step)
        if self._vain > _ATTEMPTS:
            self._fail(
                PriorkitError(
                    f"Ray workers died {_ATTEMPTS} times in a row before they had made a step more; they may need more "
                    "memory, so smaller batches or train.accumulate; see Ray's logs for the cause. The same command "
                    "goes on from the newest checkpoint"
                ),
                "",
            )
        self._status = replace(self._status, attempt=self._status.attempt + 1)
        return self._status.attempt

    def report(self, attempt: int, step: int, note: str) -> bool | None:
        """The first rank has made steps; returns whether to stop, or None if others have taken over."""
        if attempt != self._status.attempt:
            return None
        self._first_step = step if self._first_step is None else self._first_step
        self._status = replace(self._status, step=step, note=note)
        return self._stop

    def finish(self, attempt: int, outcome: Outcome) -> None:
        """The first rank has come to an end."""
        if attempt == self._status.attempt:
            first = outcome.first_step if self._first_step is None else self._first_step
            self._status = replace(self._status, outcome=replace(outcome, first_step=first), step=outcome.step)

    def fail(self, error: bytes) -> None:
        """A rank has raised; the first to do so counts."""
        if self._status.error is None:
            self._status = replace(self._status, error=error)

    def _fail(self, error: Exception, text: str) -> None:
        self.fail(pickle.dumps((error, text)))

    def stop(self) -> None:
        """Ask the ranks to stop with a checkpoint."""
        self._stop = True

    def status(self) -> Status:
        """What there is to see."""
        return self._status


class RayWatch:
    """Looks on through the coordinator, at most once a second. See `loop.Watch`.

    Args:
        attempt: of the first rank; None of others, which neither tell nor ask.
    """

    def __init__(self, ray: Any, coordinator: Any, attempt: int | None) -> None:
        self._ray, self._coordinator, self.attempt = ray, coordinator, attempt
        self._told = float("-inf")
        self._last: tuple[int, str] = (0, "")
        self._stop = False

    def report(self, step: int, note: str) -> None:
        """Tell the driver, through the coordinator."""
        self._last = (step, note)
        if self.attempt is not None and time.monotonic() - self._told > _ASK_SECONDS:
            self._tell()

    def should_stop(self) -> bool:
        """Whether the driver was asked to stop when it was last told."""
        return self._stop

    def before_writing(self) -> None:
        """See `loop.Watch`."""
        self._tell()

    def _tell(self) -> None:
        answer = self._ray.get(self._coordinator.report.remote(self.attempt, *self._last))
        if answer is None:
            raise TakenOver("another worker has taken over")
        self._stop, self._told = answer, time.monotonic()
