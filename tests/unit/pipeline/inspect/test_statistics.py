"""Streaming statistics against numpy, and repeats against counting."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from priorkit.pipeline.inspect.statistics import Distribution, Repeats, content_hashes, cosines, lengths


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_and_quantiles_match_numpy(offset: float) -> None:
    values = np.random.default_rng(0).normal(size=10_000) + offset
    found = Distribution(np.linspace(offset - 5, offset + 5, 1001))
    for part in np.split(values, [1, 10, 10, 5000]):
        found.add(part)
    result = found.to_json()
    assert result["rows"] == len(values)
    np.testing.assert_allclose([result["mean"], result["std"]], [values.mean(), values.std()], rtol=1e-9)
    assert (result["min"], result["max"]) == (values.min(), values.max())
    for share, value in result["quantiles"].items():
        assert abs(value - np.quantile(values, float(share))) < 0.011
    edges, counts = result["histogram"]["edges"], result["histogram"]["counts"]
    assert len(edges) == len(counts) + 1 <= 65
    assert counts == np.histogram(values, edges)[0].tolist()


def test_values_that_are_not_finite_are_skipped_and_outliers_are_counted() -> None:
    found = cosines()
    found.add(np.array([np.nan, np.inf, -7.0, 0.0, 0.0, 7.0], np.float32))
    result = found.to_json()
    assert (result["rows"], result["min"], result["max"]) == (4, -7.0, 7.0)
    assert sum(result["histogram"]["counts"]) == 4
    assert result["quantiles"]["0.01"] < -6
    found = cosines()
    found.add(np.empty(0))
    assert found.rows == 0


def test_quantiles_of_lengths_are_whole() -> None:
    found = lengths()
    values = np.arange(1, 102)
    found.add(values)
    assert found.to_json()["quantiles"]["0.5"] == 51
    found = lengths()
    found.add(np.array([500]))
    assert set(found.to_json()["quantiles"].values()) == {500}


def test_repeats_are_counted_and_named() -> None:
    repeats = Repeats()
    repeats.add(content_hashes("abc", 3), np.arange(3))
    repeats.add(content_hashes("ba", 2), np.array([7, 8]))
    assert repeats.one_in == 1
    assert repeats.find() == (2, [(7, 1), (8, 0)])
    assert Repeats().find() == (0, [])


def test_repeats_beyond_the_capacity_are_sampled_by_content() -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 50_000, 100_000)
    hashes = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 50_000)[values]
    repeats = Repeats(capacity=8000)
    for start in range(0, len(hashes), 1000):
        repeats.add(hashes[start : start + 1000], np.arange(start, start + 1000))
        assert len(repeats._sample) <= 8000
    one_in = repeats.one_in
    assert one_in == 16
    count, pairs = repeats.find()
    expected = sum(number - 1 for number in collections.Counter(values.tolist()).values())
    assert abs(count * one_in / expected - 1) < 0.1
    for row, earlier in pairs:
        assert values[row] == values[earlier]
        assert row > earlier
