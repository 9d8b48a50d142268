"""Retry policy for fetches: decides whether to try again after a failed attempt, and how long to wait.

A fetch is retried if the failure is transient, fewer than `download.retries` retries have been made, and the wait ends
before the URL's deadline. The wait is an exponential backoff with jitter, or the time in the server's Retry-After
header, whichever is longer.
"""

from __future__ import annotations

import email.utils
import random
import re
import time

from yarl import URL

from ..outcomes import FetchError

_FIRST_BACKOFF_SECONDS = 0.5
"""Mean wait in seconds before the second attempt. It doubles with each further attempt."""


def retry_wait(url: URL, error: FetchError, *, attempt: int, retries: int, seconds_left: float) -> float | None:
    """Return the number of seconds to wait before the next attempt, or None if the fetch must not be retried.

    A fetch is not retried if the failure is not transient, if all retries have been made, or if the wait would not end
    before the deadline.

    Args:
        url: URL to fetch, which seeds the jitter.
        error: failure of the last attempt.
        attempt: index of the failed attempt, counted from 0.
        retries: maximum number of attempts after the first.
        seconds_left: seconds until the URL's deadline.
    """
    if not error.transient or attempt >= retries:
        return None
    wait = max(backoff(url, attempt), error.retry_after or 0.0)
    return wait if wait < seconds_left else None


def backoff(url: URL, attempt: int) -> float:
    """Return the number of seconds to wait before the next attempt: an exponential backoff with jitter.

    The mean wait doubles with each attempt. The jitter is a pseudorandom factor, seeded by the URL and the attempt.

    Args:
        url: URL to fetch.
        attempt: index of the failed attempt, counted from 0.
    """
    return _FIRST_BACKOFF_SECONDS * 2.0**attempt * random.Random(f"{url} {attempt}").uniform(0.5, 1.5)


def retry_after(value: str) -> float | None:
    """Return the number of seconds that a Retry-After header asks clients to wait, or None if the header is invalid.

    The header contains a number of seconds or a date. For a date in the past, return 0.
    """
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, date.timestamp() - time.time())
