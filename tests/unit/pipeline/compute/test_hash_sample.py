"""Sample of hashes: which ones it keeps, and that it stays within its capacity."""

from __future__ import annotations

import numpy as np
import pytest

from priorkit.pipeline.compute.hash_sample import HashSample

DTYPES = [np.int64, np.uint64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_below_the_capacity_all_rows_remain_in_order(dtype: type) -> None:
    sample = HashSample(dtype)
    sample.add(np.array([5, 3], dtype), np.array([10, 11]))
    sample.add(np.array([5], dtype), np.array([12]))
    sample.shrink(3)
    hashes, values = sample.rows()
    assert (hashes.tolist(), values.tolist()) == ([5, 3, 5], [10, 11, 12])
    assert (hashes.dtype, len(sample), sample.level) == (dtype, 3, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_level_keeps_hashes_with_one_more_zero_bit(dtype: type) -> None:
    sample = HashSample(dtype)
    sample.add(np.arange(16, dtype=dtype), np.arange(16))
    for capacity, level, kept in ((15, 1, [0, 2, 4, 6, 8, 10, 12, 14]), (7, 2, [0, 4, 8, 12]), (1, 4, [0])):
        sample.shrink(capacity)
        assert (sample.level, sample.rows()[0].tolist(), len(sample)) == (level, kept, len(kept))
    sample.add(np.array([8, 16], dtype), np.array([1, 2]))
    assert sample.take()[0].tolist() == [0, 16]
    assert (len(sample), sample.level, sample.take()[0].tolist()) == (0, 4, [])


def test_the_last_bits_of_negative_hashes_count_too() -> None:
    sample = HashSample(np.int64)
    sample.add(np.array([-4, -3, -2, -(2**63)]), np.arange(4))
    sample.shrink(2)
    assert (sample.level, sample.rows()[1].tolist()) == (2, [0, 3])


def test_a_sample_of_a_higher_level_raises_the_level() -> None:
    sample = HashSample(np.uint64)
    sample.add(np.arange(8, dtype=np.uint64), np.arange(8))
    sample.add(np.array([16], np.uint64), np.array([9]), level=2)
    assert (sample.level, sample.rows()[0].tolist()) == (2, [0, 4, 16])
    sample.add(np.array([2, 4], np.uint64), np.array([1, 1]), level=1)
    assert (sample.level, sample.rows()[0].tolist()) == (2, [0, 4, 16, 4])
