"""Download progress: finished rows, images and bits per second, and success rate."""

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
"""Minimum number of seconds between two progress reports from `add_row` or `add_rows`."""
_RATE_SECONDS = 60.0
"""Number of seconds over which the rates are averaged."""


class DownloadProgress:
    """Counter of finished rows. It reports the progress to a callback and passes the results to a success-rate check.

    Args:
        progress: callback that receives the number of finished rows, the total number of rows (None if unknown) and a
            string that shows the download rates.
        done: number of rows that were already finished when the run started.
        total: number of rows in the whole download; None if the list has not been counted.
        watch: success-rate check, which raises `PriorkitError` when too few rows succeed; None to skip the check.
    """

    def __init__(self, progress: ProgressCallback, done: int, total: int | None, watch: SuccessWatch | None) -> None:
        self._progress, self._total, self._watch = progress, total, watch
        self._rows, self._fetched, self._images, self._bytes = done, 0, 0, 0
        self._marks = collections.deque([(time.monotonic(), 0, 0)])
        """Time, total images and total bytes at each recent progress report. The rates are computed from these."""
        self.report()

    def add_row(self, row: Row) -> None:
        """Count a row that finished in this process. Rows that were copied from an existing shard are ignored."""
        if not row.reused:
            self.add_rows({failure_label(row): 1}, row.body_bytes)

    def add_rows(self, labels: Mapping[str, int], bytes: int) -> None:
        """Count fetched rows, report the progress if a report is due, and check the success rate.

        The rows can be those of a whole shard that another process has finished.

        Args:
            labels: number of rows with each label: `success`, or a failure label such as `dns` or `http_4xx 404`.
            bytes: total size of the response bodies in bytes.

        Raises:
            PriorkitError: the success rate is below the minimum.
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
        """Call the progress callback immediately. `add_row` and `add_rows` call the callback at most twice a second."""
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
