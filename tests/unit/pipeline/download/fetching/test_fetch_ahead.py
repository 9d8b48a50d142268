"""Background fetch: the order of rows, when they start, and how much memory they use."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import pytest

from priorkit.pipeline.download.fetching.buffer import Claim
from priorkit.pipeline.download.fetching.fetch_ahead import FetchAhead, RowMaker
from priorkit.pipeline.download.rows import Row

BODY, IMAGE = 1000, 100


class Web:
    """Rows that finish when a test allows it, with a record of those that have started."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.held_back: dict[str, threading.Event] = {}
        self.open = False

    @contextlib.asynccontextmanager
    async def tools(self) -> AsyncIterator[None]:
        self.open = True
        yield
        self.open = False

    def makers(self, task: tuple[str, int]) -> list[RowMaker]:
        name, rows = task
        return [partial(self.make, f"{name}{number}") for number in range(rows)]

    async def make(self, key: str, claim: Claim) -> Row:
        assert self.open
        self.begun.append(key)
        try:
            while key in self.held_back and not self.held_back[key].is_set():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled.append(key)
            raise
        claim.arrived(BODY)
        await asyncio.sleep(0)
        if "bug" in key:
            raise RuntimeError(key)
        return Row({"key": key}, image=bytes(IMAGE))

    def hold(self, key: str) -> threading.Event:
        self.held_back[key] = threading.Event()
        return self.held_back[key]


@pytest.fixture
def web() -> Web:
    return Web()


Ahead = FetchAhead[tuple[str, int]]


@contextlib.contextmanager
def fetching(web: Web, buffer_bytes: int = 10**9, max_rows: int = 1000) -> Iterator[Ahead]:
    ahead: Ahead = FetchAhead(web.tools(), web.makers, buffer_bytes=buffer_bytes, max_rows=max_rows)
    try:
        yield ahead
    finally:
        ahead.close()
        assert "fetch" not in {thread.name for thread in threading.enumerate()}
        assert not web.open


def keys(name: str, rows: int) -> list[str]:
    return [f"{name}{number}" for number in range(rows)]


def taken(ahead: Ahead, task: tuple[str, int], following: tuple[str, int] | None = None) -> list[str]:
    return [row.meta["key"] for row in ahead.rows(task, following)]


def unused(ahead: Ahead) -> bool:
    buffer = ahead._buffer
    return buffer.bytes_used == buffer.body_bytes == buffer.unfinished == buffer.expected_bodies == 0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end, "the condition never became true"
        time.sleep(0.001)


def test_rows_come_in_order_and_a_slow_row_delays_no_start(web: Web) -> None:
    slow = web.hold("a0")
    with fetching(web) as ahead:
        threading.Thread(target=lambda: (until(lambda: len(web.begun) == 500), slow.set())).start()
        assert taken(ahead, ("a", 500)) == keys("a", 500)
        assert taken(ahead, ("b", 3)) == keys("b", 3)
        assert taken(ahead, ("none", 0)) == []


def test_the_next_task_starts_before_the_last_rows_of_this_one_finish(web: Web) -> None:
    slow = web.hold("a9")
    with fetching(web) as ahead:
        rows = ahead.rows(("a", 10), ("b", 10))
        assert [next(rows).meta["key"] for _ in range(9)] == keys("a", 9)
        until(lambda: web.begun == keys("a", 10) + keys("b", 10))
        slow.set()
        assert [row.meta["key"] for row in rows] == ["a9"]
        assert taken(ahead, ("b", 10), ("c", 2)) == keys("b", 10)
        assert taken(ahead, ("c", 2)) == keys("c", 2)
    assert web.begun == keys("a", 10) + keys("b", 10) + keys("c", 2)  # each once


def test_rows_read_ahead_for_another_task_are_cancelled(web: Web) -> None:
    web.hold("b1")
    with fetching(web) as ahead:
        assert taken(ahead, ("a", 3), ("b", 3)) == keys("a", 3)
        until(lambda: "b2" in web.begun)
        assert taken(ahead, ("c", 3), ("b", 2)) == keys("c", 3)
        assert web.cancelled == ["b1"]
        web.held_back.clear()
        assert taken(ahead, ("b", 2)) == keys("b", 2)


def test_no_more_rows_start_than_allowed(web: Web) -> None:
    slow = web.hold("a0")
    for key in keys("a", 50)[1:]:
        web.held_back[key] = slow
    with fetching(web, max_rows=7) as ahead:
        rows = ahead.rows(("a", 50), None)
        begun: list[str] = []
        threading.Thread(
            target=lambda: (
                until(lambda: len(web.begun) >= 7),
                time.sleep(0.05),
                begun.extend(web.begun),
                slow.set(),
            )
        ).start()
        assert len(list(rows)) == 50
        assert begun == keys("a", 7)


def test_no_row_starts_while_the_buffer_is_full(web: Web) -> None:
    """Images that wait for a slow row fill the buffer; more rows start once the slow row is done."""
    slow = web.hold("a0")
    limit = 20 * BODY
    with fetching(web, buffer_bytes=limit, max_rows=2) as ahead:
        begun: list[int] = []
        ahead._buffer.mean_bytes = BODY
        threading.Thread(
            target=lambda: (
                until(lambda: len(web.begun) > 150),
                time.sleep(0.2),
                begun.append(len(web.begun)),
                slow.set(),
            )
        ).start()
        assert taken(ahead, ("a", 1000)) == keys("a", 1000)
    assert 150 < begun[0] <= 200


@pytest.mark.parametrize("limit", [1, IMAGE, BODY])
def test_the_next_row_always_starts(web: Web, limit: int) -> None:
    with fetching(web, buffer_bytes=limit) as ahead:
        assert taken(ahead, ("a", 50), ("b", 50)) == keys("a", 50)
        assert taken(ahead, ("b", 50)) == keys("b", 50)
        assert unused(ahead)


def test_a_bug_in_a_row_is_raised(web: Web) -> None:
    with fetching(web) as ahead:
        with pytest.raises(RuntimeError, match="bug0"):
            list(ahead.rows(("bug", 5), None))
        assert taken(ahead, ("a", 5)) == keys("a", 5)
        until(lambda: unused(ahead))


def test_an_error_of_the_row_makers_is_raised(web: Web) -> None:
    def makers(task: tuple[str, int]) -> Iterator[RowMaker]:
        yield from web.makers(task)
        raise OSError("the old shard is gone")

    ahead: Ahead = FetchAhead(web.tools(), makers, buffer_bytes=10**9, max_rows=1000)
    with contextlib.closing(ahead):
        with pytest.raises(OSError, match="the old shard is gone"):
            taken(ahead, ("a", 3))


def test_closing_the_rows_cancels_those_that_run(web: Web) -> None:
    web.hold("a5")
    with fetching(web) as ahead:
        rows = ahead.rows(("a", 10), None)
        next(rows)
        rows.close()
        assert web.cancelled == ["a5"]
        web.held_back.clear()
        assert taken(ahead, ("a", 10)) == keys("a", 10)


def test_closing_cancels_running_rows(web: Web) -> None:
    web.hold("b3")
    with fetching(web) as ahead:
        assert taken(ahead, ("a", 3), ("b", 5)) == keys("a", 3)
        until(lambda: "b4" in web.begun)
    assert web.cancelled == ["b3"]
