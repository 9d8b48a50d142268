"""Memory limit for a download: caps the number of list rows in progress and the bytes that they hold in memory."""

from __future__ import annotations

from collections.abc import Callable

_FIRST_MEAN_BYTES = 100_000.0
"""Initial estimate of the mean size of a response body in bytes."""
_BODIES_SHARE = 8
"""Maximum share of the buffer for undecoded response bodies, given as a divisor: 8 means 1/8 of the buffer.

Once the share is reached, new downloads wait. A larger share would not keep the decoders busier.
"""
_MEAN_OVER = 64
"""Approximate number of response bodies in the moving average of body sizes; each new body has a weight of 1/64."""


class Buffer:
    """Memory accounting for a download: counts the started rows of the URL list and the bytes that they hold in memory.

    `has_room` decides whether the download of another row may start. Rows must be started in input order, and a started
    row is never paused. The next row to be written has therefore always been started, and can finish even when the
    buffer is full. This prevents deadlocks.

    Args:
        limit: maximum number of bytes. Once it is reached, no further row starts, but running fetches may exceed it.
        max_rows: maximum number of rows that have started but have no result yet.
        changed: callback that runs after each change of the counts, because the buffer may then have room again.
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
        """Return True if the download of another row may start.

        An empty buffer always has room. Otherwise, there is no room in any of these cases:

        - `max_rows` rows are unfinished.
        - The bodies that wait for a decoder or are being decoded take at least 1/`_BODIES_SHARE` of `limit`.
        - All bodies and images together take at least `limit` bytes. The mean size of recent bodies is used for each
          body that has not arrived yet.
        """
        if self.unfinished == 0 and self.bytes_used == 0:
            return True
        if self.unfinished >= self._max_rows or self.body_bytes * _BODIES_SHARE >= self._limit:
            return False
        return self.bytes_used + self.expected_bodies * self.mean_bytes < self._limit


class Claim:
    """Buffer memory that is reserved for one row of the URL list, from the start of its download until `release`.

    Until the response body arrives, the reserved size is an estimate: the mean size of recent bodies. When the body
    arrives, the reserved size becomes the size of the body. When the row has a result, the reserved size becomes
    the size of the encoded image, or 0 if the row has no image.
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
        """Record that the row has a result, either an image or a failure, and now waits to be written.

        Args:
            size: size of the encoded image in bytes; 0 if the row has no image.
        """
        self._image_bytes = size
        self._buffer.unfinished -= 1
        if self._body_bytes is None:
            self._buffer.expected_bodies -= 1
        self._buffer.body_bytes -= self._body_bytes or 0
        self._buffer.bytes_used += size - (self._body_bytes or 0)
        self._buffer.changed()

    def release(self) -> None:
        """Free the buffer memory that is reserved for the row.

        Call this when the row is passed to the shard writer, or when its download is cancelled.
        """
        if self._image_bytes is None:
            self.finished(0)
        self._buffer.bytes_used -= self._image_bytes or 0
        self._buffer.changed()
