"""Download progress: rows so far, images and bits per second, and the success rate."""

from __future__ import annotations

import collections
import time
from collections.abc import Mapping

from ..compute.stage import ProgressCallback
from .collapse import SuccessWatch
from .outcomes import SUCCESS
from .rows import Row
from .statistics import failure_label

_UPDATE_SECONDS = 0.5
"""Least number of seconds between two calls of the callback."""
_RATE_SECONDS = 60.0
"""Seconds over which the rates are averaged."""


class DownloadProgress:
    """Counter of fetched rows, which calls a progress callback and passes the outcomes to a success watch.

    Args:
        progress: called with the rows so far, the total, and a text with rates.
        done: rows that are complete from the start.
        total: rows of the whole download; None if the list has not been counted.
        watch: raises when success collapses; None to accept any failures.
    """

    def __init__(self, progress: ProgressCallback, done: int, total: int | None, watch: SuccessWatch | None) -> None:
        self._progress, self._total, self._watch = progress, total, watch
        self._rows, self._fetched, self._images, self._bytes = done, 0, 0, 0
        self._marks = collections.deque([(time.monotonic(), 0, 0)])
        """Times of the last calls of the callback, with the images and bytes until then."""
        self.report()

    def add_row(self, row: Row) -> None:
        """Add a row that was finished in this process. Reused rows are not counted."""
        if not row.reused:
            self.add_rows({failure_label(row): 1}, row.body_bytes)

    def add_rows(self, labels: Mapping[str, int], bytes: int) -> None:
        """Add fetched rows, such as those of a shard that another process finished.

        Args:
            labels: number of rows for each failure label, or `success`.
            bytes: sum of the sizes of their bodies.

        Raises:
            PriorkitError: success has collapsed.
        """
        rows = sum(labels.values())
        self._rows += rows
        self._fetched += rows
        self._images += labels.get(SUCCESS, 0)
        self._bytes += bytes
        if time.monotonic() - self._marks[-1][0] >= _UPDATE_SECONDS:
            self.report()
        if self._watch is not None:
            self._watch.add(labels)

    def report(self) -> None:
        """Call the progress callback; `add_row` and `add_rows` do so twice a second."""
        now = time.monotonic()
        self._marks.append((now, self._images, self._bytes))
        while now - self._marks[0][0] > _RATE_SECONDS and len(self._marks) > 2:
            self._marks.popleft()
        start, images, bytes = self._marks[0]
        seconds = max(now - start, 1e-3)
        note = ""
        if self._fetched:
            note = (
                f"{(self._images - images) / seconds:,.0f} img/s, {self._images / self._fetched:.0%} success, "
                f"{(self._bytes - bytes) * 8e-6 / seconds:,.1f} Mbit/s"
            )
        self._progress(self._rows, self._total, note)
