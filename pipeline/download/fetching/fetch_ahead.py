"""Background fetching of list rows, with results delivered in input order.

Fetches for the next shard start before the current shard is finished, so that the network does not become idle.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import itertools
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

from ..rows import Row
from .buffer import Buffer, Claim

Task = TypeVar("Task")
Result = TypeVar("Result")

_MAX_STARTED = 8192
"""Maximum number of rows in progress or waiting to be written: about 10 seconds of work at 800 rows per second."""
_BLOCK_ROWS = 64
"""Maximum number of rows passed to the shard writer at once."""
_GATHER_SECONDS = 0.05
"""Maximum number of seconds that a finished row waits for further rows before it is passed to the shard writer.

Passing rows one by one would need a thread switch for each row, which takes longer than writing the row.
"""
_STOP_SECONDS = 5.0
"""Maximum number of seconds that `close` waits for running rows to be cancelled, and then for the thread to end."""

RowMaker: TypeAlias = Callable[[Claim], Coroutine[Any, Any, Row]]
"""Coroutine function that downloads one list row and returns it with the result.

Its argument is the claim that reserves buffer memory for the row. The function must call `Claim.arrived` when it has
received the response body.
"""


@dataclass(eq=False)
class _TaskRows(Generic[Task]):
    """Rows of one task (such as a shard to download) that have not been passed to the consumer yet."""

    task: Task
    pending: Iterator[RowMaker]
    """Coroutine functions that download the rows that have not started yet."""
    started: collections.deque[tuple[asyncio.Task[Row], Claim]] = field(default_factory=collections.deque)
    """Rows that have started, in order: for each row, its asyncio task and its claim to buffer memory."""
    all_started: bool = False


class FetchAhead(Generic[Task]):
    """Producer that downloads the rows of consecutive tasks, such as shards, in the background.

    Each row is downloaded by a row maker, a coroutine function. All row makers run in one event loop in a separate
    thread, so running fetches are not delayed by slow writes or by the switch to the next task.

    Args:
        tools: context manager that opens the resources of the row makers, such as connections. It is entered in the
            event loop when this object is created, and exited by `close`.
        makers: function that returns the row makers of a task, in order.
        buffer_bytes: maximum number of bytes of bodies and images in memory.
        max_rows: maximum number of unfinished rows.
    """

    def __init__(
        self,
        tools: AbstractAsyncContextManager[None],
        makers: Callable[[Task], Iterable[RowMaker]],
        *,
        buffer_bytes: int,
        max_rows: int,
    ) -> None:
        self._tools, self._makers = tools, makers
        self._buffer = Buffer(buffer_bytes, max_rows, self._start_rows)
        self._queue: collections.deque[_TaskRows[Task]] = collections.deque()
        """Current task and next task. Only the event loop modifies this queue."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetch", daemon=True)
        self._thread.start()
        self._call(tools.__aenter__())

    def rows(self, task: Task, following: Task | None) -> Generator[Row, None, None]:
        """Yield the rows of a task in order.

        Args:
            task: task whose rows are yielded.
            following: next task, whose rows start once all rows of `task` have started; None if there is no next task.
        """
        wanted = [_TaskRows(each, iter(self._makers(each))) for each in (task, following) if each is not None]
        self._call(self._plan(wanted))
        try:
            while rows := self._call(self._take()):
                yield from rows
        finally:
            self._call(self._end_first())

    def close(self) -> None:
        """Cancel all running rows and stop the event loop."""
        ending = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        with contextlib.suppress(concurrent.futures.TimeoutError):
            ending.result(_STOP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the event loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _plan(self, wanted: list[_TaskRows[Task]]) -> None:
        """Replace the queue with the tasks in `wanted`.

        Tasks at the front of the queue that match the front of `wanted` stay in the queue and keep their started rows.
        All other queued tasks are cancelled.
        """
        shared = 0
        while shared < min(len(self._queue), len(wanted)) and self._queue[shared].task == wanted[shared].task:
            shared += 1
        while len(self._queue) > shared:
            await _cancel(self._queue.pop())
        self._queue.extend(wanted[shared:])
        self._start_rows()

    def _start_rows(self) -> None:
        """Start rows in order while the buffer has room and the queue has fewer than `_MAX_STARTED` started rows."""
        room = _MAX_STARTED - sum(len(entry.started) for entry in self._queue)
        for entry in self._queue:
            while not entry.all_started:
                if room <= 0 or not self._buffer.has_room():
                    return
                try:
                    maker = next(entry.pending, None)
                except Exception as error:  # raised later, to the consumer of the rows
                    maker = partial(_fail, error)
                    entry.pending = iter(())
                if maker is None:
                    entry.all_started = True
                    break
                claim = Claim(self._buffer)
                entry.started.append((self._loop.create_task(_make(maker, claim)), claim))
                room -= 1

    async def _take(self) -> list[Row]:
        """Return the next rows of the current task, waiting until there is at least one.

        Return an empty list after the last row.
        """
        started = self._queue[0].started
        if started:
            block = [row for row, _ in itertools.islice(started, _BLOCK_ROWS)]
            await asyncio.wait(block[:1])
            await asyncio.wait(block, timeout=_GATHER_SECONDS)
        finished: list[Row] = []
        while started and started[0][0].done() and len(finished) < _BLOCK_ROWS:
            row, claim = started.popleft()
            claim.release()
            finished.append(row.result())
        self._start_rows()
        return finished

    async def _end_first(self) -> None:
        """Cancel the remaining rows of the current task and remove the task from the queue."""
        await _cancel(self._queue.popleft())
        self._start_rows()

    async def _close(self) -> None:
        """Cancel all tasks and exit the context manager `tools`."""
        while self._queue:
            await _cancel(self._queue.popleft())
        await self._tools.__aexit__(None, None, None)


async def _make(maker: RowMaker, claim: Claim) -> Row:
    """Run a row maker, count the encoded image in the buffer, and return the row."""
    row = await maker(claim)
    claim.finished(len(row.image or b""))
    return row


async def _fail(error: Exception, claim: Claim) -> Row:
    """Raise `error` instead of downloading a row.

    This row maker is used if the iterator of row makers fails, so that the consumer of the rows receives the error.
    """
    raise error


async def _cancel(entry: _TaskRows[Task]) -> None:
    """Cancel the started rows of a task and release their buffer memory."""
    entry.all_started = True
    for row, _ in entry.started:
        row.cancel()
    await asyncio.gather(*(row for row, _ in entry.started), return_exceptions=True)
    for _, claim in entry.started:
        claim.release()
    entry.started.clear()
