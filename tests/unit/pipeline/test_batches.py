"""Batches of every rank: each row once an epoch, the same order from any step, what was asked for and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from priorkit.pipeline.batches import BatchStream, Columns, TrainBatch
from priorkit.pipeline.config import ReadSettings
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read import EmbeddingDataset

WriteEmbeddings = Callable[..., Path]
NAMES = [f"row{number}" for number in range(300)]
SHARDS = [NAMES[:100], [], NAMES[100:180], NAMES[180:]]
SMALL = ReadSettings(validation_fraction=0.3, test_fraction=0.2, block_rows=16, shuffle_window=64)
EVERYTHING = Columns(text_embed=True, max_text_len=3, captions=True)


@pytest.fixture
def dataset(write_embeddings: WriteEmbeddings) -> EmbeddingDataset:
    return EmbeddingDataset(str(write_embeddings(SHARDS)), SMALL)


def take(batches: Iterator[TrainBatch], count: int) -> list[TrainBatch]:
    """The first batches, after which the reading is ended."""
    found = list(islice(batches, count))
    batches.close()  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("batch_size", [1, 7, 64, 149, 1000])
def test_every_row_of_the_split_once_an_epoch(dataset: EmbeddingDataset, batch_size: int) -> None:
    stream = BatchStream(dataset, "train", batch_size=batch_size, seed=0)
    rows = dataset.rows("train").tolist()
    assert (stream.rows, stream.steps_per_epoch) == (len(rows), -(-len(rows) // batch_size))
    batches = take(stream.batches(), 2 * stream.steps_per_epoch)
    halves = batches[: stream.steps_per_epoch], batches[stream.steps_per_epoch :]
    epochs = [np.concatenate([batch.rows for batch in half]) for half in halves]
    assert [sorted(epoch) for epoch in epochs] == [rows, rows]
    assert not np.array_equal(*epochs)
    sizes = [batch.global_rows for batch in batches[: stream.steps_per_epoch]]
    assert sizes == [len(batch.rows) for batch in batches[: stream.steps_per_epoch]]
    assert sizes[:-1] == [batch_size] * (stream.steps_per_epoch - 1)


def test_rows_come_with_all_their_parts(dataset: EmbeddingDataset) -> None:
    for batch in take(BatchStream(dataset, "train", batch_size=40, seed=1, columns=EVERYTHING).batches(), 8):
        expected = dataset.take(batch.rows, max_text_len=3)
        assert batch.text_embed is not None
        assert batch.token_states is not None
        assert batch.image_embed.dtype == batch.text_embed.dtype == batch.token_states.dtype == np.float16
        assert np.array_equal(batch.image_embed, expected.image_embed)
        assert np.array_equal(batch.text_embed, expected.text_embed)
        assert np.array_equal(batch.token_states, expected.token_states)
        assert batch.captions == [NAMES[row] for row in batch.rows]


def test_from_any_step_the_same_batches_follow(dataset: EmbeddingDataset) -> None:
    stream = BatchStream(dataset, "train", batch_size=37, seed=2)
    whole = take(stream.batches(), 12)
    for first in (1, 3, stream.steps_per_epoch - 1, stream.steps_per_epoch, stream.steps_per_epoch + 2):
        for batch, expected in zip(take(stream.batches(first), 4), whole[first:], strict=False):
            assert np.array_equal(batch.rows, expected.rows)
            assert np.array_equal(batch.image_embed, expected.image_embed)


@pytest.mark.parametrize("ranks", [2, 3, 50])
def test_ranks_share_the_batches_of_one(dataset: EmbeddingDataset, ranks: int) -> None:
    whole = BatchStream(dataset, "train", batch_size=37, seed=0, columns=EVERYTHING)
    steps = whole.steps_per_epoch + 2
    streams = [
        BatchStream(dataset, "train", batch_size=37, seed=0, columns=EVERYTHING, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]
    assert {stream.steps_per_epoch for stream in streams} == {whole.steps_per_epoch}
    shares = zip(*(take(stream.batches(), steps) for stream in streams), strict=True)
    for batch, parts in zip(take(whole.batches(), steps), shares, strict=True):
        assert np.array_equal(np.concatenate([part.rows for part in parts]), batch.rows)
        assert np.array_equal(np.concatenate([part.image_embed for part in parts]), batch.image_embed)
        states = [part.token_states for part in parts if part.token_states is not None]
        assert np.array_equal(np.concatenate(states), batch.token_states)
        assert [caption for part in parts for caption in part.captions or ()] == batch.captions
        assert [part.first for part in parts] == np.cumsum([0, *(len(part.rows) for part in parts)])[:-1].tolist()
        assert {part.global_rows for part in parts} == {len(batch.rows)}
        assert max(len(part.rows) for part in parts) - min(len(part.rows) for part in parts) <= 1


def test_what_is_not_asked_for_is_not_there(dataset: EmbeddingDataset) -> None:
    (batch,) = take(BatchStream(dataset, "train", batch_size=9, seed=0, columns=Columns(text_embed=False)).batches(), 1)
    assert (batch.text_embed, batch.token_states, batch.captions) == (None, None, None)
    assert batch.image_embed.shape == (9, 8)


def test_a_split_without_rows_is_refused(write_embeddings: WriteEmbeddings) -> None:
    dataset = EmbeddingDataset(str(write_embeddings(SHARDS)), ReadSettings(validation_fraction=0, test_fraction=0.2))
    with pytest.raises(InputError, match="no row is in the split 'validation'"):
        BatchStream(dataset, "validation", batch_size=4, seed=0)
