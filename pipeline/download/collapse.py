"""Success-rate check: stops a download when too few of the rows that finished most recently yielded an image.

The error message states the probable cause of the failures.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping

from ..errors import PriorkitError
from .outcomes import SUCCESS

_ADVICE = (
    (
        ("dns",),
        "host names are not resolved: the resolver refuses or is too slow for so many names; run one of your own, such "
        "as bind9 or knot-resolver on this machine, or lower download.concurrency",
    ),
    (
        ("refused", "connection"),
        "connections are refused or broken: a firewall or proxy lets nothing through, or has cut this machine off for "
        "having too many of them; try one of the URLs by hand, or lower download.concurrency",
    ),
    (
        ("proxy",),
        "the proxy is not reached, or refuses us: see that download.proxy, or http_proxy and https_proxy of the "
        "environment, are right; download.proxy=none uses no proxy",
    ),
    (
        ("http_4xx 401", "http_4xx 403", "http_429"),
        "servers refuse us: set download.user_agent to a name and an address that say who you are, lower "
        "download.concurrency, or wait; behind a proxy, see that it lets you through",
    ),
    (
        ("timeout",),
        "time runs out: more is fetched at once than the network or the resolver carries; lower download.concurrency, "
        "or raise download.timeout_seconds",
    ),
    (
        ("blocked_address",),
        "host names resolve to private addresses: the resolver of a company, a hotel or a filter answers in place "
        "of the real one; set another resolver, or name networks in download.allow_addresses if the images are inside",
    ),
    (
        ("tls",),
        "certificates are not accepted: see that this machine's clock is right and its CA certificates are there "
        "(package ca-certificates), and that no proxy puts in its own",
    ),
    (
        ("not_image",),
        "servers answer with something that is no image: a login page of the network or a proxy answers for them, or "
        "download.url_column names pages; open one of the URLs by hand",
    ),
    (
        ("http_4xx 404", "http_4xx 410"),
        "the images are gone: the list is old, or its URLs are cut; set download.min_success_rate=0 if that is known",
    ),
    (
        ("empty_url", "bad_url", "bad_scheme"),
        "the list holds no URLs there: see that download.url_column is the right one; if it names paths, set "
        "download.allow_paths=true",
    ),
    (
        ("no_file",),
        "the list names files that are not there: relative paths begin at the folder of the list; see that every node "
        "has the files and may read them",
    ),
    (
        ("hash_mismatch",),
        "bodies do not have the hashes of the list: see that download.hash_column is of the original bytes",
    ),
)
"""Advice for the user, by cause of failure.

Each entry is a pair: a group of related failure labels, such as `dns` or `http_4xx 404`, and the advice for this group.
"""


class SuccessWatch:
    """Monitor for the download success rate over a sliding window of the most recent rows of the URL list.

    If the success rate in a full window is below the minimum, `add` raises an error, which stops the download.

    Args:
        min_rate: minimum success rate, from 0 to 1: the fraction of the rows in the window that must yield an image.
            0 disables the check.
        rows: size of the window in rows. The rate is not checked until this many rows have been added.
    """

    def __init__(self, min_rate: float, rows: int) -> None:
        self._min_rate, self._rows = min_rate, rows
        self._parts: collections.deque[Mapping[str, int]] = collections.deque()
        self._total: collections.Counter[str] = collections.Counter()
        self._count = 0

    def add(self, labels: Mapping[str, int]) -> None:
        """Add finished rows of the URL list to the window, and check the success rate.

        Args:
            labels: number of rows with each label: `success`, or a failure label such as `dns` or `http_4xx 404`.

        Raises:
            PriorkitError: the success rate in the window is below the minimum. The message states the probable cause.
        """
        if self._min_rate == 0 or not labels:
            return
        self._parts.append(labels)
        self._total.update(labels)
        self._count += sum(labels.values())
        while self._count - (oldest := sum(self._parts[0].values())) >= self._rows:
            self._total.subtract(self._parts.popleft())
            self._count -= oldest
        successes = self._total[SUCCESS]
        if self._count >= self._rows and successes < self._min_rate * self._count:
            raise PriorkitError(
                f"success has collapsed: {successes:,} of the last {self._count:,} rows gave an image, less than "
                f"download.min_success_rate={self._min_rate:g}; {diagnosis(self._total)}. What is committed is kept, "
                "the same command resumes from there; with download.min_success_rate=0 it never stops"
            )


def diagnosis(labels: Mapping[str, int]) -> str:
    """Return a description of the most frequent failures, for use in an error message.

    If one group of labels in `_ADVICE` accounts for more than half of the failures, the description contains the
    advice for that group. Otherwise, it names the three most frequent failure labels.

    Args:
        labels: number of rows with each label: `success`, or a failure label such as `dns` or `http_4xx 404`.
    """
    failures = {label: number for label, number in labels.items() if label != SUCCESS and number > 0}
    groups = {causes: sum(failures.get(cause, 0) for cause in causes) for causes, _ in _ADVICE}
    causes, number = max(groups.items(), key=lambda item: item[1])
    total = sum(failures.values())
    if number * 2 > total:
        named = ", ".join(cause for cause in causes if cause in failures)
        return f"{number / total:.0%} of the failures are {named}: {dict(_ADVICE)[causes]}"
    most = sorted(failures.items(), key=lambda item: -item[1])[:3]
    return "the failures are of several kinds, most of them " + ", ".join(f"{n:,} {label}" for label, n in most)
