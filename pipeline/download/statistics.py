"""Statistics of a download: per shard in its `_stats.json`, and summed over all shards in bounded memory."""

from __future__ import annotations

import collections
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
from .outcomes import IMAGE_OUTCOMES, SUCCESS
from .rows import Row
from .url_sample import UrlSample, url_hashes

NOT_UTF8 = "\ufffd"
"""Replacement character in text, for bytes of the list that are not UTF-8."""

NO_HOST = "no host"
"""Host that is counted for a URL without one."""

_SHARD_HOSTS = 20
"""Number of hosts with most failures that `_stats.json` of a shard lists."""
_TOTAL_HOSTS = 20
"""Number of hosts with most failures that the summary lists."""
_MOST_HOSTS = 10_000
"""Number of hosts counted over all shards; above twice this number, those with fewest failures are dropped."""
_HOST_CHARACTERS = 253
"""Longest host name in characters, by RFC 1035; longer ones are cut."""
_SHARD_SAMPLE = 1024
"""Largest number of URL hashes in the sample of a shard: 8 kB."""
_TOTAL_SAMPLE = 1 << 22
"""Largest number of URL hashes in the sample of all shards: 32 MB."""
_READERS = 16
"""Number of `_stats.json` files that are read at the same time."""
_READ_AHEAD = 64 * _READERS
"""Number of `_stats.json` files in memory at the same time."""
_STATUS = re.compile(r"http_(?:4xx|5xx|other): (\d{3})\b")


def failure_label(row: Row) -> str:
    """Return the label of a row in the table of errors: its outcome, and the HTTP status if there is one."""
    match = _STATUS.match(row.meta["error_message"] or "")
    return f"{row.outcome} {match[1]}" if match else row.outcome


def host_of(url: str | None) -> str:
    """Return the host of a URL, or `NO_HOST`."""
    try:
        return (urlsplit(url or "").hostname or NO_HOST)[:_HOST_CHARACTERS]
    except ValueError:
        return NO_HOST


def rows_not_utf8(table: pa.Table) -> int:
    """Count the rows with U+FFFD in a text column, which replaces bytes that are not UTF-8."""
    marked = [
        pc.fill_null(pc.match_substring(column, NOT_UTF8), False)
        for column in table.columns
        if pa.types.is_string(column.type)
    ]
    in_any = marked[0]
    for in_column in marked[1:]:
        in_any = pc.or_(in_any, in_column)
    return int(pc.sum(in_any).as_py() or 0)


class ShardStatistics:
    """Counter of the outcomes of one shard's rows."""

    def __init__(self, table: pa.Table) -> None:
        self.outcomes: collections.Counter[str] = collections.Counter()
        self._errors: collections.Counter[str] = collections.Counter()
        self._hosts: dict[str, collections.Counter[str]] = {}
        self._bytes = 0
        self._fetched: collections.Counter[str] = collections.Counter()
        self._table = table

    def add(self, row: Row) -> None:
        """Count a finished row."""
        self.outcomes[row.outcome] += 1
        label = failure_label(row)
        if not row.reused:
            self._fetched[label] += 1
        if row.outcome != SUCCESS:
            self._errors[label] += 1
            self._hosts.setdefault(host_of(row.meta["url"]), collections.Counter())[label] += 1
        self._bytes += row.body_bytes

    def to_json(self, start: float, end: float) -> dict[str, Any]:
        """Return the content of `_stats.json`: img2dataset's keys, and further counts.

        Args:
            start: seconds since the epoch at which the shard was started.
            end: seconds since the epoch at which its last row was written.
        """
        count, successes = sum(self.outcomes.values()), self.outcomes[SUCCESS]
        failed_to_resize = sum(number for outcome, number in self.outcomes.items() if outcome in IMAGE_OUTCOMES)
        hashes, repeats = np.unique(url_hashes(self._table.column("url").to_pylist()), return_counts=True)
        sample = UrlSample(_SHARD_SAMPLE)
        sample.add(hashes, repeats)
        return {
            "count": count,
            "successes": successes,
            "failed_to_download": count - successes - failed_to_resize,
            "failed_to_resize": failed_to_resize,
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
    """Return the hosts with most failures, and the failures of each by label, the most frequent first."""
    ordered = sorted(hosts.items(), key=lambda item: (-item[1].total(), item[0]))
    return {host: dict(failures.most_common()) for host, failures in ordered[:limit]}


def total_statistics(store: Store, manifest: Manifest) -> dict[str, Any]:
    """Sum the `_stats.json` of all shards of a folder. Missing and damaged ones are skipped.

    Returns:
        `seconds` of work and `bytes` fetched; `not_utf8` rows; `duplicate_urls` over the list, and whether that number
        is exact (`duplicates_exact`) or an estimate; `errors` by label; the `hosts` with most failures. A host counts
        for the shards in which it is among the 20 with most failures.
    """
    errors: collections.Counter[str] = collections.Counter()
    hosts: dict[str, collections.Counter[str]] = {}
    sample = UrlSample(_TOTAL_SAMPLE)
    sums = dict.fromkeys(("duration", "bytes", "not_utf8"), 0)

    def read(name: str) -> Any:
        try:
            return store.read_json(f"{name}_stats.json")
        except (FileNotFoundError, InputError):  # a log file, which no record verifies
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
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
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
    """Yield the result of `read` for each name, and run a bounded number of reads ahead."""
    for start in range(0, len(names), _READ_AHEAD):
        yield from threads.map(read, names[start : start + _READ_AHEAD])
