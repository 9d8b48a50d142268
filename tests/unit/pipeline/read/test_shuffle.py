"""Order of an epoch: every row once, shares that add up to batches, and bounds of windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priorkit.pipeline.read.shuffle import EpochPlan, hash_key, mix, permutation

counted = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=30).filter(
    lambda blocks: any(visits for visits, _ in blocks)
)


def plan_of(blocks: list[tuple[int, int]], seed: int, epoch: int, window_rows: int) -> EpochPlan:
    visits, more = np.array(blocks).T
    return EpochPlan(visits, visits + more, seed=seed, epoch=epoch, window_rows=window_rows)


@settings(max_examples=200, deadline=None)
@given(
    blocks=counted, seed=st.integers(0, 3), epoch=st.integers(0, 3), window_rows=st.integers(1, 60),
    batch_size=st.integers(1, 40), ranks=st.integers(1, 7),
)  # fmt: skip
def test_the_shares_of_all_ranks_hold_every_row_once(
    blocks: list[tuple[int, int]], seed: int, epoch: int, window_rows: int, batch_size: int, ranks: int
) -> None:
    plan = plan_of(blocks, seed, epoch, window_rows)
    assert plan.rows == sum(visits for visits, _ in blocks)
    seen = []
    for step in range(-(-plan.rows // batch_size)):
        whole = plan.share(step, batch_size)
        shares = [plan.share(step, batch_size, rank, ranks) for rank in range(ranks)]
        assert np.array_equal(np.concatenate([share.places for share in shares]), whole.places)
        sizes = [len(share.places) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        assert [share.first for share in shares] == [sum(sizes[:rank]) for rank in range(ranks)]
        assert {share.global_rows for share in shares} == {len(whole.places)}
        assert whole.end == min(plan.rows, (step + 1) * batch_size)
        seen.append(whole.places)
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(plan.rows))
    assert {len(places) for places in seen[:-1]} <= {batch_size}


@settings(max_examples=100, deadline=None)
@given(blocks=counted, seed=st.integers(0, 3), window_rows=st.integers(1, 60))
def test_windows_are_whole_blocks_of_bounded_size(blocks: list[tuple[int, int]], seed: int, window_rows: int) -> None:
    plan = plan_of(blocks, seed, 0, window_rows)
    visits, stored = np.array(blocks)[:, 0], np.array(blocks).sum(axis=1)
    assert np.array_equal(np.sort(plan.blocks), np.flatnonzero(visits))
    for first, last in zip(plan.windows[:-1], plan.windows[1:], strict=True):
        assert first < last
        assert stored[plan.blocks[first:last]].sum() < window_rows + stored.max()
    # the first places are those of the first window
    first, last = plan.window_starts[:2]
    within = np.concatenate([plan.share(step, 1).places for step in range(first, last)])
    assert np.array_equal(np.sort(within), np.arange(first, last))


def test_seed_and_epoch_change_the_order_of_blocks_and_rows() -> None:
    blocks = [(4, 0)] * 50
    orders = [plan_of(blocks, seed, epoch, 40) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(plan.blocks) for plan in orders}) == 3
    assert len({tuple(plan.share(0, 13).places) for plan in orders}) == 3


def test_a_permutation_is_uniform() -> None:
    """Each number is about equally often at each place: chi-square of 7 x 7 cells, 36 degrees of freedom."""
    drawn = np.array([permutation(7, hash_key("test", seed)) for seed in range(7000)])
    cells = np.array([np.bincount(drawn[:, place], minlength=7) for place in range(7)])
    assert ((cells - 1000) ** 2 / 1000).sum() < 70  # exceeded with a chance of 6e-4 by true randomness; it is fixed


def test_the_hash_is_splitmix64() -> None:
    """The expected values are the first outputs of the reference implementation for seed 1234567."""
    key = np.uint64(1234567)
    found = mix(np.arange(1, 4, dtype=np.uint64), key)
    assert found.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_needs_about_its_share_of_the_blocks(ranks: int) -> None:
    plan = EpochPlan(np.full(64, 128), np.full(64, 128), seed=0, epoch=0, window_rows=2048)
    touched = np.zeros((ranks, 64))
    for rank in range(ranks):
        places = np.concatenate([plan.share(step, 256, rank, ranks).places for step in range(plan.rows // 256)])
        touched[rank] = np.bincount(places // 128, minlength=64) > 0
    assert touched.mean(axis=1).max() < 1 / ranks + 0.3
