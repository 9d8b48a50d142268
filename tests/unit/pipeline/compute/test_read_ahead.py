"""Background reading and decoding: order, limits, errors and early starts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from priorkit.pipeline.compute.read_ahead import DecodeAhead

TASKS = {"a": range(20), "b": range(100, 107), "empty": range(0)}


class Source:
    """Source of numbers that records its tasks and reads."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.opened: list[str] = []

    def samples(self, task: str) -> Iterator[int]:
        self.opened.append(task)
        for number in TASKS[task]:
            self.read.append(number)
            yield number

    def decode(self, number: int) -> int:
        time.sleep(0.002 * (number % 3))  # later numbers may finish earlier
        return 2 * number


def ahead(source: Source, depth: int = 4) -> DecodeAhead[str, int, int]:
    return DecodeAhead(source.samples, source.decode, threads=3, depth=depth)


def wait_for(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_samples_come_decoded_and_in_order() -> None:
    reader = ahead(Source())
    for task in ("a", "empty", "b", "a"):
        assert list(reader.samples(task, None)) == [2 * number for number in TASKS[task]]


def test_no_more_is_read_than_the_depth_allows() -> None:
    source = Source()
    samples = ahead(source, depth=3).samples("a", None)
    assert next(samples) == 0
    wait_for(lambda: len(source.read) >= 5)
    time.sleep(0.1)
    assert len(source.read) <= 1 + 3 + 1  # yielded, queued, and one that waits for room
    samples.close()  # type: ignore[attr-defined]


def test_the_following_task_starts_at_the_end_and_is_read_once() -> None:
    source = Source()
    reader = ahead(source)
    first = reader.samples("a", "b")
    assert next(first) == 0
    assert source.opened == ["a"]
    assert list(first) == [2 * number for number in list(TASKS["a"])[1:]]
    wait_for(lambda: source.opened == ["a", "b"] and 100 in source.read)
    assert list(reader.samples("b", None)) == [2 * number for number in TASKS["b"]]
    assert source.opened == ["a", "b"]


def test_another_task_than_the_announced_one_may_follow() -> None:
    source = Source()
    reader = ahead(source)
    assert len(list(reader.samples("b", "a"))) == 7
    assert list(reader.samples("b", None)) == [2 * number for number in TASKS["b"]]
    assert list(reader.samples("a", None)) == [2 * number for number in TASKS["a"]]


@pytest.mark.parametrize("where", ["read", "decode"])
def test_an_error_is_raised_to_the_reader(where: str) -> None:
    source = Source()

    def read(task: str) -> Iterator[int]:
        yield from range(3)
        if where == "read":
            raise OSError("gone")
        yield 7

    def decode(number: int) -> int:
        if number == 7:
            raise OSError("gone")
        return source.decode(number)

    samples = DecodeAhead(read, decode, threads=2, depth=2).samples("a", None)
    assert [next(samples) for _ in range(3)] == [0, 2, 4]
    with pytest.raises(OSError, match="gone"):
        next(samples)


def test_closing_the_samples_ends_the_thread() -> None:
    before = threading.active_count()
    samples = ahead(Source(), depth=2).samples("a", None)
    next(samples)
    samples.close()  # type: ignore[attr-defined]
    wait_for(lambda: threading.active_count() <= before + 3)  # the decoding threads wait for work


def test_closing_ends_every_thread_even_of_unread_samples() -> None:
    """An exception, such as an interruption, may keep a reference to the samples until the interpreter ends."""
    before = set(threading.enumerate())  # other tests may leave threads until their objects are collected
    reader = ahead(Source(), depth=2)
    samples = reader.samples("b", "a")
    assert [next(samples) for _ in range(3)]
    other = reader.samples("a", None)
    next(other)
    reader.close()
    wait_for(lambda: before.issuperset(threading.enumerate()))
    del samples, other
