"""Makes the rows of shards in the background, in input order, those of the next shard while this one ends."""

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

Task = TypeVar("Task")
Result = TypeVar("Result")

_WINDOW = 8192
"""Rows that are under way or wait for their turn: those of 10 seconds at 800 a second."""
_HANDED_OVER = 64
"""Rows that are taken to the shard at once."""
_GATHER_SECONDS = 0.05
"""How long the first of them waits for the others: waking the other thread for each would cost more than writing it."""
_STOP_SECONDS = 5.0
"""Nobody who wants to end waits longer, as for a look-up of a name that hangs."""
_FIRST_MEAN = 100_000.0
"""Bytes of a body, as long as none is known."""
_BODIES_SHARE = 8
"""One part of the buffer in so many may hold bodies that wait for a decoder, which more of would not keep busier."""
_MEAN_OVER = 64
"""Bodies whose mean is what the next ones are expected to be."""


class Buffer:
    """Counts what lies in memory between the network and the shard, so that no fetch begins while it is too much.

    Rows begin in input order only, and none that has begun is held back. So the row whose turn it is has always begun,
    what waits for it is written as soon as it is there, and nothing can wait for ever.

    Args:
        limit: bytes that may be held. Fetches that are under way when it is reached come on top.
        most: rows that may be in the making.
        changed: called when there may be room again.
    """

    def __init__(self, limit: int, most: int, changed: Callable[[], None]) -> None:
        self._limit, self._most, self.changed = limit, most, changed
        self.held = 0
        """Bytes of bodies and images."""
        self.bodies = 0
        """Bytes of bodies."""
        self.in_making = 0
        """Rows that have begun and are not made."""
        self.expected = 0
        """Those of them whose body is not there."""
        self.mean = _FIRST_MEAN
        """Bytes of a body, of late."""

    def has_room(self) -> bool:
        """Whether another row may begin, if the bodies under way are as large as those of late."""
        if self.in_making == 0 and self.held == 0:
            return True
        if self.in_making >= self._most or self.bodies * _BODIES_SHARE >= self._limit:
            return False
        return self.held + self.expected * self.mean < self._limit


class Claim:
    """What one row holds of a buffer: a body that is expected, then that body, then the image of it, then nothing."""

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self._body: int | None = None
        self._image: int | None = None
        buffer.in_making += 1
        buffer.expected += 1

    def arrived(self, size: int) -> None:
        """The row's body is there."""
        self._body = size
        self._buffer.expected -= 1
        self._buffer.mean += (size - self._buffer.mean) / _MEAN_OVER
        self._buffer.bodies += size
        self._buffer.held += size
        self._buffer.changed()

    def made(self, size: int) -> None:
        """The row is made, with an image of so many bytes, and waits for its turn."""
        self._image = size
        self._buffer.in_making -= 1
        if self._body is None:
            self._buffer.expected -= 1
        self._buffer.bodies -= self._body or 0
        self._buffer.held += size - (self._body or 0)
        self._buffer.changed()

    def release(self) -> None:
        """The row is taken, or given up."""
        if self._image is None:
            self.made(0)
        self._buffer.held -= self._image or 0
        self._buffer.changed()


RowMaker: TypeAlias = Callable[[Claim], Coroutine[Any, Any, Row]]
"""Makes a row, and tells its claim when the body has arrived."""


@dataclass(eq=False)
class _Flight(Generic[Task]):
    """The rows of one task."""

    task: Task
    coming: Iterator[RowMaker]
    """Those that have not begun."""
    begun: collections.deque[tuple[asyncio.Task[Row], Claim]] = field(default_factory=collections.deque)
    """Those that have, without those that were taken."""
    all_begun: bool = False


class FetchAhead(Generic[Task]):
    """Rows of one task after the other, each made by a coroutine; all run in one event loop, in a thread of its own.

    So neither a slow store that rows are written to, nor the end of a task, holds up what is under way.

    Args:
        tools: what the coroutines work with; is entered in the loop, and left at `close`.
        makers: what makes the rows of a task, in order.
        buffer_bytes: bytes of bodies and images that may be held.
        most: rows that may be in the making.
    """

    def __init__(
        self,
        tools: AbstractAsyncContextManager[None],
        makers: Callable[[Task], Iterable[RowMaker]],
        *,
        buffer_bytes: int,
        most: int,
    ) -> None:
        self._tools, self._makers = tools, makers
        self._buffer = Buffer(buffer_bytes, most, self._begin)
        self._flights: collections.deque[_Flight[Task]] = collections.deque()
        """The task that is worked on, and the one after it. Changed in the loop only."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetch", daemon=True)
        self._thread.start()
        self._call(tools.__aenter__())

    def rows(self, task: Task, following: Task | None) -> Generator[Row, None, None]:
        """The rows of a task in order; those of the following one begin when all of this have begun."""
        wanted = [_Flight(each, iter(self._makers(each))) for each in (task, following) if each is not None]
        self._call(self._plan(wanted))
        try:
            while rows := self._call(self._take()):
                yield from rows
        finally:
            self._call(self._end_first())

    def close(self) -> None:
        """End all that is under way."""
        ending = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        with contextlib.suppress(concurrent.futures.TimeoutError):
            ending.result(_STOP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _plan(self, wanted: list[_Flight[Task]]) -> None:
        """Go on with what has begun of the wanted tasks, and drop all else."""
        kept = 0
        while kept < min(len(self._flights), len(wanted)) and self._flights[kept].task == wanted[kept].task:
            kept += 1
        while len(self._flights) > kept:
            await _drop(self._flights.pop())
        self._flights.extend(wanted[kept:])
        self._begin()

    def _begin(self) -> None:
        """Begin with as many rows as there is room for."""
        room = _WINDOW - sum(len(flight.begun) for flight in self._flights)
        for flight in self._flights:
            while not flight.all_begun:
                if room <= 0 or not self._buffer.has_room():
                    return
                try:
                    maker = next(flight.coming, None)
                except Exception as error:  # raised to whoever takes the rows
                    maker = partial(_fail, error)
                    flight.coming = iter(())
                if maker is None:
                    flight.all_begun = True
                    break
                claim = Claim(self._buffer)
                flight.begun.append((self._loop.create_task(_make(maker, claim)), claim))
                room -= 1

    async def _take(self) -> list[Row]:
        """The next rows of the first task, at least one; none at its end."""
        begun = self._flights[0].begun
        if begun:
            first = [made for made, _ in itertools.islice(begun, _HANDED_OVER)]
            await asyncio.wait(first[:1])
            await asyncio.wait(first, timeout=_GATHER_SECONDS)
        taken: list[Row] = []
        while begun and begun[0][0].done() and len(taken) < _HANDED_OVER:
            made, claim = begun.popleft()
            claim.release()
            taken.append(made.result())
        self._begin()
        return taken

    async def _end_first(self) -> None:
        await _drop(self._flights.popleft())
        self._begin()

    async def _close(self) -> None:
        while self._flights:
            await _drop(self._flights.popleft())
        await self._tools.__aexit__(None, None, None)


async def _make(maker: RowMaker, claim: Claim) -> Row:
    row = await maker(claim)
    claim.made(len(row.image or b""))
    return row


async def _fail(error: Exception, claim: Claim) -> Row:
    raise error


async def _drop(flight: _Flight[Task]) -> None:
    """Stop what is under way of a task that nobody waits for."""
    flight.all_begun = True
    for made, _ in flight.begun:
        made.cancel()
    await asyncio.gather(*(made for made, _ in flight.begun), return_exceptions=True)
    for _, claim in flight.begun:
        claim.release()
    flight.begun.clear()
