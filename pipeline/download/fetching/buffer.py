"""Memory budget of a download: limits the number of rows in progress and the bytes held in memory for them."""

from __future__ import annotations

from collections.abc import Callable

_FIRST_MEAN_BYTES = 100_000.0
"""Estimate of the mean body size in bytes that is used before any body has arrived."""
_BODIES_SHARE = 8
"""Share of the buffer, as a divisor (8 means 1/8), that undecoded response bodies may fill before new downloads wait.

A larger share would not keep the decoders busier.
"""
_MEAN_OVER = 64
"""Number of bodies that the moving average of body sizes roughly spans: each new body has a weight of 1/64."""


class Buffer:
    """Counter of rows in progress and their bytes, which decides whether the download of another row may start.

    Rows start in input order, and a row that has started is never paused. Therefore the row that is to be written next
    is always among the started rows. It can finish even when the buffer is full, so there are no deadlocks.

    Args:
        limit: maximum number of bytes. Once it is reached, no row starts, but running fetches may exceed it.
        max_rows: maximum number of unfinished rows.
        changed: callback that runs when the buffer may have room again.
    """

    def __init__(self, limit: int, max_rows: int, changed: Callable[[], None]) -> None:
        self._limit, self._max_rows, self.changed = limit, max_rows, changed
        self.bytes_used = 0
        """Total size in bytes of the bodies and images in the buffer."""
        self.body_bytes = 0
        """Total size in bytes of bodies that are waiting for a decoder or being decoded."""
        self.unfinished = 0
        """Number of rows that have started but have no result yet."""
        self.expected_bodies = 0
        """Number of unfinished rows whose body has not arrived yet."""
        self.mean_bytes = _FIRST_MEAN_BYTES
        """Exponential moving average of the body size in bytes."""

    def has_room(self) -> bool:
        """Return True if another row may start. An empty buffer always has room.

        A body that has not arrived yet is counted at the mean size of recent bodies.
        """
        if self.unfinished == 0 and self.bytes_used == 0:
            return True
        if self.unfinished >= self._max_rows or self.body_bytes * _BODIES_SHARE >= self._limit:
            return False
        return self.bytes_used + self.expected_bodies * self.mean_bytes < self._limit


class Claim:
    """One row's share of the buffer.

    It counts the response body, first at its expected size (the mean size of recent bodies) and then at its actual
    size. Once the row has a result, it counts the encoded image instead.
    """

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self._body_bytes: int | None = None
        self._image_bytes: int | None = None
        buffer.unfinished += 1
        buffer.expected_bodies += 1

    def arrived(self, size: int) -> None:
        """Record that the row's body has arrived.

        Args:
            size: size of the body in bytes.
        """
        self._body_bytes = size
        self._buffer.expected_bodies -= 1
        self._buffer.mean_bytes += (size - self._buffer.mean_bytes) / _MEAN_OVER
        self._buffer.body_bytes += size
        self._buffer.bytes_used += size
        self._buffer.changed()

    def finished(self, size: int) -> None:
        """Record that the row has succeeded or failed, and now waits to be written.

        Args:
            size: size of the image in bytes; 0 if the row has no image.
        """
        self._image_bytes = size
        self._buffer.unfinished -= 1
        if self._body_bytes is None:
            self._buffer.expected_bodies -= 1
        self._buffer.body_bytes -= self._body_bytes or 0
        self._buffer.bytes_used += size - (self._body_bytes or 0)
        self._buffer.changed()

    def release(self) -> None:
        """Release the row's share of the buffer. Call this when the row is passed to the shard writer or cancelled."""
        if self._image_bytes is None:
            self.finished(0)
        self._buffer.bytes_used -= self._image_bytes or 0
        self._buffer.changed()
