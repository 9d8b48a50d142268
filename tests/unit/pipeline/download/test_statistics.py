"""Statistics of a download: counts of a shard, labels of failures, and sums over all shards."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from priorkit.pipeline.contract.manifest import Manifest, ShardRecord
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.download.rows import Row
from priorkit.pipeline.download.statistics import (
    ShardStatistics,
    failure_label,
    host_of,
    rows_not_utf8,
    total_statistics,
)


def row(url: str | None, message: str | None = None, **values: Any) -> Row:
    outcome = (message or "success").partition(":")[0]
    return Row({"url": url, "error_message": message}, outcome=outcome, **values)


def stats_of(urls: list[str | None], message: str | None = None) -> dict[str, Any]:
    statistics = ShardStatistics(pa.table({"url": pa.array(urls, pa.string())}))
    for url in urls:
        statistics.add(row(url, message, body_bytes=10))
    return statistics.to_json(0.0, 2.0)


def test_rows_that_are_not_utf8_are_counted_once_each() -> None:
    table = pa.table({"url": ["a", "\ufffd", "c", None], "caption": ["\ufffd", "\ufffd", None, "d"], "n": [1, 2, 3, 4]})
    assert rows_not_utf8(table) == 2
    assert rows_not_utf8(table.slice(0, 0)) == 0


def test_failures_are_named_with_their_status() -> None:
    statistics = ShardStatistics(pa.table({"url": ["http://a/1", "http://a/2", "http://B:80/3", "no url"]}))
    statistics.add(row("http://a/1", "http_4xx: 404"))
    statistics.add(row("http://a/2", "dns: a"))
    statistics.add(row("http://B:80/3", reused=True))
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
def test_label_of_a_failure(message: str | None, label: str) -> None:
    assert failure_label(row("http://h/", message)) == label


@pytest.mark.parametrize(
    ("message", "outcome", "label"),
    [
        ("HTTP Error 404: Not Found", "http_4xx", "http_4xx 404"),
        ("HTTP Error 429: Too Many Requests", "http_429", "http_429"),
        ("HTTP Error 302: it would lead to an infinite loop", "redirect_loop", "redirect_loop"),
        ("timed out", "timeout", "timeout"),
    ],
)
def test_label_of_a_failure_of_img2dataset(message: str, outcome: str, label: str) -> None:
    assert failure_label(Row({"url": "http://h/", "error_message": message}, outcome=outcome)) == label


def test_the_number_of_hosts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://A.example:80/x", "a.example"),
        (None, "no host"),
        ("x.jpg", "no host"),
        ("http://[", "no host"),
        ("http://" + "a" * 300 + "/", "a" * 253),
    ],
)
def test_host_of_a_url(url: str | None, host: str) -> None:
    assert host_of(url) == host


def test_a_shard_lists_its_sizes_and_duplicates() -> None:
    stats = stats_of(["http://a/1", "http://a/1", "http://a/2", None, "http://a/1"])
    assert (stats["bytes"], stats["duplicate_urls"], stats["successes"]) == (50, 2, 5)
    assert stats["url_sample"]["level"] == 0


@pytest.mark.parametrize(("outcome", "failed"), [("decode", "failed_to_resize"), ("dns", "failed_to_download")])
def test_failures_count_for_one_status_of_img2dataset(outcome: str, failed: str) -> None:
    stats = stats_of(["http://a/1"], outcome)
    assert {name: stats[name] for name in ("successes", "failed_to_resize", "failed_to_download")} == {
        "successes": 0, "failed_to_resize": 0, "failed_to_download": 0, failed: 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "damaged",
    [
        {"level": 99, "hashes": "", "counts": {}},
        {"level": 0.5, "hashes": "", "counts": {}},
        {"level": 0, "hashes": "", "counts": {"7": 2}},
        {"level": 0, "hashes": "AAAAAAAAAAA=", "counts": {"0": 10**30}},
        {"level": 0, "hashes": "AAA=", "counts": {}},
        {},
    ],
)
def test_a_damaged_sample_of_one_shard_leaves_the_others(damaged: dict[str, Any]) -> None:
    store = Store("memory://damaged_sample")
    manifest = Manifest("download", {}, {})
    stats = stats_of(["http://a/1", "http://a/1"])
    for name, sample in (("00000", damaged), ("00001", stats["url_sample"])):
        store.write_json(f"{name}_stats.json", {**stats, "url_sample": sample})
        manifest.shards[name] = ShardRecord(name, 2, "", "", {})
    totals = total_statistics(store, manifest)
    assert (totals["duplicate_urls"], totals["duplicates_exact"], totals["bytes"]) == (1, True, 40)
