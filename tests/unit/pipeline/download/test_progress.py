"""Download progress: when the callback is called, and the rates that it gets."""

from __future__ import annotations

import pytest

from priorkit.pipeline.download import progress as module
from priorkit.pipeline.download.collapse import SuccessWatch
from priorkit.pipeline.download.progress import DownloadProgress
from priorkit.pipeline.download.rows import Row
from priorkit.pipeline.errors import PriorkitError


class Clock:
    """Monotonic time that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


Calls = list[tuple[int, int | None, str]]


def progress_of(calls: Calls, done: int, total: int | None, watch: SuccessWatch | None = None) -> DownloadProgress:
    return DownloadProgress(lambda *values: calls.append(values), done, total, watch)


def row(message: str | None = None, body_bytes: int = 0, *, reused: bool = False) -> Row:
    outcome = (message or "success").partition(":")[0]
    return Row({"error_message": message}, outcome=outcome, body_bytes=body_bytes, reused=reused)


def test_the_callback_gets_rows_and_rates_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(monkeypatch), []  # type: ignore[var-annotated]
    progress = progress_of(calls, 100, 1000)
    for number in range(8):
        clock.now += 0.25
        progress.add_row(row(None if number % 4 else "dns: h", 250_000))
    progress.add_row(row(reused=True))
    assert [done for done, _, _ in calls] == [100, 102, 104, 106, 108]
    assert calls[-1] == (108, 1000, "3 img/s, 75% success, 8.0 Mbit/s")
    progress.add_rows({"success": 90, "timeout": 10}, 1_000_000)
    progress.report()
    assert calls[-1][0] == 208
    assert "89% success" in calls[-1][2]


def test_rates_are_those_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(monkeypatch), []  # type: ignore[var-annotated]
    progress = progress_of(calls, 0, None)
    progress.add_rows({"success": 1_000_000}, 0)
    for _ in range(100):
        clock.now += 1.0
        progress.add_rows({"success": 5}, 125_000)
    assert calls[-1] == (1_000_500, None, "5 img/s, 100% success, 1.0 Mbit/s")


def test_without_fetched_rows_there_are_no_rates() -> None:
    calls: Calls = []
    progress_of(calls, 7, 9).report()
    assert calls == [(7, 9, ""), (7, 9, "")]


def test_fetched_rows_are_watched_and_reused_ones_are_not() -> None:
    progress = progress_of([], 0, None, SuccessWatch(0.5, 2))
    for _ in range(5):
        progress.add_row(row("dns: h", reused=True))
    progress.add_row(row("dns: h"))
    with pytest.raises(PriorkitError, match="success has collapsed"):
        progress.add_row(row("dns: h"))
