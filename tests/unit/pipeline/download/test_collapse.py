"""Collapse of success: which rows are judged, and the cause that the message names."""

from __future__ import annotations

import pytest

from priorkit.pipeline.download.collapse import SuccessWatch, diagnosis
from priorkit.pipeline.errors import PriorkitError


def test_success_is_judged_over_the_last_rows_only() -> None:
    watch = SuccessWatch(0.5, 10)
    for _ in range(100):
        watch.add({"success": 1})
    for _ in range(5):
        watch.add({"dns": 1})
    with pytest.raises(PriorkitError, match="4 of the last 10 rows gave an image"):
        watch.add({"timeout": 1})


def test_too_few_rows_are_not_judged_and_none_if_the_watch_is_off() -> None:
    watch = SuccessWatch(0.5, 10)
    for _ in range(9):
        watch.add({"dns": 1})
    off = SuccessWatch(0, 10)
    for _ in range(100):
        off.add({"dns": 1})


def test_whole_shards_are_judged_too() -> None:
    watch = SuccessWatch(0.1, 1000)
    watch.add({"success": 900, "dns": 100})
    watch.add({"dns": 500})
    with pytest.raises(PriorkitError, match="0 of the last 1,100 rows"):
        watch.add({"dns": 600})


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ({"dns": 90, "timeout": 10}, "90% of the failures are dns: host names are not resolved"),
        ({"refused": 30, "connection": 30}, "100% of the failures are refused, connection: connections are refused"),
        ({"http_4xx 403": 60, "http_429": 30, "dns": 10}, "servers refuse us: set download.user_agent"),
        ({"timeout": 9, "success": 400}, "lower download.concurrency, or raise download.timeout_seconds"),
        ({"blocked_address": 9}, "private addresses"),
        ({"tls": 9}, "clock is right"),
        ({"not_image": 9}, "login page"),
        ({"http_4xx 404": 9}, "the list is old"),
        ({"empty_url": 5, "bad_url": 4}, "download.url_column is the right one"),
        ({"hash_mismatch": 5}, "download.hash_column"),
        ({"no_file": 5}, "relative paths begin at the folder of the list"),
        ({"bad_scheme": 5}, "download.allow_paths=true"),
        ({"dns": 4, "timeout": 3, "filtered": 3}, "several kinds, most of them 4 dns, 3 timeout, 3 filtered"),
        ({"filtered": 9}, "most of them 9 filtered"),
    ],
)
def test_the_diagnosis_names_the_cause_and_what_to_do(labels: dict[str, int], named: str) -> None:
    assert named in diagnosis(labels)


def test_the_least_success_rate_is_enough() -> None:
    watch = SuccessWatch(0.25, 4)
    watch.add({"success": 1, "dns": 3})
    with pytest.raises(PriorkitError, match=r"less than download\.min_success_rate=0\.25"):
        watch.add({"success": 1, "dns": 4})


def test_every_group_of_advice_needs_a_majority() -> None:
    assert "several kinds" in diagnosis({"dns": 5, "tls": 5})
    assert diagnosis({"dns": 6, "tls": 5}).startswith("55% of the failures are dns")
