"""Retry policy of a fetch: whether a failed attempt is repeated, and after how many seconds.

An attempt is repeated if its failure is transient, `download.retries` attempts are left, and the wait ends before the
deadline of the URL. The wait is an exponential backoff with jitter, or the server's Retry-After if that is longer.
"""

from __future__ import annotations

import email.utils
import random
import re
import time

from yarl import URL

from ..outcomes import FetchError

_FIRST_BACKOFF_SECONDS = 0.5
"""Mean seconds before the second attempt; each further attempt doubles it."""


def retry_wait(url: URL, error: FetchError, *, attempt: int, retries: int, seconds_left: float) -> float | None:
    """Return the seconds to wait before another attempt, or None if there is to be none.

    Args:
        attempt: number of the attempt that failed, from 0.
        retries: largest number of further attempts after the first.
        seconds_left: time until the deadline of the URL.
    """
    if not error.transient or attempt >= retries:
        return None
    wait = max(backoff(url, attempt), error.retry_after or 0.0)
    return wait if wait < seconds_left else None


def backoff(url: URL, attempt: int) -> float:
    """Return the seconds before the next attempt: doubled each time, with a jitter seeded by the URL."""
    return _FIRST_BACKOFF_SECONDS * 2.0**attempt * random.Random(f"{url} {attempt}").uniform(0.5, 1.5)


def retry_after(value: str) -> float | None:
    """Return the seconds that a Retry-After header states, as a number or as a date; None for anything else."""
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, date.timestamp() - time.time())
