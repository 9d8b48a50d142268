"""Retry policy: which failures are tried again, and after how many seconds."""

from __future__ import annotations

import pytest
from yarl import URL

from priorkit.pipeline.download.fetching.retry import backoff, retry_after, retry_wait
from priorkit.pipeline.download.outcomes import FetchError

PAGE = URL("http://a/1")
PASSING = FetchError("http_5xx", "503", transient=True)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("120", 120, 120),
        (" 0 ", 0, 0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0, 0),
        ("Fri, 31 Dec 2199 23:59:59 GMT", 4e9, 9e9),
        ("Friday, 31-Dec-99 23:59:59 GMT", 0, 4e9),
        ("Fri Dec 31 23:59:59 1999", 0, 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, low: float, high: float) -> None:
    seconds = retry_after(value)
    assert seconds is not None
    assert low <= seconds <= high


@pytest.mark.parametrize("value", ["", "soon", "-5", "1.5", "9" * 5000, "Fri, 99 Dec 1999 23:59:59 GMT", "\x00", "1e9"])
def test_any_other_retry_after_is_ignored(value: str) -> None:
    assert retry_after(value) is None


def test_the_backoff_doubles_and_the_url_seeds_its_jitter() -> None:
    one, other = URL("http://a/1"), URL("http://a/2")
    waits = [backoff(one, attempt) for attempt in range(6)]
    for attempt, wait in enumerate(waits):
        assert 0.25 * 2**attempt <= wait <= 0.75 * 2**attempt
    assert waits == [backoff(one, attempt) for attempt in range(6)]
    assert waits[0] != backoff(other, 0)


def test_a_transient_failure_waits_for_the_backoff() -> None:
    for attempt in range(3):
        wait = retry_wait(PAGE, PASSING, attempt=attempt, retries=3, seconds_left=100.0)
        assert wait == backoff(PAGE, attempt)


def test_a_lasting_failure_is_not_tried_again() -> None:
    error = FetchError("http_4xx", "404")
    assert retry_wait(PAGE, error, attempt=0, retries=3, seconds_left=100.0) is None


@pytest.mark.parametrize(("attempt", "retries", "again"), [(0, 0, False), (0, 1, True), (1, 1, False), (2, 3, True)])
def test_attempts_are_limited(attempt: int, retries: int, again: bool) -> None:
    wait = retry_wait(PAGE, PASSING, attempt=attempt, retries=retries, seconds_left=100.0)
    assert (wait is not None) == again


def test_no_wait_reaches_the_deadline() -> None:
    wait = backoff(PAGE, 0)
    assert retry_wait(PAGE, PASSING, attempt=0, retries=1, seconds_left=wait) is None
    assert retry_wait(PAGE, PASSING, attempt=0, retries=1, seconds_left=wait + 1e-9) == wait


@pytest.mark.parametrize(("asked", "expected"), [(30.0, 30.0), (0.0, backoff(PAGE, 0)), (None, backoff(PAGE, 0))])
def test_the_longer_of_backoff_and_retry_after_counts(asked: float | None, expected: float) -> None:
    error = FetchError("http_429", "429", transient=True, retry_after=asked)
    assert retry_wait(PAGE, error, attempt=0, retries=1, seconds_left=100.0) == expected
    assert retry_wait(PAGE, error, attempt=0, retries=1, seconds_left=min(30.0, expected)) is None
