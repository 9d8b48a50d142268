"""Sample of URLs: exact counts of duplicates while it is small, estimates in bounded memory after that."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from priorkit.pipeline.download.url_sample import UrlSample, url_hashes


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
    assert len(joined) <= 4096


def test_hashes_outside_of_the_sample_are_not_stored() -> None:
    """Otherwise the samples of 200,000 shards would be merged a hundred times."""
    made = sample([f"http://h/{number}" for number in range(5000)], 4096)
    made.duplicates()
    assert made.level == 1
    stored = len(made)
    odd = np.arange(1, 2001, 2, dtype=np.uint64)
    made.add(odd, np.ones(1000, np.int64))
    assert len(made) == stored
    chosen = np.array([1 << 60], np.uint64)
    made.add(chosen, np.array([3]))
    assert made.duplicates() >> made.level == 2


def test_empty_urls_have_no_hash_and_equal_urls_have_one() -> None:
    hashes = url_hashes(["http://a/", None, "", "  ", "http://b/", "http://a/"])
    assert hashes.dtype == np.uint64
    assert (len(hashes), len(set(hashes.tolist()))) == (3, 2)
    assert hashes[0] == hashes[2]


def test_json_lists_only_counts_above_one() -> None:
    made = UrlSample(10)
    made.add(np.array([2, 1], np.uint64), np.array([1, 3]))
    value = made.to_json()
    assert value == {"level": 0, "hashes": "AQAAAAAAAAACAAAAAAAAAA==", "counts": {"0": 3}}


@pytest.mark.parametrize("level", [-1, 64, 0.0, "1", True, None])
def test_an_invalid_level_is_refused(level: Any) -> None:
    made = UrlSample(10)
    with pytest.raises(ValueError, match="no level of a sample"):
        made.add_json({"level": level, "hashes": "", "counts": {}})
    assert made.level == 0
