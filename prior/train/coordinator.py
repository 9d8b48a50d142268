"""Coordinator between the driver and the first rank of a training on Ray. Does not import Ray.

The *coordinator* runs as an actor beside the driver. The first rank reports progress and errors to it and asks it
whether to stop. It also counts the starts of workers that led to no progress.
"""

from __future__ import annotations

import pickle
import time
from dataclasses import dataclass, replace
from typing import Any

from ...pipeline.errors import PriorkitError
from .progress import Outcome

_ATTEMPTS = 4
"""Number of consecutive starts without a new step after which the next start fails the training."""
_REPORT_SECONDS = 1.0
"""Seconds between reports of the first rank, so that short steps do not wait for a remote call each."""


class TakenOver(RuntimeError):
    """Error for a worker whose training other workers have taken over while it was unreachable."""


@dataclass(frozen=True)
class Status:
    """Status of a training, as the driver sees it."""

    attempt: int = 0
    """Number of starts of the workers so far."""
    step: int = 0
    """Steps done."""
    note: str = ""
    """Text for the progress bar."""
    outcome: Outcome | None = None
    """Outcome of the training; None while it runs."""
    error: bytes | None = None
    """Pickled pair of the first exception that a worker raised and its traceback; None without one."""

    @property
    def is_over(self) -> bool:
        """True if the training has ended, so that new workers have nothing to do."""
        return self.outcome is not None or self.error is not None


class Coordinator:
    """Actor between the driver and the first rank; other processes call its methods."""

    def __init__(self) -> None:
        self._status = Status()
        self._stop = False
        self._first_step: int | None = None
        self._most_steps = 0
        """Largest number of steps done at any start."""
        self._vain_starts = 0
        """Number of consecutive starts without a new step."""

    def begin(self) -> int:
        """Count a start of the first rank; return the number of this attempt."""
        self._vain_starts = 0 if self._status.step > self._most_steps else self._vain_starts + 1
        self._most_steps = max(self._most_steps, self._status.step)
        if self._vain_starts > _ATTEMPTS:
            self._fail(
                PriorkitError(
                    f"Ray workers died {_ATTEMPTS} times in a row without a new step; they may need more memory, so "
                    "smaller batches or train.accumulate; see Ray's logs for the cause. The same command goes on from "
                    "the newest checkpoint"
                ),
                "",
            )
        self._status = replace(self._status, attempt=self._status.attempt + 1)
        return self._status.attempt

    def report(self, attempt: int, step: int, note: str) -> bool | None:
        """Record the steps done; return whether to stop, or None if another attempt has taken over."""
        if attempt != self._status.attempt:
            return None
        self._first_step = step if self._first_step is None else self._first_step
        self._status = replace(self._status, step=step, note=note)
        return self._stop

    def finish(self, attempt: int, outcome: Outcome) -> None:
        """Record the outcome of the first rank."""
        if attempt == self._status.attempt:
            # steps count from the start of the first attempt
            first = outcome.first_step if self._first_step is None else self._first_step
            self._status = replace(self._status, outcome=replace(outcome, first_step=first), step=outcome.step)

    def fail(self, error: bytes) -> None:
        """Record the exception of a rank; only the first is kept."""
        if self._status.error is None:
            self._status = replace(self._status, error=error)

    def _fail(self, error: Exception, text: str) -> None:
        self.fail(pickle.dumps((error, text)))

    def stop(self) -> None:
        """Ask the ranks to stop with a checkpoint."""
        self._stop = True

    def status(self) -> Status:
        """Return the current status."""
        return self._status


class RayWatch:
    """Observer of the loop in a Ray worker; talks to the coordinator at most once a second. See `progress.Watch`.

    Args:
        attempt: attempt of the first rank; None on other ranks, which do not use the coordinator.
    """

    def __init__(self, ray: Any, coordinator: Any, attempt: int | None) -> None:
        self._ray, self._coordinator, self.attempt = ray, coordinator, attempt
        self._sent_at = float("-inf")
        self._last: tuple[int, str] = (0, "")
        self._stop = False

    def report(self, step: int, note: str) -> None:
        """Report progress to the driver, through the coordinator."""
        self._last = (step, note)
        if self.attempt is not None and time.monotonic() - self._sent_at > _REPORT_SECONDS:
            self._send()

    def should_stop(self) -> bool:
        """Return whether the driver had been asked to stop at the last report."""
        return self._stop

    def before_writing(self) -> None:
        """Raise TakenOver if other workers have taken over the training."""
        self._send()

    def _send(self) -> None:
        """Send the last progress to the coordinator and read its answer."""
        answer = self._ray.get(self._coordinator.report.remote(self.attempt, *self._last))
        if answer is None:
            raise TakenOver("another worker has taken over")
        self._stop, self._sent_at = answer, time.monotonic()
