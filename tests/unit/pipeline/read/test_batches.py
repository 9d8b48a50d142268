"""Batches of every rank: each row once per epoch, the same order from any step, and the requested columns only."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.batches import BatchStream, Columns, TrainBatch
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.pipeline.read.shards import EmbeddingShard
from priorkit.pipeline.read.window import Buffers

WriteEmbeddings = Callable[..., Path]
NAMES = [f"row{number}" for number in range(300)]
SHARDS = [NAMES[:100], [], NAMES[100:180], NAMES[180:]]
SMALL = ReadSettings(validation_fraction=0.3, test_fraction=0.2, block_rows=16, shuffle_window=64)
GOLDEN = Path(__file__).with_name("first_rows.json")
"""Row numbers in the order of seed 0. If the order changed, no training could be resumed or repeated."""
EVERYTHING = Columns(text_embed=True, max_text_len=3, captions=True)


@pytest.fixture
def dataset(write_embeddings: WriteEmbeddings) -> EmbeddingDataset:
    return EmbeddingDataset(str(write_embeddings(SHARDS)), SMALL)


def take(batches: Iterator[TrainBatch], count: int) -> list[TrainBatch]:
    """Return the first batches, and stop the reading."""
    found = list(islice(batches, count))
    batches.close()  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("batch_size", [1, 7, 64, 149, 1000])
def test_every_row_of_the_split_comes_once_per_epoch(dataset: EmbeddingDataset, batch_size: int) -> None:
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


def test_batches_hold_all_columns_of_their_rows(dataset: EmbeddingDataset) -> None:
    for batch in take(BatchStream(dataset, "train", batch_size=40, seed=1, columns=EVERYTHING).batches(), 8):
        expected = dataset.take(batch.rows, max_text_len=3)
        assert batch.text_embed is not None
        assert batch.token_states is not None
        assert batch.image_embed.dtype == batch.text_embed.dtype == batch.token_states.dtype == np.float16
        assert np.array_equal(batch.image_embed, expected.image_embed)
        assert np.array_equal(batch.text_embed, expected.text_embed)
        assert np.array_equal(batch.token_states, expected.token_states)
        assert batch.captions == [NAMES[row] for row in batch.rows]


def test_batches_from_any_step_are_the_same(dataset: EmbeddingDataset) -> None:
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


def test_columns_that_are_not_asked_for_are_none(dataset: EmbeddingDataset) -> None:
    (batch,) = take(BatchStream(dataset, "train", batch_size=9, seed=0, columns=Columns(text_embed=False)).batches(), 1)
    assert (batch.text_embed, batch.token_states, batch.captions) == (None, None, None)
    assert batch.image_embed.shape == (9, 8)


def test_a_split_without_rows_is_refused(write_embeddings: WriteEmbeddings) -> None:
    dataset = EmbeddingDataset(str(write_embeddings(SHARDS)), ReadSettings(validation_fraction=0, test_fraction=0.2))
    with pytest.raises(InputError, match="no row is in the split 'validation'"):
        BatchStream(dataset, "validation", batch_size=4, seed=0)


@pytest.mark.parametrize("damage", [np.nan, np.inf, 0.0, 3.0])
@pytest.mark.parametrize("kind", ["img", "text"])
def test_rows_that_are_not_unit_vectors_are_refused_when_they_are_read(
    dataset: EmbeddingDataset, kind: str, damage: float
) -> None:
    bad = int(dataset.rows("train")[70])
    shard = int(np.searchsorted(dataset.shard_starts, bad, side="right")) - 1
    path = Path(dataset.store.path(f"{kind}_emb/{kind}_emb_{shard:04d}.npy"))
    rows = np.load(path)
    rows[bad - dataset.shard_starts[shard]] *= damage
    np.save(path, rows)
    stream = BatchStream(dataset, "train", batch_size=20, seed=0)
    seen: list[int] = []
    with pytest.raises(InputError, match=rf"{dataset.store.url}: rows {bad}, keys row{bad}: .*`priorkit inspect`"):
        seen.extend(row for batch in islice(stream.batches(), stream.steps_per_epoch) for row in batch.rows)
    assert bad not in seen
    assert len(seen) % 20 == 0
    others = BatchStream(dataset, "validation", batch_size=20, seed=0)  # whose blocks hold that row too
    take(others.batches(), others.steps_per_epoch)


def test_token_states_that_are_not_finite_are_refused(dataset: EmbeddingDataset) -> None:
    bad = int(dataset.rows("train")[0])
    path = Path(dataset.store.path("token_states/token_states_0000.npy"))
    states = np.load(path)
    states[np.load(path.with_name("offsets_0000.npy"))[bad]] = np.nan
    np.save(path, states)
    stream = BatchStream(dataset, "train", batch_size=20, seed=0, columns=EVERYTHING)
    with pytest.raises(InputError, match=rf"rows {bad}, keys row{bad}: "):
        take(stream.batches(), stream.steps_per_epoch)


def test_offsets_beyond_the_token_states_are_refused(dataset: EmbeddingDataset) -> None:
    path = Path(dataset.store.path("token_states/offsets_0000.npy"))
    offsets = np.load(path)
    offsets[1:] += 1000
    np.save(path, offsets)
    stream = BatchStream(dataset, "train", batch_size=20, seed=0, columns=EVERYTHING)
    with pytest.raises(InputError, match=r"offsets_0000\.npy: rows \d+ to \d+ are not within the \d+ token states"):
        take(stream.batches(), stream.steps_per_epoch)


def test_a_file_that_is_cut_short_after_opening_is_refused(dataset: EmbeddingDataset) -> None:
    path = Path(dataset.store.path("text_emb/text_emb_0002.npy"))
    path.write_bytes(path.read_bytes()[:-100])
    stream = BatchStream(dataset, "train", batch_size=20, seed=0)
    with pytest.raises(InputError, match=r"text_emb_0002\.npy ends early, in row \d+ of 80"):
        take(stream.batches(), stream.steps_per_epoch)


def test_a_rank_reads_about_its_share_of_the_bytes(
    write_embeddings: WriteEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ReadSettings(validation_fraction=0, test_fraction=0.05, block_rows=50, shuffle_window=1600)
    dataset = EmbeddingDataset(str(write_embeddings([[f"row{n}" for n in range(3200)]])), settings)
    read: list[int] = []
    original = EmbeddingShard.read_into

    def counting(self: EmbeddingShard, kind: str, first: int, target: np.ndarray) -> None:
        read.append(target.nbytes)
        original(self, kind, first, target)

    monkeypatch.setattr(EmbeddingShard, "read_into", counting)

    def bytes_of(rank: int, ranks: int) -> int:
        stream = BatchStream(dataset, "train", batch_size=200, seed=0, rank=rank, ranks=ranks)
        read.clear()
        for window, _ in islice(stream._windows(0), 2):
            with ThreadPoolExecutor(1) as pool:
                window.read(stream._reader, Buffers(dataset, Columns()), pool)
                window.wait()
        return sum(read)

    whole = bytes_of(0, 1)
    assert 0.95 * 3200 * 8 * 2 * 2 < whole <= 3200 * 8 * 2 * 2
    for ranks in (2, 4):
        shares = [bytes_of(rank, ranks) / whole for rank in range(ranks)]
        assert max(shares) < 1 / ranks + 0.15  # the borders between ranks vary from batch to batch
        assert sum(shares) >= 1


def test_the_first_1000_rows_of_seed_0_match_the_golden_file(write_embeddings: WriteEmbeddings) -> None:
    names = [f"row{number}" for number in range(1500)]
    settings = ReadSettings(block_rows=64, shuffle_window=512)
    dataset = EmbeddingDataset(str(write_embeddings([names[:700], names[700:]])), settings)
    batches = take(BatchStream(dataset, "train", batch_size=250, seed=0).batches(), 4)
    assert np.concatenate([batch.rows for batch in batches]).tolist() == json.loads(GOLDEN.read_text())


def group_of(name: str) -> str:
    return f"image {int(name[3:]) // 4 % 50}"


def test_one_caption_per_image_is_drawn_each_epoch(write_embeddings: WriteEmbeddings) -> None:
    """300 rows of 50 images, each with 6 or more rows in several shards."""
    settings = SMALL.model_copy(update={"captions": "one"})
    folder = str(write_embeddings(SHARDS, columns={"sha256": group_of}))
    dataset = EmbeddingDataset(folder, settings)
    rows = dataset.rows("train")
    images = {group_of(NAMES[row]) for row in rows}
    stream = BatchStream(dataset, "train", batch_size=7, seed=0)
    assert stream.rows == len(images)
    batches = take(stream.batches(), 40 * stream.steps_per_epoch)
    epochs = np.split(np.concatenate([batch.rows for batch in batches]), 40)
    assert all(sorted(group_of(NAMES[row]) for row in epoch) == sorted(images) for epoch in epochs)
    assert set(np.concatenate(epochs)) == set(rows)  # missed with a chance of 200 * (5 / 6)^40 = 0.1; it is fixed
    again = BatchStream(EmbeddingDataset(folder, settings), "train", batch_size=7, seed=0)
    later = take(again.batches(3 * again.steps_per_epoch), again.steps_per_epoch)
    assert np.array_equal(np.concatenate([batch.rows for batch in later]), epochs[3])


def test_without_copies_of_images_one_caption_visits_every_row(write_embeddings: WriteEmbeddings) -> None:
    folder = str(write_embeddings(SHARDS))
    one = BatchStream(
        EmbeddingDataset(folder, SMALL.model_copy(update={"captions": "one"})), "train", batch_size=50, seed=0
    )
    every = BatchStream(EmbeddingDataset(folder, SMALL), "train", batch_size=50, seed=0)
    for batch, other in zip(take(one.batches(), 4), take(every.batches(), 4), strict=True):
        assert np.array_equal(batch.rows, other.rows)


def test_remote_folders_are_read_by_range(dataset: EmbeddingDataset) -> None:
    remote = Store("memory://batches")
    for name in dataset.store.names():
        if not name.startswith(("selections", ".lock")):
            with dataset.store.open(name) as source, remote.create(name) as target:
                target.write(source.read())
    for _ in range(2):  # the second time with the cached split plan
        other = EmbeddingDataset(remote.url, SMALL)
        one, two = (
            take(BatchStream(each, "train", batch_size=50, seed=0, columns=EVERYTHING).batches(), 5)
            for each in (dataset, other)
        )
        for batch, found in zip(one, two, strict=True):
            assert np.array_equal(batch.rows, found.rows)
            assert np.array_equal(batch.image_embed, found.image_embed)
            assert np.array_equal(batch.token_states, found.token_states)
            assert batch.captions == found.captions
    assert {name.rpartition("_")[0] for name in remote.names("selections")} == {
        "selections/selection", "selections/counts",
    }  # fmt: skip


def test_closing_the_iterator_stops_its_threads(dataset: EmbeddingDataset) -> None:
    before = threading.active_count()
    for _ in range(5):
        take(BatchStream(dataset, "train", batch_size=5, seed=0).batches(), 2)
    gc.collect()
    deadline = time.monotonic() + 600
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before
