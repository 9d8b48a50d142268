"""Download statistics: one `_stats.json` for each shard, and totals over all shards in bounded memory."""

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
"""Unicode replacement character. The list reader replaces bytes that are not valid UTF-8 with it."""

NO_HOST = "no host"
"""Placeholder host under which failures of URLs without a host are counted."""

_SHARD_HOSTS = 20
"""Maximum number of hosts in a shard's `_stats.json`. The hosts with the most failures are included."""
_TOTAL_HOSTS = 20
"""Maximum number of hosts in the summary of a download. The hosts with the most failures are included."""
_MOST_HOSTS = 10_000
"""Number of hosts to keep when the totals of failures by host are trimmed to save memory.

While the counts of all shards are added up, the totals are trimmed whenever they include more than twice this number
of hosts. Trimming drops the hosts with the fewest failures.
"""
_HOST_CHARACTERS = 253
"""Maximum length of a host name in characters, from RFC 1035. Longer names are truncated."""
_SHARD_SAMPLE = 1024
"""Maximum number of URL hashes that a shard's `_stats.json` contains for estimating duplicates (8 kB)."""
_TOTAL_SAMPLE = 1 << 22
"""Maximum number of URL hashes kept in memory for estimating duplicates over all shards (32 MB)."""
_READERS = 16
"""Number of threads that read `_stats.json` files."""
_READ_AHEAD = 64 * _READERS
"""Maximum number of `_stats.json` files in memory at once."""
_STATUS = re.compile(r"(?:\w+: |HTTP Error )(\d{3})\b")
"""Pattern for an HTTP status at the start of an error message, of the native engine or of img2dataset."""
_STATUS_OUTCOMES = frozenset({"http_4xx", "http_5xx", "http_other"})
"""Outcomes that each stand for several HTTP statuses."""


def failure_label(row: Row) -> str:
    """Return the label under which a row is counted in the statistics.

    The label is the row's outcome, followed by the HTTP status if it is known, as in `http_4xx 404`.
    """
    match = _STATUS.match(row.meta["error_message"] or "") if row.outcome in _STATUS_OUTCOMES else None
    return f"{row.outcome} {match[1]}" if match else row.outcome


def host_of(url: str | None) -> str:
    """Return the host of a URL, or `NO_HOST` if the URL has no host or cannot be parsed."""
    try:
        return (urlsplit(url or "").hostname or NO_HOST)[:_HOST_CHARACTERS]
    except ValueError:
        return NO_HOST


def rows_not_utf8(table: pa.Table) -> int:
    """Count the rows of the URL list in which some text was not valid UTF-8.

    The reader of the list replaces invalid bytes with U+FFFD. A row is counted if any of its string columns contains
    this character.

    Args:
        table: rows of the URL list.
    """
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
    """Statistics of one shard: row counts by outcome, failures by host, and fetched bytes.

    Args:
        table: rows of the shard, as read from the list.
    """

    def __init__(self, table: pa.Table) -> None:
        self.outcomes: collections.Counter[str] = collections.Counter()
        self._errors: collections.Counter[str] = collections.Counter()
        self._hosts: dict[str, collections.Counter[str]] = {}
        self._bytes = 0
        self._fetched: collections.Counter[str] = collections.Counter()
        self._table = table

    def add(self, row: Row) -> None:
        """Count a finished row. A row that was reused from the replaced shard is not counted as fetched."""
        self.outcomes[row.outcome] += 1
        label = failure_label(row)
        if not row.reused:
            self._fetched[label] += 1
        if row.outcome != SUCCESS:
            self._errors[label] += 1
            self._hosts.setdefault(host_of(row.meta["url"]), collections.Counter())[label] += 1
        self._bytes += row.body_bytes

    def to_json(self, start: float, end: float) -> dict[str, Any]:
        """Return the content of `_stats.json`: the keys that img2dataset writes, plus additional counts.

        Args:
            start: time when work on the shard started, in seconds since the epoch.
            end: time when the last row was written, in seconds since the epoch.
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
    """Select the `limit` hosts with the most failures, and return their failure counts.

    The result is keyed by host and then by failure label. The hosts, and the labels of each host, are in descending
    order of failures.

    Args:
        hosts: failure counts of all hosts, keyed by host and then by failure label, such as `dns`.
        limit: maximum number of hosts to return.
    """
    ordered = sorted(hosts.items(), key=lambda item: (-item[1].total(), item[0]))
    return {host: dict(failures.most_common()) for host, failures in ordered[:limit]}


def total_statistics(store: Store, manifest: Manifest) -> dict[str, Any]:
    """Add up the `_stats.json` files of all shards in a folder. Missing and damaged files are skipped.

    Returns:
        A dictionary with these keys:

        - `seconds`: sum of the time spent on each shard, in seconds.
        - `bytes`: total size of the fetched bodies.
        - `not_utf8`: number of rows with bytes that are not valid UTF-8.
        - `duplicate_urls`: number of rows whose URL occurs in an earlier row of the list.
        - `duplicates_exact`: True if `duplicate_urls` is exact, False if it is an estimate.
        - `errors`: number of failures for each label, as returned by `failure_label`.
        - `hosts`: for each of the hosts with the most failures, the number of failures for each label. Each shard
          contributes only its own 20 hosts with the most failures.
    """
    errors: collections.Counter[str] = collections.Counter()
    hosts: dict[str, collections.Counter[str]] = {}
    sample = UrlSample(_TOTAL_SAMPLE)
    sums = dict.fromkeys(("duration", "bytes", "not_utf8"), 0)

    def read(name: str) -> Any:
        try:
            return store.read_json(f"{name}_stats.json")
        except (FileNotFoundError, InputError):  # log files are not verified, so they may be missing or damaged
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
    """Call `read` for each name in a thread pool, and yield the results in the order of the names.

    At most `_READ_AHEAD` results are in memory at once.

    Args:
        threads: thread pool.
        read: function that takes a name and returns a result.
        names: names to pass to `read`.
    """
    for start in range(0, len(names), _READ_AHEAD):
        yield from threads.map(read, names[start : start + _READ_AHEAD])
