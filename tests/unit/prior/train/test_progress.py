"""Throughput over known intervals, and the observer of a local training."""

from __future__ import annotations

import pytest

from priorkit.prior.train import progress
from priorkit.prior.train.progress import LocalWatch, Throughput


def test_rates_are_of_the_interval_since_the_last_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 104.0, 106.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    throughput = Throughput(draws=3)
    assert (throughput.rates, throughput.note) == ({}, "")
    throughput.add(5)
    throughput.add(7)
    throughput.measure(0.5)
    assert throughput.rates == {"samples_per_second": 3.0, "draws_per_second": 9.0}
    assert throughput.note == "loss 0.5000, 3 samples/s, 9 draws/s"
    throughput.add(4)
    throughput.measure(0.25)
    assert throughput.rates == {"samples_per_second": 2.0, "draws_per_second": 6.0}


def test_a_local_watch_reports_to_the_progress_bar() -> None:
    reports: list[tuple[int, int | None, str]] = []
    watch = LocalWatch(9, lambda done, total, note: reports.append((done, total, note)), lambda: True)
    watch.report(4, "loss 1")
    watch.before_writing()
    assert reports == [(4, 9, "loss 1")]
    assert watch.should_stop()
