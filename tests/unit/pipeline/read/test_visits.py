"""Visits of an epoch: blocks, rows of a split in each block, and one row of each group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from priorkit.pipeline.read import visits as visits_module
from priorkit.pipeline.read.dataset import SPLITS, EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.pipeline.read.visits import Blocks, Visits, find_shared_groups, number_within_groups

WriteEmbeddings = Callable[..., Path]
NAMES = [f"row{number}" for number in range(300)]
SHARDS = [NAMES[:100], [], NAMES[100:180], NAMES[180:]]
HALVES = ReadSettings(validation_fraction=0.3, test_fraction=0.2)
SHARD_STARTS = np.array([0, 5, 5, 7])


def test_blocks_divide_each_shard() -> None:
    blocks = Blocks.from_shards(SHARD_STARTS, 2)
    assert blocks.starts.tolist() == [0, 2, 4, 5, 7]
    assert blocks.shards.tolist() == [0, 0, 0, 2]
    assert blocks.sizes.tolist() == [2, 2, 1, 2]


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
def test_rows_of_each_split_are_counted_per_block(chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits_module, "_CHUNK_ROWS", chunk_rows)
    split_plan = np.array([0, 1, 2, 0, 1, 0, 0], np.uint8)
    counts = np.concatenate(list(Blocks.from_shards(SHARD_STARTS, 2).count_splits(split_plan, 3)))
    assert counts.dtype == np.uint32
    assert counts.tolist() == [[1, 1, 0], [1, 0, 1], [0, 1, 0], [2, 0, 0]]


def test_rows_are_numbered_within_groups_of_several() -> None:
    rows = np.array([[4, 7], [0, 9], [2, 7], [3, 9], [1, 5], [6, 7]])
    assert number_within_groups(rows).tolist() == [[2, 7, 0, 3], [4, 7, 1, 3], [6, 7, 2, 3], [0, 9, 0, 2], [3, 9, 1, 2]]


def test_all_rows_of_a_split_are_visited() -> None:
    split_plan = np.array([0, 1, 2, 0, 1, 0, 0], np.uint8)
    visits = Visits(Blocks.from_shards(SHARD_STARTS, 2), split_plan, 0, np.array([1, 1, 0, 2]), None)
    assert visits.rows == 4
    assert visits.counts(seed=0, epoch=0).tolist() == [1, 1, 0, 2]
    assert [visits.rows_in_block(block, 0, 0).tolist() for block in range(4)] == [[0], [3], [], [5, 6]]


@pytest.mark.parametrize("chunk_rows", [1, 100])
def test_one_row_of_each_group_is_visited(chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 0, 3 and 6 are one group of the split; rows 1 and 4 are a group of another split."""
    monkeypatch.setattr(visits_module, "_CHUNK_ROWS", chunk_rows)
    split_plan = np.array([0, 1, 2, 0, 1, 0, 0], np.uint8)
    shared = np.array([[0, 17, 0, 3], [1, 23, 0, 2], [3, 17, 1, 3], [4, 23, 1, 2], [6, 17, 2, 3]])
    visits = Visits(Blocks.from_shards(SHARD_STARTS, 2), split_plan, 0, np.array([1, 1, 0, 2]), shared)
    assert visits.rows == 2
    drawn = set()
    for epoch in range(30):
        rows = [visits.rows_in_block(block, 1, epoch).tolist() for block in range(4)]
        assert [len(block) for block in rows] == visits.counts(1, epoch).tolist()
        visited = {row for block in rows for row in block}
        assert 5 in visited
        drawn |= visited - {5}
        assert len(visited) == visits.rows
    assert drawn == {0, 3, 6}


def test_rows_that_share_their_group_are_found(write_embeddings: WriteEmbeddings) -> None:
    group = {"sha256": lambda name: "same" if name in ("a", "d") else name}
    dataset = EmbeddingDataset(str(write_embeddings([["a", "b"], ["c", "d"]], columns=group)))
    (shared,) = find_shared_groups(dataset.shards)
    assert shared[:, [0, 2, 3]].tolist() == [[0, 0, 2], [3, 1, 2]]
    assert shared[0, 1] == shared[1, 1]


@pytest.mark.parametrize("block_rows", [1, 7, 64, 1000])
def test_counts_of_blocks_are_those_of_their_rows(write_embeddings: WriteEmbeddings, block_rows: int) -> None:
    settings = HALVES.model_copy(update={"block_rows": block_rows})
    dataset = EmbeddingDataset(str(write_embeddings(SHARDS)), settings)
    for split in SPLITS:
        visits = dataset.visits(split)
        counts = visits.counts(0, 0)
        rows = [visits.rows_in_block(block, 0, 0) for block in range(len(counts))]
        assert [len(part) for part in rows] == counts.tolist()
        assert np.array_equal(np.concatenate(rows), dataset.rows(split))
    assert dataset.blocks.sizes.max() <= block_rows
    starts = dataset.blocks.starts
    shards = np.searchsorted(dataset.shard_starts, [starts[:-1], starts[1:] - 1], side="right")
    assert np.array_equal(*shards)  # first and last row of a block are in one shard
