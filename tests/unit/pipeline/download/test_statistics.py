"""Statistics of a download, its progress, and what is said when success collapses."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from priorkit.pipeline.contract.manifest import Manifest, ShardRecord
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.download import progress as download_progress
from priorkit.pipeline.download.collapse import SuccessWatch, diagnosis
from priorkit.pipeline.download.progress import DownloadProgress
from priorkit.pipeline.download.rows import Row
from priorkit.pipeline.download.statistics import (
    ShardStatistics,
    UrlSample,
    failure_label,
    rows_not_utf8,
    total_statistics,
    url_hashes,
)
from priorkit.pipeline.errors import PriorkitError


def row(url: str | None, message: str | None = None, **values: Any) -> Row:
    outcome = (message or "success").partition(":")[0]
    return Row({"url": url, "error_message": message}, outcome=outcome, **values)


def stats_of(urls: list[str | None], message: str | None = None) -> dict[str, Any]:
    statistics = ShardStatistics(pa.table({"url": pa.array(urls, pa.string())}))
    for url in urls:
        statistics.add(row(url, message, body_bytes=10))
    return statistics.to_json(0.0, 2.0)


def sample(urls: list[str], limit: int) -> UrlSample:
    made = UrlSample(limit)
    made.add(*np.unique(url_hashes(urls), return_counts=True))
    return made


def test_a_small_sample_counts_duplicates_exactly() -> None:
    urls = ["a", "b", "a", "c", "a", "b"]
    assert sample(urls, 100).duplicates() == 3
    joined = UrlSample(100)
    for part in (urls[:2], urls[2:3], urls[3:], []):
        joined.add_json(sample(part, 100).to_json())
    assert (joined.duplicates(), joined.level) == (3, 0)


@pytest.mark.parametrize("parts", [1, 40])
def test_a_large_sample_is_bounded_and_estimates_duplicates(parts: int) -> None:
    """50,000 rows of 30,000 URLs, in parts of which each keeps a sample of its own."""
    urls = [f"http://h/{number}" for number in (*range(30_000), *range(20_000))]
    random.Random(0).shuffle(urls)
    joined = UrlSample(4096)
    for part in range(parts):
        kept = sample(urls[part::parts], 1024).to_json()
        assert len(kept["hashes"]) <= 1024 * 8 * 4 / 3 + 4
        joined.add_json(kept)
    assert joined.duplicates() == pytest.approx(20_000, rel=0.15)
    assert joined.level >= 3
    assert len(joined._hashes) <= 4096


def test_what_a_sample_would_not_choose_is_not_held() -> None:
    """Or the samples of 200,000 shards would be sorted in a hundred times."""
    made = sample([f"http://h/{number}" for number in range(5000)], 4096)
    made.duplicates()
    assert made.level == 1
    odd = np.arange(1, 2001, 2, dtype=np.uint64)
    made.add(odd, np.ones(1000, np.int64))
    assert sum(len(hashes) for hashes, _ in made._added) == 0
    chosen = np.array([1 << 60], np.uint64)
    made.add(chosen, np.array([3]))
    assert made.duplicates() >> made.level == 2


def test_rows_that_are_not_utf8_are_counted_once_each() -> None:
    table = pa.table({"url": ["a", "\ufffd", "c", None], "caption": ["\ufffd", "\ufffd", None, "d"], "n": [1, 2, 3, 4]})
    assert rows_not_utf8(table) == 2
    assert rows_not_utf8(table.slice(0, 0)) == 0


def test_failures_are_named_with_their_status() -> None:
    statistics = ShardStatistics(pa.table({"url": ["http://a/1", "http://a/2", "http://B:80/3", "no url"]}))
    statistics.add(row("http://a/1", "http_4xx: 404"))
    statistics.add(row("http://a/2", "dns: a"))
    statistics.add(row("http://B:80/3", kept=True))
    statistics.add(row("http://[", "bad_url: Invalid IPv6 URL"))
    found = statistics.to_json(1.0, 3.0)
    assert found["status_dict"] == {"bad_url": 1, "dns": 1, "http_4xx": 1, "success": 1}
    assert found["errors"] == {"http_4xx 404": 1, "dns": 1, "bad_url": 1}
    assert found["hosts"] == {"a": {"http_4xx 404": 1, "dns": 1}, "no host": {"bad_url": 1}}
    assert found["fetched"] == {"bad_url": 1, "dns": 1, "http_4xx 404": 1}
    assert (found["count"], found["successes"], found["failed_to_download"], found["duration"]) == (4, 1, 3, 2.0)


@pytest.mark.parametrize(
    ("message", "label"),
    [
        (None, "success"),
        ("http_4xx: 403", "http_4xx 403"),
        ("http_5xx: 503, to be tried again after 30 s", "http_5xx 503"),
        ("http_429: 429", "http_429"),
        ("http_429", "http_429"),
        ("timeout: no whole body within 10 s", "timeout"),
        ("decode", "decode"),
    ],
)
def test_the_label_of_a_failure(message: str | None, label: str) -> None:
    assert failure_label(row("http://h/", message)) == label


def test_the_hosts_of_a_shard_and_of_all_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("priorkit.pipeline.download.statistics._MOST_HOSTS", 30)
    store = Store("memory://bounded_hosts")
    manifest = Manifest("download", {}, {})
    for shard in range(10):
        urls = [f"http://own{shard}x{number}/" for number in range(50)] + ["http://bad/"] * (3 + shard)
        stats = stats_of([*urls], "timeout: 10 s")
        assert len(stats["hosts"]) == 20
        name = f"{shard:05d}"
        store.write_json(f"{name}_stats.json", stats)
        manifest.shards[name] = ShardRecord(name, len(urls), "", "", {})
    store.write_json("00003_stats.json", "damaged")
    store.remove("00004_stats.json")
    store.write_json("00010_stats.json", {**stats, "duration": 0, "hosts": ["bad"]})
    manifest.shards["00010"] = ShardRecord("00010", 1, "", "", {})
    found = total_statistics(store, manifest)
    assert len(found["hosts"]) == 20
    assert next(iter(found["hosts"].items())) == ("bad", {"timeout": sum(range(3, 13)) - 6 - 7})
    assert found["seconds"] == 16.0


def test_success_is_judged_over_the_last_rows_only() -> None:
    watch = SuccessWatch(0.5, 10)
    for _ in range(100):
        watch.add({"success": 1})
    for _ in range(5):
        watch.add({"dns": 1})
    with pytest.raises(PriorkitError, match="4 of the last 10 rows gave an image"):
        watch.add({"timeout": 1})


def test_too_few_rows_are_not_judged_and_none_where_it_is_off() -> None:
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
        ({"dns": 4, "timeout": 3, "filtered": 3}, "several kinds, most of them 4 dns, 3 timeout, 3 filtered"),
        ({"filtered": 9}, "most of them 9 filtered"),
    ],
)
def test_the_diagnosis_names_the_cause_and_what_to_do(labels: dict[str, int], named: str) -> None:
    assert named in diagnosis(labels)


def test_progress_tells_of_rows_and_rates_within_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(download_progress.time, "monotonic", lambda: now[0])
    told: list[tuple[int, int | None, str]] = []
    progress = DownloadProgress(lambda *values: told.append(values), 100, 1000, None)
    for number in range(8):
        now[0] += 0.25
        progress.add_row(row("http://h/", None if number % 4 else "dns: h", body_bytes=250_000))
    progress.add_row(row("http://h/", kept=True))
    assert [done for done, _, _ in told] == [100, 102, 104, 106, 108]
    assert told[-1] == (108, 1000, "3 img/s, 75% success, 8.0 Mbit/s")
    progress.add_rows({"success": 90, "timeout": 10}, 1_000_000)
    progress.tell()
    assert told[-1][0] == 208
    assert "89% success" in told[-1][2]
