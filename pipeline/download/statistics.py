"""Statistics of a download: of each shard in its `_stats.json`, and of all shards together, in bounded memory."""

from __future__ import annotations

import base64
import collections
import hashlib
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..contract.manifest import Manifest
from ..contract.storage import Store
from ..errors import InputError
from .outcomes import IMAGE_OUTCOMES
from .rows import Row

NOT_UTF8 = "\ufffd"
"""What stands in text for bytes of the list that were not UTF-8."""

_SHARD_HOSTS = 20
_TOTAL_HOSTS = 20
_MOST_HOSTS = 10_000
"""Hosts that are counted while shards are added up; those with the fewest failures are dropped beyond twice as many."""
_LONGEST_HOST = 253
"""Characters of a name, by RFC 1035; what is longer is none."""
_SHARD_SAMPLE = 1024
_TOTAL_SAMPLE = 1 << 22
"""URL hashes kept of a shard, and of all: 8 kB and 32 MB."""
_READERS = 16
_STATUS = re.compile(r"http_(?:4xx|5xx|other): (\d{3})\b")


def failure_label(row: Row) -> str:
    """What a row is counted as in the table of errors: its outcome, with the status where a server gave one."""
    match = _STATUS.match(row.meta["error_message"] or "")
    return f"{row.outcome} {match[1]}" if match else row.outcome


def host_of(url: str | None) -> str:
    """The host of a URL, or what stands for one that has none."""
    try:
        return (urlsplit(url or "").hostname or "no host")[:_LONGEST_HOST]
    except ValueError:
        return "no host"


def rows_not_utf8(table: pa.Table) -> int:
    """Rows of which some text holds U+FFFD, as bytes that are not UTF-8 do when a list is read."""
    found = [
        pc.fill_null(pc.match_substring(column, NOT_UTF8), False)
        for column in table.columns
        if pa.types.is_string(column.type)
    ]
    any_of_them = found[0]
    for other in found[1:]:
        any_of_them = pc.or_(any_of_them, other)
    return int(pc.sum(any_of_them).as_py() or 0)


class UrlSample:
    """Hashes of URLs, of which it keeps those that end in `level` zero bits, so that there are never too many.

    A URL is chosen or not wherever it occurs, so the share of repetitions in the sample estimates that in the list, and
    is exact at level 0. Two URLs are taken for one by their 64 bits once in 4e12 pairs at 4 million kept.
    """

    def __init__(self, limit: int) -> None:
        self.level = 0
        self._limit = limit
        self._hashes = np.empty(0, np.uint64)
        """Sorted, each once."""
        self._counts = np.empty(0, np.int64)
        """How many rows have each."""
        self._added: list[tuple[np.ndarray, np.ndarray]] = []
        """Not sorted in yet."""
        self._added_hashes = 0

    def add(self, hashes: np.ndarray, counts: np.ndarray, level: int = 0) -> None:
        """Take in hashes `[n]` uint64 with the number of rows of each, those chosen at `level`."""
        self.level = max(self.level, level)
        chosen = self._chosen(hashes)
        self._added.append((hashes[chosen], counts[chosen]))
        self._added_hashes += int(chosen.sum())
        if self._added_hashes > self._limit // 4:
            self._sort_in()

    def _sort_in(self) -> None:
        hashes = np.concatenate([self._hashes, *(hashes for hashes, _ in self._added)])
        counts = np.concatenate([self._counts, *(counts for _, counts in self._added)])
        self._hashes, places = np.unique(hashes, return_inverse=True)
        self._counts = np.bincount(places.reshape(-1), counts, len(self._hashes)).astype(np.int64)
        self._added, self._added_hashes = [], 0
        self._choose()
        while len(self._hashes) > self._limit:
            self.level += 1
            self._choose()

    def _choose(self) -> None:
        chosen = self._chosen(self._hashes)
        self._hashes, self._counts = self._hashes[chosen], self._counts[chosen]

    def _chosen(self, hashes: np.ndarray) -> np.ndarray:
        chosen: np.ndarray = hashes & np.uint64((1 << self.level) - 1) == 0
        return chosen

    def duplicates(self) -> int:
        """Rows whose URL another row before them has: counted at level 0, else estimated."""
        self._sort_in()
        return int((self._counts.sum() - len(self._counts)) << self.level)

    def to_json(self) -> dict[str, Any]:
        self._sort_in()
        return {
            "level": self.level,
            "hashes": base64.b64encode(self._hashes.astype("<u8").tobytes()).decode(),
            "counts": {str(place): int(self._counts[place]) for place in np.flatnonzero(self._counts > 1)},
        }

    def add_json(self, value: Mapping[str, Any]) -> None:
        """Take in a sample that `to_json` gave."""
        hashes = np.frombuffer(base64.b64decode(value["hashes"]), "<u8").astype(np.uint64)
        counts = np.ones(len(hashes), np.int64)
        for place, count in value["counts"].items():
            counts[int(place)] = count
        self.add(hashes, counts, value["level"])


def url_hashes(urls: Iterable[str | None]) -> np.ndarray:
    """64-bit hashes `[n]` of the URLs that there are."""
    digests = [hashlib.blake2b(url.encode(), digest_size=8).digest() for url in urls if url and url.strip()]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


class ShardStatistics:
    """What came of the rows of one shard, as they are done."""

    def __init__(self, table: pa.Table) -> None:
        self.outcomes: collections.Counter[str] = collections.Counter()
        self._errors: collections.Counter[str] = collections.Counter()
        self._hosts: dict[str, collections.Counter[str]] = {}
        self._bytes = 0
        self._fetched: collections.Counter[str] = collections.Counter()
        self._table = table

    def add(self, row: Row) -> None:
        """Count a row."""
        self.outcomes[row.outcome] += 1
        label = failure_label(row)
        if not row.kept:
            self._fetched[label] += 1
        if row.outcome != "success":
            self._errors[label] += 1
            self._hosts.setdefault(host_of(row.meta["url"]), collections.Counter())[label] += 1
        self._bytes += row.body_bytes

    def to_json(self, start: float, end: float) -> dict[str, Any]:
        """img2dataset's `_stats.json` of a shard, and what we count besides."""
        count, successes = sum(self.outcomes.values()), self.outcomes["success"]
        resize = sum(number for outcome, number in self.outcomes.items() if outcome in IMAGE_OUTCOMES)
        hashes, repeats = np.unique(url_hashes(self._table.column("url").to_pylist()), return_counts=True)
        sample = UrlSample(_SHARD_SAMPLE)
        sample.add(hashes, repeats)
        return {
            "count": count,
            "successes": successes,
            "failed_to_download": count - successes - resize,
            "failed_to_resize": resize,
            "duration": end - start,
            "start_time": start,
            "end_time": end,
            "status_dict": dict(sorted(self.outcomes.items())),
            "fetched": dict(sorted(self._fetched.items())),
            "bytes": self._bytes,
            "not_utf8": rows_not_utf8(self._table),
            "duplicate_urls": int((repeats - 1).sum()),
            "errors": dict(self._errors.most_common()),
            "hosts": _most_failures(self._hosts, _SHARD_HOSTS),
            "url_sample": sample.to_json(),
        }


def _most_failures(hosts: Mapping[str, collections.Counter[str]], limit: int) -> dict[str, dict[str, int]]:
    """The hosts with most failures, with these by label, the most frequent first."""
    ordered = sorted(hosts.items(), key=lambda item: (-item[1].total(), item[0]))
    return {host: dict(failures.most_common()) for host, failures in ordered[:limit]}


def total_statistics(store: Store, manifest: Manifest) -> dict[str, Any]:
    """The statistics of all shards of a folder, from their `_stats.json`.

    Returns:
        `seconds` of work and `bytes` fetched, summed; `not_utf8` rows; `duplicate_urls` over the list, and whether
        they are counted (`duplicates_exact`) or estimated; `errors` by label; `hosts` with most failures, of those that
        were among the 20 with most failures in a shard.
    """
    errors: collections.Counter[str] = collections.Counter()
    hosts: dict[str, collections.Counter[str]] = {}
    sample = UrlSample(_TOTAL_SAMPLE)
    sums = dict.fromkeys(("duration", "bytes", "not_utf8"), 0)

    def read(name: str) -> Any:
        try:
            return store.read_json(f"{name}_stats.json")
        except (FileNotFoundError, InputError):  # a log, which nobody vouches for
            return None

    with ThreadPoolExecutor(_READERS) as threads:
        for stats in _in_order(threads, read, sorted(manifest.shards)):
            try:
                for name in sums:
                    sums[name] += stats[name]
                errors.update(stats["errors"])
                for host, failures in stats["hosts"].items():
                    hosts.setdefault(host, collections.Counter()).update(failures)
                sample.add_json(stats["url_sample"])
            except (KeyError, TypeError, ValueError, AttributeError):
                continue
            if len(hosts) > 2 * _MOST_HOSTS:
                hosts = {
                    host: collections.Counter(counts) for host, counts in _most_failures(hosts, _MOST_HOSTS).items()
                }
    return {
        "seconds": sums["duration"],
        "bytes": sums["bytes"],
        "not_utf8": sums["not_utf8"],
        "duplicate_urls": sample.duplicates(),
        "duplicates_exact": sample.level == 0,
        "errors": dict(errors.most_common()),
        "hosts": _most_failures(hosts, _TOTAL_HOSTS),
    }


def _in_order(threads: ThreadPoolExecutor, read: Any, names: list[str]) -> Iterable[Any]:
    """What `read` gives for each name, a bounded number of them ahead."""
    for start in range(0, len(names), 64 * _READERS):
        yield from threads.map(read, names[start : start + 64 * _READERS])
