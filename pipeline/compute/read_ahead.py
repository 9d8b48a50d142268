"""Background reading and decoding of samples, including the first samples of the next shard."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Task = TypeVar("Task")
Sample = TypeVar("Sample")
Decoded = TypeVar("Decoded")

_POLL_SECONDS = 0.1
"""Seconds between checks for a stop request while the reading thread waits for room in the queue of decoded samples."""
_STOP_SECONDS = 1.0
"""Maximum number of seconds to wait for the reading thread to stop, since a read from the network may hang."""


class _Stream(Generic[Decoded]):
    """Iterable stream of the decoded samples of one task, in order.

    A thread reads the samples and passes each to the decoding threads. An exception that is raised while a sample is
    read or decoded is raised again during the iteration.
    """

    def __init__(
        self,
        read: Callable[[], Iterator[Sample]],
        decode: Callable[[Sample], Decoded],
        threads: ThreadPoolExecutor,
        depth: int,
    ) -> None:
        self._ready: queue.Queue[Future[Decoded] | BaseException | None] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(read, decode, threads), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Decoded]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item.result()

    def stop(self) -> None:
        """Stop reading, and cancel all decoding that has not started.

        If the reading thread does not end within `_STOP_SECONDS`, because a read hangs, leave it running.
        """
        self._stopped.set()
        self._drain()  # the reading thread may wait for room in the queue
        self._thread.join(_STOP_SECONDS)
        self._drain()

    def _drain(self) -> None:
        """Remove all samples from the queue, and cancel their decoding."""
        while not self._ready.empty():
            item = self._ready.get()
            if isinstance(item, Future):
                item.cancel()

    def _run(
        self, read: Callable[[], Iterator[Sample]], decode: Callable[[Sample], Decoded], threads: ThreadPoolExecutor
    ) -> None:
        try:
            for sample in read():
                if self._stopped.is_set():
                    return
                self._put(threads.submit(decode, sample))
            self._put(None)
        except BaseException as error:  # raised again in `__iter__`
            self._put(error)

    def _put(self, item: Future[Decoded] | BaseException | None) -> None:
        """Put an item in the queue, waiting until there is room, or drop the item once the stream is stopped."""
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue


class DecodeAhead(Generic[Task, Sample, Decoded]):
    """Background reader that yields decoded samples, one task after another.

    Args:
        read: function that yields the samples of a task; runs in a separate thread.
        decode: function that decodes a sample; runs in several threads.
        threads: number of decoding threads.
        depth: maximum number of samples to read and decode ahead. The limit applies separately to the current task
            and to the next task.
    """

    def __init__(
        self,
        read: Callable[[Task], Iterator[Sample]],
        decode: Callable[[Sample], Decoded],
        *,
        threads: int,
        depth: int,
    ) -> None:
        self._read, self._decode, self._depth = read, decode, depth
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._next: tuple[Task, _Stream[Decoded]] | None = None
        self._running: list[_Stream[Decoded]] = []

    def samples(self, task: Task, following: Task | None) -> Iterator[Decoded]:
        """Yield the decoded samples of a task in order.

        After the last sample, start reading and decoding the samples of `following` in the background, unless it is
        None. If `following` is the `task` of the next call, that call yields these samples. Otherwise, they are
        discarded. Exceptions raised by `read` or `decode` propagate to the caller.
        """
        stream = self._take(task)
        try:
            yield from stream
            if following is not None:
                self._next = (following, self._start(following))
        finally:
            self._stop(stream)

    def close(self) -> None:
        """Stop all reading and decoding, so that no running thread prevents the interpreter from exiting."""
        self._next = None
        while self._running:
            self._stop(self._running[-1])
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _stop(self, stream: _Stream[Decoded]) -> None:
        stream.stop()
        if stream in self._running:
            self._running.remove(stream)

    def _take(self, task: Task) -> _Stream[Decoded]:
        if self._next is None:
            return self._start(task)
        started, stream = self._next
        self._next = None
        if started == task:
            return stream
        self._stop(stream)
        return self._start(task)

    def _start(self, task: Task) -> _Stream[Decoded]:
        stream = _Stream(lambda: self._read(task), self._decode, self._threads, self._depth)
        self._running.append(stream)
        return stream
