"""Streaming statistics against numpy, repeats against counting, neighbours against all pairs."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from priorkit.pipeline.inspect.neighbours import NeighbourBank, seeded_rows
from priorkit.pipeline.inspect.statistics import Distribution, Repeats, cosines, hashes_of, lengths


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_and_quantiles_are_those_of_the_whole(offset: float) -> None:
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


def test_what_is_not_finite_or_beyond_the_edges_breaks_nothing() -> None:
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
    repeats.add(hashes_of("abc", 3), np.arange(3))
    repeats.add(hashes_of("ba", 2), np.array([7, 8]))
    assert repeats.one_in == 1
    assert repeats.find() == (2, [(7, 1), (8, 0)])
    assert Repeats().find() == (0, [])


def test_repeats_beyond_the_capacity_are_a_sample_of_contents_and_stay_bounded() -> None:
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


def unit_rows(count: int, near: bool = True) -> np.ndarray:
    random = np.random.default_rng(0)
    rows = random.normal(size=(count, 12))
    if near:
        rows[50:60] = rows[:10] + 0.03 * random.normal(size=(10, 12))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def test_near_duplicates_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("priorkit.pipeline.inspect.neighbours._QUERIES", 64)
    monkeypatch.setattr("priorkit.pipeline.inspect.neighbours._COLUMNS", 48)
    rows = unit_rows(300)
    rows[299] = rows[7]  # an exact copy, which is no near duplicate
    bank = NeighbourBank(300)
    hashes = hashes_of((row.tobytes() for row in rows), 300)
    for start in range(0, 300, 90):
        part = np.arange(start, min(300, start + 90))
        bank.add(part, rows[part], hashes[part])
    found = bank.compare(near=0.97)
    cosine = rows[:299].astype(np.float32) @ rows[:299].astype(np.float32).T
    np.fill_diagonal(cosine, -1)
    pairs = {(int(i), int(j)) for i, j in np.argwhere(cosine >= 0.97) if i < j}
    assert (found.compared, found.near_pairs) == (299, len(pairs))
    assert len(pairs) >= 10
    assert len(found.examples) == 3
    assert set(found.examples) <= pairs
    np.testing.assert_allclose(np.sort(found.nearest), np.sort(cosine.max(1)), atol=1e-6)


def test_where_the_time_is_up_it_says_how_many_rows_were_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("priorkit.pipeline.inspect.neighbours._QUERIES", 64)
    rows = unit_rows(300)
    bank = NeighbourBank(300)
    bank.add(np.arange(300), rows, np.arange(300))
    found = bank.compare(seconds=0)
    assert (found.compared, len(found.nearest)) == (64, 64)


def test_the_bank_is_a_seeded_sample_of_the_whole_folder() -> None:
    chosen = seeded_rows(1_000_000, 1000)
    assert np.array_equal(chosen, seeded_rows(1_000_000, 1000))
    assert len(np.unique(chosen)) == 1000
    assert abs(chosen.mean() / 500_000 - 1) < 0.1
    assert np.array_equal(seeded_rows(5, 10), np.arange(5))
    rows = unit_rows(1000, near=False)
    bank = NeighbourBank(1000, most=100)
    for start in range(0, 1000, 250):
        part = np.arange(start, start + 250)
        bank.add(part, rows[part], part)
    bank.add(np.empty(0, np.int64), rows[:0], np.empty(0, np.int64))
    assert bank.rows == 100
    assert bank.compare().compared == 100
    assert NeighbourBank(0).compare().compared == 0
