"""Background fetching of rows, delivered in input order. The next shard's rows start before the current shard ends."""

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
"""Maximum number of rows that have started but are not written yet: about 10 seconds of work at 800 rows per second."""
_BLOCK_ROWS = 64
"""Maximum number of rows passed to the shard writer at once."""
_GATHER_SECONDS = 0.05
"""Maximum number of seconds to wait for more finished rows before rows are passed to the shard writer.

Passing rows one by one would need a thread switch for each row, which takes longer than writing the row.
"""
_STOP_SECONDS = 5.0
"""Seconds that `close` waits for running work, such as a hung name lookup."""

RowMaker: TypeAlias = Callable[[Claim], Coroutine[Any, Any, Row]]
"""Coroutine function that makes one row. It must call `arrived` on the given claim when the row's body arrives."""


@dataclass(eq=False)
class _TaskRows(Generic[Task]):
    """Rows of one task that have not been written yet."""

    task: Task
    pending: Iterator[RowMaker]
    """Row makers of the rows that have not started."""
    started: collections.deque[tuple[asyncio.Task[Row], Claim]] = field(default_factory=collections.deque)
    """Rows that have started, in order, each with its claim."""
    all_started: bool = False


class FetchAhead(Generic[Task]):
    """Producer of rows for consecutive tasks. All row makers run in one event loop in a separate thread.

    Slow writes to the store and the change to the next task do not delay running fetches.

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

        Queued tasks that match the start of `wanted` keep their started rows. All other queued tasks are cancelled.
        """
        shared = 0
        while shared < min(len(self._queue), len(wanted)) and self._queue[shared].task == wanted[shared].task:
            shared += 1
        while len(self._queue) > shared:
            await _cancel(self._queue.pop())
        self._queue.extend(wanted[shared:])
        self._start_rows()

    def _start_rows(self) -> None:
        """Start rows in order while the buffer has room and fewer than `_MAX_STARTED` started rows are in the queue."""
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
    """Run a row maker, record the size of its image, and return the row."""
    row = await maker(claim)
    claim.finished(len(row.image or b""))
    return row


async def _fail(error: Exception, claim: Claim) -> Row:
    """Raise `error`. This row maker replaces a row maker that could not be created."""
    raise error


async def _cancel(entry: _TaskRows[Task]) -> None:
    """Cancel the started rows of a task and release their claims."""
    entry.all_started = True
    for row, _ in entry.started:
        row.cancel()
    await asyncio.gather(*(row for row, _ in entry.started), return_exceptions=True)
    for _, claim in entry.started:
        claim.release()
    entry.started.clear()
