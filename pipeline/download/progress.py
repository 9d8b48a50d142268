"""How a download comes on: rows, images and bytes in a second, and the share of rows that gave an image."""

from __future__ import annotations

import collections
import time
from collections.abc import Mapping

from ..compute.stage import ProgressCallback
from .collapse import SuccessWatch
from .rows import Row
from .statistics import failure_label

_UPDATE_SECONDS = 0.5
_RATE_SECONDS = 60.0
"""Rates are those of the last minute."""


class DownloadProgress:
    """Adds up what is fetched, tells of it, and stops the download when success collapses.

    Args:
        done: rows that need nothing.
        total: rows in all; None where the list has to be read to its end to know.
    """

    def __init__(self, progress: ProgressCallback, done: int, total: int | None, watch: SuccessWatch | None) -> None:
        self._progress, self._total, self._watch = progress, total, watch
        self._rows, self._fetched, self._images, self._bytes = done, 0, 0, 0
        self._marks = collections.deque([(time.monotonic(), 0, 0)])
        """Times at which it was told, with the images and bytes by then."""
        self.tell()

    def add_row(self, row: Row) -> None:
        """Take in one row, as it is done in this process."""
        if not row.kept:
            self.add_rows({failure_label(row): 1}, row.body_bytes)

    def add_rows(self, labels: Mapping[str, int], bytes: int) -> None:
        """Take in rows by their labels, such as those that were fetched for a shard elsewhere."""
        rows = sum(labels.values())
        self._rows += rows
        self._fetched += rows
        self._images += labels.get("success", 0)
        self._bytes += bytes
        if time.monotonic() - self._marks[-1][0] >= _UPDATE_SECONDS:
            self.tell()
        if self._watch is not None:
            self._watch.add(labels)

    def tell(self) -> None:
        """Tell of all rows so far; done by itself twice a second."""
        now = time.monotonic()
        self._marks.append((now, self._images, self._bytes))
        while now - self._marks[0][0] > _RATE_SECONDS and len(self._marks) > 2:
            self._marks.popleft()
        begun, images, bytes = self._marks[0]
        seconds = max(now - begun, 1e-3)
        note = ""
        if self._fetched:
            note = (
                f"{(self._images - images) / seconds:,.0f} img/s, {self._images / self._fetched:.0%} success, "
                f"{(self._bytes - bytes) * 8e-6 / seconds:,.1f} Mbit/s"
            )
        self._progress(self._rows, self._total, note)
