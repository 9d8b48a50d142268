"""Near duplicates against a comparison of all pairs, and the seeded sample."""

from __future__ import annotations

import numpy as np
import pytest

from priorkit.pipeline.inspect.neighbours import NeighbourBank, seeded_rows
from priorkit.pipeline.inspect.statistics import content_hashes


def unit_rows(count: int, near: bool = True) -> np.ndarray:
    random = np.random.default_rng(0)
    rows = random.normal(size=(count, 12))
    if near:
        rows[50:60] = rows[:10] + 0.03 * random.normal(size=(10, 12))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def test_near_duplicates_match_a_comparison_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("priorkit.pipeline.inspect.neighbours._QUERIES", 64)
    monkeypatch.setattr("priorkit.pipeline.inspect.neighbours._COLUMNS", 48)
    rows = unit_rows(300)
    rows[299] = rows[7]  # an exact copy, which is no near duplicate
    bank = NeighbourBank(300)
    hashes = content_hashes((row.tobytes() for row in rows), 300)
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


def test_fewer_rows_are_compared_when_time_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
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
