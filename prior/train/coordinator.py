"""Coordinator between the driver and the workers of a training run on Ray. This module does not import Ray.

The *coordinator* is an actor on the driver's node. The first rank reports progress to it and learns whether to stop.
Any rank reports errors to it. It also counts consecutive worker starts that made no progress.
"""

from __future__ import annotations

import pickle
import time
from dataclasses import dataclass, replace
from typing import Any

from ...pipeline.errors import PriorkitError
from .progress import Outcome

_ATTEMPTS = 4
"""Number of consecutive starts allowed without a new step; the next one ends training with an error."""
_REPORT_SECONDS = 1.0
"""Seconds between reports from the first rank, so that short steps do not each wait for a remote call."""


class TakenOver(RuntimeError):
    """Raised in a worker when other workers took over training while it was unreachable."""


@dataclass(frozen=True)
class Status:
    """Status of a training run, as seen by the driver."""

    attempt: int = 0
    """Number of times the workers have started."""
    step: int = 0
    """Number of completed steps."""
    note: str = ""
    """Text for the progress bar."""
    outcome: Outcome | None = None
    """Outcome of the training run; None while it is in progress."""
    error: bytes | None = None
    """First exception raised by a worker, pickled as a pair with its traceback text; None if there was none."""

    @property
    def is_over(self) -> bool:
        """True if training has ended, so that new workers have nothing to do."""
        return self.outcome is not None or self.error is not None


class Coordinator:
    """Actor that passes messages between the driver and the workers, which call its methods remotely."""

    def __init__(self) -> None:
        self._status = Status()
        self._stop = False
        self._first_step: int | None = None
        self._most_steps = 0
        """Largest number of completed steps at any start so far."""
        self._vain_starts = 0
        """Number of consecutive starts that completed no new step."""

    def begin(self) -> int:
        """Record a start of the first rank and return the number of this attempt."""
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
        """Record progress and return whether to stop, or None if another attempt has taken over."""
        if attempt != self._status.attempt:
            return None
        self._first_step = step if self._first_step is None else self._first_step
        self._status = replace(self._status, step=step, note=note)
        return self._stop

    def finish(self, attempt: int, outcome: Outcome) -> None:
        """Record the outcome from the first rank, unless another attempt has taken over."""
        if attempt == self._status.attempt:
            # count steps from the start of the first attempt
            first = outcome.first_step if self._first_step is None else self._first_step
            self._status = replace(self._status, outcome=replace(outcome, first_step=first), step=outcome.step)

    def fail(self, error: bytes) -> None:
        """Record an exception from any rank; only the first is kept."""
        if self._status.error is None:
            self._status = replace(self._status, error=error)

    def _fail(self, error: Exception, text: str) -> None:
        self.fail(pickle.dumps((error, text)))

    def stop(self) -> None:
        """Ask all ranks to write a checkpoint and stop."""
        self._stop = True

    def status(self) -> Status:
        """Return the current status."""
        return self._status


class RayWatch:
    """Observer of the training loop in a Ray worker. See `progress.Watch`.

    `report` contacts the coordinator at most once per second.

    Args:
        attempt: attempt number on the first rank; None on other ranks, which do not report progress.
    """

    def __init__(self, ray: Any, coordinator: Any, attempt: int | None) -> None:
        self._ray, self._coordinator, self.attempt = ray, coordinator, attempt
        self._sent_at = float("-inf")
        self._last: tuple[int, str] = (0, "")
        self._stop = False

    def report(self, step: int, note: str) -> None:
        """Report progress to the driver through the coordinator."""
        self._last = (step, note)
        if self.attempt is not None and time.monotonic() - self._sent_at > _REPORT_SECONDS:
            self._send()

    def should_stop(self) -> bool:
        """Return whether the last report was answered with a request to stop."""
        return self._stop

    def before_writing(self) -> None:
        """Raise TakenOver if other workers have taken over training."""
        self._send()

    def _send(self) -> None:
        """Send the latest progress to the coordinator and read its answer."""
        answer = self._ray.get(self._coordinator.report.remote(self.attempt, *self._last))
        if answer is None:
            raise TakenOver("another worker has taken over")
        self._stop, self._sent_at = answer, time.monotonic()
