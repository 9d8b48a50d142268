"""Coordinator between the driver and the workers in a training run on Ray. This module does not import Ray.

The *coordinator* is a Ray actor on the driver's node. The first rank reports progress, and the coordinator's reply says
whether to stop. Any rank can report an error. The coordinator also counts consecutive worker starts without progress.
"""

from __future__ import annotations

import pickle
import time
from dataclasses import dataclass, replace
from typing import Any

from ...pipeline.errors import PriorkitError
from .progress import Outcome

_ATTEMPTS = 4
"""Maximum number of consecutive times that the workers may be started without completing a new training step.

After that, training fails.
"""
_REPORT_SECONDS = 1.0
"""Minimum number of seconds between progress reports. Each report is a remote call that briefly blocks training."""


class TakenOver(RuntimeError):
    """Raised in a worker when new workers have taken over training, because this worker was unreachable for a time."""


@dataclass(frozen=True)
class Status:
    """Status of a training run, as returned to the driver."""

    attempt: int = 0
    """Number of the current attempt, from 1; 0 before the first. An attempt starts whenever rank 0 starts."""
    step: int = 0
    """Number of completed steps."""
    note: str = ""
    """Text for the progress bar."""
    outcome: Outcome | None = None
    """Outcome of the training run; None while it is in progress."""
    error: bytes | None = None
    """First exception from any rank, as a pickled pair of exception and traceback text; None if no rank failed."""

    @property
    def is_over(self) -> bool:
        """True if training has succeeded, stopped or failed. Workers that Ray Train starts later exit immediately."""
        return self.outcome is not None or self.error is not None


class Coordinator:
    """Ray actor that passes messages between the driver and the workers, which call its methods remotely."""

    def __init__(self) -> None:
        self._status = Status()
        self._stop = False
        self._first_step: int | None = None
        self._most_steps = 0
        """Highest number of completed steps recorded at any worker start so far."""
        self._vain_starts = 0
        """Number of consecutive times that the workers were started without having completed a new training step."""

    def begin(self) -> int:
        """Record that the first rank has started, and return the attempt number, counted from 1.

        If the workers have been started too many times in a row without completing a new training step, record an
        error, which ends training.
        """
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
        """Record progress, unless a newer attempt has taken over.

        Args:
            attempt: attempt number of the caller.
            step: number of completed steps.
            note: text for the progress bar.

        Returns:
            True if the caller must stop, False if it must continue, or None if a newer attempt has taken over.
        """
        if attempt != self._status.attempt:
            return None
        self._first_step = step if self._first_step is None else self._first_step
        self._status = replace(self._status, step=step, note=note)
        return self._stop

    def finish(self, attempt: int, outcome: Outcome) -> None:
        """Record the outcome from the first rank, unless a newer attempt has taken over."""
        if attempt == self._status.attempt:
            # count steps from the start of the first attempt
            first = outcome.first_step if self._first_step is None else self._first_step
            self._status = replace(self._status, outcome=replace(outcome, first_step=first), step=outcome.step)

    def fail(self, error: bytes) -> None:
        """Record an exception from any rank, unless one is already recorded. See `Status.error` for the format."""
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
    """Connection from the training loop in a Ray worker to the coordinator; implements `progress.Watch`.

    Args:
        ray: the `ray` module.
        coordinator: handle of the coordinator actor.
        attempt: attempt number on the first rank. None on all other ranks, which do not report progress.
    """

    def __init__(self, ray: Any, coordinator: Any, attempt: int | None) -> None:
        self._ray, self._coordinator, self.attempt = ray, coordinator, attempt
        self._sent_at = float("-inf")
        self._last: tuple[int, str] = (0, "")
        self._stop = False

    def report(self, step: int, note: str) -> None:
        """Store the progress and, on the first rank, send it to the coordinator at most once per second."""
        self._last = (step, note)
        if self.attempt is not None and time.monotonic() - self._sent_at > _REPORT_SECONDS:
            self._send()

    def should_stop(self) -> bool:
        """Return True if the coordinator's last reply requested a stop.

        On ranks that do not report progress, always return False.
        """
        return self._stop

    def before_writing(self) -> None:
        """Report progress, and raise TakenOver if new workers have taken over training."""
        self._send()

    def _send(self) -> None:
        """Send the latest progress to the coordinator and store the reply.

        Raises:
            TakenOver: new workers have taken over training, according to the reply.
        """
        answer = self._ray.get(self._coordinator.report.remote(self.attempt, *self._last))
        if answer is None:
            raise TakenOver("another worker has taken over")
        self._stop, self._sent_at = answer, time.monotonic()
