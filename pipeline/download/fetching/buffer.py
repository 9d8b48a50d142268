"""Memory budget of a download: how many rows and bytes may be in progress between the network and the shard."""

from __future__ import annotations

from collections.abc import Callable

_FIRST_MEAN_BYTES = 100_000.0
"""Assumed size of a body in bytes until the first one arrives."""
_BODIES_SHARE = 8
"""Bodies that wait for a decoder may fill 1/8 of the buffer; more of them would not keep the decoders busier."""
_MEAN_OVER = 64
"""Number of recent bodies whose exponential mean predicts the size of the next ones."""


class Buffer:
    """Counter of the rows and bytes in progress, which decides whether another fetch may start.

    Rows start in input order, and no started row is stopped. So the row that the shard needs next has always started,
    its result is written as soon as it exists, and no deadlock is possible.

    Args:
        limit: largest number of bytes; the fetches that are running when it is reached may exceed it.
        max_rows: largest number of unfinished rows.
        changed: called when there may be room again.
    """

    def __init__(self, limit: int, max_rows: int, changed: Callable[[], None]) -> None:
        self._limit, self._max_rows, self.changed = limit, max_rows, changed
        self.bytes_used = 0
        """Bytes of bodies and images."""
        self.body_bytes = 0
        """Bytes of bodies that wait for a decoder."""
        self.unfinished = 0
        """Rows that have started and have no result."""
        self.expected_bodies = 0
        """Unfinished rows whose body has not arrived."""
        self.mean_bytes = _FIRST_MEAN_BYTES
        """Exponential mean of the sizes of recent bodies."""

    def has_room(self) -> bool:
        """Return whether another row may start, if the expected bodies have the mean size of recent ones."""
        if self.unfinished == 0 and self.bytes_used == 0:
            return True
        if self.unfinished >= self._max_rows or self.body_bytes * _BODIES_SHARE >= self._limit:
            return False
        return self.bytes_used + self.expected_bodies * self.mean_bytes < self._limit


class Claim:
    """Share of one row in a buffer: first an expected body, then the body, then its image, then nothing."""

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self._body_bytes: int | None = None
        self._image_bytes: int | None = None
        buffer.unfinished += 1
        buffer.expected_bodies += 1

    def arrived(self, size: int) -> None:
        """Record that the body has arrived, with its size in bytes."""
        self._body_bytes = size
        self._buffer.expected_bodies -= 1
        self._buffer.mean_bytes += (size - self._buffer.mean_bytes) / _MEAN_OVER
        self._buffer.body_bytes += size
        self._buffer.bytes_used += size
        self._buffer.changed()

    def finished(self, size: int) -> None:
        """Record that the row is finished and waits for its turn, with the size of its image in bytes."""
        self._image_bytes = size
        self._buffer.unfinished -= 1
        if self._body_bytes is None:
            self._buffer.expected_bodies -= 1
        self._buffer.body_bytes -= self._body_bytes or 0
        self._buffer.bytes_used += size - (self._body_bytes or 0)
        self._buffer.changed()

    def release(self) -> None:
        """Record that the row has been written or cancelled."""
        if self._image_bytes is None:
            self.finished(0)
        self._buffer.bytes_used -= self._image_bytes or 0
        self._buffer.changed()
