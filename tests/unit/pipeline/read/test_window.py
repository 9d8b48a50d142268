"""Windows: the parts of blocks that are read, and rows copied to their positions in batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.batches import BatchStream
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.pipeline.read.shuffle import EpochPlan, Share
from priorkit.pipeline.read.window import BlockReader, BlockSpan, Buffers, Columns, ShuffleWindow, needed_spans

NAMES = [f"row{number}" for number in range(40)]
EVERYTHING = Columns(text_embed=True, max_text_len=3, captions=True)
ALL_TRAIN = ReadSettings(validation_fraction=0, test_fraction=0, block_rows=4, shuffle_window=16)


def test_a_span_reaches_from_the_first_to_the_last_needed_row_of_a_block() -> None:
    spans = needed_spans(np.array([9, 2, 0, 3]), np.array([0, 4, 8, 12]))
    assert spans == [BlockSpan(0, 0, 3), BlockSpan(2, 9, 9)]
    assert needed_spans(np.array([], np.int64), np.array([0, 4])) == []
    assert needed_spans(np.array([3, 4]), np.array([0, 4, 8])) == [BlockSpan(0, 3, 3), BlockSpan(1, 4, 4)]


@pytest.fixture
def dataset(write_embeddings: Callable[..., Path]) -> EmbeddingDataset:
    return EmbeddingDataset(str(write_embeddings([NAMES[:17], NAMES[17:]])), ALL_TRAIN)


def make_plan(dataset: EmbeddingDataset, reader: BlockReader) -> EpochPlan:
    return EpochPlan(reader.visits.counts(0, 0), dataset.blocks.sizes, seed=0, epoch=0, window_rows=16)


@pytest.mark.parametrize("window", [0, 1])
def test_rows_of_a_window_come_to_their_positions(dataset: EmbeddingDataset, window: int) -> None:
    """The batch has eight places; those at even positions are in the window."""
    reader = BlockReader(dataset, "train", EVERYTHING)
    plan = make_plan(dataset, reader)
    rows_by_place = np.concatenate([reader.visits.rows_in_block(int(block), 0, 0) for block in plan.blocks])
    start, end = (int(place) for place in plan.window_starts[window : window + 2])
    places = np.full(8, end if window == 0 else start - 1)
    places[::2] = [end - 1, start, start + 5, start + 2]
    shuffled = ShuffleWindow(plan, window, places[::2])
    batch = reader.new_batch(Share(places, 0, 8, 8))
    batch.rows[:] = -1
    with ThreadPoolExecutor(2) as pool:
        shuffled.read(reader, Buffers(dataset, EVERYTHING), pool)
        shuffled.wait()
        shuffled.fill(batch, places, reader)
        shuffled.close()
    rows = rows_by_place[places[::2]]
    expected = dataset.take(rows, max_text_len=3)
    assert batch.rows.tolist() == [value for row in rows for value in (row, -1)]
    assert np.array_equal(batch.image_embed[::2], expected.image_embed)
    assert batch.text_embed is not None
    assert np.array_equal(batch.text_embed[::2], expected.text_embed)
    assert batch.token_states is not None
    assert np.array_equal(batch.token_states[::2], expected.token_states)
    assert not batch.token_states[1::2].any()
    assert batch.captions == [caption for row in rows for caption in (NAMES[row], "")]


def test_a_batch_of_one_window_is_filled_whole(dataset: EmbeddingDataset) -> None:
    reader = BlockReader(dataset, "train", Columns())
    plan = make_plan(dataset, reader)
    share = plan.share(0, 8)
    window = ShuffleWindow(plan, 0, share.places)
    batch = reader.new_batch(share)
    with ThreadPoolExecutor(1) as pool:
        window.read(reader, Buffers(dataset, Columns()), pool)
        window.wait()
        window.fill(batch, share.places, reader)
    assert np.array_equal(batch.image_embed, dataset.embeds("img_emb", batch.rows))
    assert (batch.first, batch.global_rows, batch.token_states, batch.captions) == (0, 8, None, None)


def test_rows_that_are_not_unit_vectors_are_refused_by_number(dataset: EmbeddingDataset) -> None:
    reader = BlockReader(dataset, "train", EVERYTHING)
    batch = reader.new_batch(Share(np.arange(3), 0, 3, 3))
    assert batch.text_embed is not None
    assert batch.token_states is not None
    batch.rows[:] = [7, 21, 3]
    batch.image_embed[:] = batch.text_embed[:] = dataset.embeds("img_emb", batch.rows)
    reader.require_sound(batch)
    for array, position, name in ((batch.image_embed, 1, "rows 21"), (batch.token_states, 2, "rows 3")):
        before = array[position].copy()
        array[position] = np.nan
        with pytest.raises(InputError, match=name):
            reader.require_sound(batch)
        array[position] = before


def test_rows_that_are_rounded_are_normalised_and_counted(dataset: EmbeddingDataset) -> None:
    reader = BlockReader(dataset, "train", Columns(text_embed=False))
    batch = reader.new_batch(Share(np.arange(2), 0, 2, 2))
    batch.rows[:] = [0, 1]
    exact = dataset.embeds("img_emb", batch.rows)
    batch.image_embed[:] = exact * [[1], [1.005]]
    reader.require_sound(batch)
    norms = np.linalg.norm(batch.image_embed.astype(np.float64), axis=1)
    assert norms == pytest.approx([1, 1], abs=1e-3)
    assert dataset.rounded == {"image": 1}


def norm_of(name: str) -> float:
    return 5 + int(name[3:]) / 16


@pytest.mark.parametrize("columns", [Columns(raw_image=True, raw_text=True), Columns(False, raw_image=True), Columns()])
def test_norms_of_a_batch_are_those_of_its_rows(write_embeddings: Callable[..., Path], columns: Columns) -> None:
    """Batches of 7 rows come from one window or from two."""
    norms = {"image_norm": norm_of, "text_norm": lambda name: 2 * norm_of(name)}
    dataset = EmbeddingDataset(str(write_embeddings([NAMES[:17], NAMES[17:]], norms=norms)), ALL_TRAIN)
    stream = BatchStream(dataset, "train", batch_size=7, seed=0, columns=columns)
    for batch in itertools.islice(stream.batches(), 2 * stream.steps_per_epoch):
        expected = np.array([norm_of(NAMES[row]) for row in batch.rows], np.float32)
        for found, wanted, factor in (
            (batch.image_norm, columns.raw_image, 1), (batch.text_norm, columns.raw_text, 2)
        ):  # fmt: skip
            assert (found is not None) is wanted
            if found is not None:
                assert found.dtype == np.float32
                assert np.array_equal(found, factor * expected)


def test_norms_that_a_folder_lacks_are_refused(dataset: EmbeddingDataset) -> None:
    with pytest.raises(InputError, match="stores no norms of its image embeddings"):
        BlockReader(dataset, "train", Columns(raw_image=True))
