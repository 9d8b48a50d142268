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
"""Timeout in seconds for each of the two waits in `close`: for the cleanup to finish, and for the thread to end."""

RowMaker: TypeAlias = Callable[[Claim], Coroutine[Any, Any, Row]]
"""Coroutine function that downloads the image of one list row, and returns the row with the result.

Its argument is the claim that reserves buffer memory for the row. The function must call `Claim.arrived` when it has
received the response body.
"""


@dataclass(eq=False)
class _TaskRows(Generic[Task]):
    """Rows of one task (for example, of one shard to download) that `FetchAhead` has not passed to its consumer yet."""

    task: Task
    pending: Iterator[RowMaker]
    """Coroutine functions that download the rows that have not started yet."""
    started: collections.deque[tuple[asyncio.Task[Row], Claim]] = field(default_factory=collections.deque)
    """Rows that have started, in order: for each row, its asyncio task and its claim to buffer memory."""
    all_started: bool = False


class FetchAhead(Generic[Task]):
    """Downloader that fetches the rows of a task, such as a shard, in the background while earlier rows are written.

    Call `rows` for one task after another to get the finished rows of each. Each row is downloaded by a row maker,
    which is a coroutine function. All row makers run in one event loop in a separate thread. Slow writes and the switch
    to the next task therefore do not delay running fetches.

    Args:
        tools: asynchronous context manager that opens the resources of the row makers, such as connections. It is
            entered when this object is created and exited by `close`, both in the event loop.
        makers: function that takes a task and returns one row maker for each of its rows, in input order.
        buffer_bytes: maximum number of bytes of response bodies and images in memory.
        max_rows: maximum number of rows that have started but have no result yet.
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
        """Rows of the current task, then rows of the next task. Only the event loop modifies this queue."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetch", daemon=True)
        self._thread.start()
        self._call(tools.__aenter__())

    def rows(self, task: Task, following: Task | None) -> Generator[Row, None, None]:
        """Download the rows of a task, and yield each finished row in input order.

        If the caller closes the generator early, the work on the remaining rows of `task` is cancelled.

        Args:
            task: task whose rows are yielded.
            following: next task; the download of its rows begins as soon as the last row of `task` has been started.
                None if there is no next task.
        """
        wanted = [_TaskRows(each, iter(self._makers(each))) for each in (task, following) if each is not None]
        self._call(self._plan(wanted))
        try:
            while rows := self._call(self._take()):
                yield from rows
        finally:
            self._call(self._end_first())

    def close(self) -> None:
        """Cancel the downloads of all started rows, exit the context manager `tools`, and stop the event loop.

        If the first two steps take longer than `_STOP_SECONDS`, stop the event loop without waiting for them to finish.
        """
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
        """Make the queue contain exactly the tasks in `wanted`, and start further rows.

        The queue and `wanted` are compared from the front. As long as their tasks are equal, the queued tasks stay and
        keep their started rows. From the first difference on, the queued tasks are cancelled, and the remaining tasks
        in `wanted` take their place.

        Args:
            wanted: current task, followed by the next task if there is one.
        """
        shared = 0
        while shared < min(len(self._queue), len(wanted)) and self._queue[shared].task == wanted[shared].task:
            shared += 1
        while len(self._queue) > shared:
            await _cancel(self._queue.pop())
        self._queue.extend(wanted[shared:])
        self._start_rows()

    def _start_rows(self) -> None:
        """Start the download of further rows, first those of the current task and then those of the next task.

        Stop when the buffer has no room, or when the queue contains `_MAX_STARTED` rows that are in progress or wait to
        be written.
        """
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
        """Return the next finished rows of the current task in input order, at most `_BLOCK_ROWS`.

        Wait until there is at least one such row. After the last row of the task, return an empty list.
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
        """Cancel the work on the remaining rows of the current task, and remove the task from the queue."""
        await _cancel(self._queue.popleft())
        self._start_rows()

    async def _close(self) -> None:
        """Cancel the work on the rows of all queued tasks, and exit the context manager `tools`."""
        while self._queue:
            await _cancel(self._queue.popleft())
        await self._tools.__aexit__(None, None, None)


async def _make(maker: RowMaker, claim: Claim) -> Row:
    """Run a row maker, report the finished row and the size of its encoded image to `claim`, and return the row."""
    row = await maker(claim)
    claim.finished(len(row.image or b""))
    return row


async def _fail(error: Exception, claim: Claim) -> Row:
    """Raise `error` instead of downloading a row.

    If the iterator over a task's row makers raises an exception, this function takes the place of the next row maker.
    The consumer of the rows then receives the exception.
    """
    raise error


async def _cancel(entry: _TaskRows[Task]) -> None:
    """Cancel the downloads of a task's started rows, wait until they have ended, and free their buffer memory."""
    entry.all_started = True
    for row, _ in entry.started:
        row.cancel()
    await asyncio.gather(*(row for row, _ in entry.started), return_exceptions=True)
    for _, claim in entry.started:
        claim.release()
    entry.started.clear()
