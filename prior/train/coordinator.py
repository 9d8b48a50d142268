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
"""Maximum number of consecutive worker starts without progress (no new training step since the previous start).

One more such start ends training with an error.
"""
_REPORT_SECONDS = 1.0
"""Minimum number of seconds between progress reports. Each report is a remote call that briefly blocks training."""


class TakenOver(RuntimeError):
    """Raised in a worker that has been replaced: new workers were started while this worker was unreachable."""


@dataclass(frozen=True)
class Status:
    """Snapshot of a training run on Ray, which the driver requests from the coordinator."""

    attempt: int = 0
    """Number of the current attempt, from 1; 0 before the first. Each start of rank 0 begins a new attempt."""
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
        """True once an outcome or an error has been recorded: training has succeeded, stopped or failed.

        Ray Train may still start workers after this point; they exit immediately.
        """
        return self.outcome is not None or self.error is not None


class Coordinator:
    """Ray actor that passes messages between the driver and the workers. Both call its methods remotely.

    Workers send progress, outcomes and errors. The driver reads them and sends stop requests.
    """

    def __init__(self) -> None:
        self._status = Status()
        self._stop = False
        self._first_step: int | None = None
        self._most_steps = 0
        """Highest number of completed steps reported before the latest worker start."""
        self._vain_starts = 0
        """Number of consecutive worker starts without progress (no new training step since the previous start)."""

    def begin(self) -> int:
        """Record that rank 0 has started, which begins a new attempt. Return the attempt number, counted from 1.

        Ray Train restarts all workers after a failure. If they have been started more than `_ATTEMPTS` times in a row
        without progress, also record an error, which ends training.
        """
        self._vain_starts = 0 if self._status.step > self._most_steps else self._vain_starts + 1
        self._most_steps = max(self._most_steps, self._status.step)
        if self._vain_starts > _ATTEMPTS:
            self._fail(
                PriorkitError(
                    f"Ray workers died {_ATTEMPTS} times in a row without a new step; they may need more memory, so "
                    "smaller batches or train.accumulate; see Ray's logs for the cause. The same command resumes from "
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
        """Record the outcome of training, as sent by rank 0. Ignore it if a newer attempt has taken over.

        The recorded outcome covers all attempts: its `first_step` is the number of steps completed before the first
        attempt.

        Args:
            attempt: attempt number of the caller.
            outcome: result of the caller's training loop.
        """
        if attempt == self._status.attempt:
            # count steps from the start of the first attempt
            first = outcome.first_step if self._first_step is None else self._first_step
            self._status = replace(self._status, outcome=replace(outcome, first_step=first), step=outcome.step)

    def fail(self, error: bytes) -> None:
        """Record an exception from any rank. Only the first exception is kept. See `Status.error` for the format."""
        if self._status.error is None:
            self._status = replace(self._status, error=error)

    def _fail(self, error: Exception, text: str) -> None:
        self.fail(pickle.dumps((error, text)))

    def stop(self) -> None:
        """Request that training write a checkpoint and stop.

        The first rank receives the request in the reply to its next progress report, and passes it on to all other
        ranks.
        """
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
        """Return True if the coordinator's last reply to this rank requested a stop.

        Only the first rank sends reports and receives replies. On all other ranks, always return False.
        """
        return self._stop

    def before_writing(self) -> None:
        """Send the latest progress to the coordinator, and raise TakenOver if new workers have taken over training."""
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
