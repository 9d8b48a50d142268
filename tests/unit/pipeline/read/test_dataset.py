"""Rows by number, splits that stay put, and what is refused when a folder is opened."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.dataset import SPLITS, EmbeddingDataset, read_embeddings
from priorkit.pipeline.read.settings import ReadSettings

WriteEmbeddings = Callable[..., Path]
NAMES = [f"row{number}" for number in range(300)]
SHARDS = [NAMES[:100], NAMES[100:180], NAMES[180:]]
HALVES = ReadSettings(validation_fraction=0.3, test_fraction=0.2)


def keys(dataset: EmbeddingDataset, rows: np.ndarray) -> list[str]:
    return dataset.metadata(rows, ["key"]).column("key").to_pylist()


def split_of(dataset: EmbeddingDataset) -> dict[str, str]:
    return {
        key: SPLITS[code] for key, code in zip(keys(dataset, np.arange(dataset.count)), dataset.split_plan, strict=True)
    }


def test_rows_are_numbered_by_shard_and_position(write_embeddings: WriteEmbeddings) -> None:
    dataset = read_embeddings(str(write_embeddings(SHARDS)))
    assert (dataset.count, dataset.embed_dim, dataset.token_width) == (300, 8, 4)
    assert keys(dataset, np.arange(300)) == NAMES


def test_copies_and_captions_of_an_image_have_one_group_id(write_embeddings: WriteEmbeddings) -> None:
    """By the hash of the image, wherever the row stands and whatever is beside it."""
    names = [f"image{number % 40}, caption{number}" for number in range(120)]
    by_image = {"sha256": lambda name: name.split(",")[0]}
    dataset = read_embeddings(str(write_embeddings([names[:70], names[70:]], columns=by_image)))
    ids = dict(zip(keys(dataset, np.arange(120)), dataset.group_ids.tolist(), strict=True))
    assert len({(name.split(",")[0], group) for name, group in ids.items()}) == len(set(ids.values())) == 40
    moved = read_embeddings(str(write_embeddings([names[::-1]], "moved", columns=by_image)))
    assert dict(zip(keys(moved, np.arange(120)), moved.group_ids.tolist(), strict=True)) == ids
    assert len(set(dataset.row_ids.tolist())) == 120


def test_rows_are_read_in_the_order_asked_for_with_all_their_parts(
    write_embeddings: WriteEmbeddings,
    vector_of: Callable[[str, str], np.ndarray],
    states_of: Callable[[str], np.ndarray],
) -> None:
    dataset = read_embeddings(str(write_embeddings(SHARDS)))
    rows = np.array([299, 0, 150, 100, 99, 179, 180, 7, 7, 211])
    batch = dataset.take(rows, max_text_len=3)
    assert batch.image_embed.dtype == batch.text_embed.dtype == np.float32
    assert batch.token_states is not None
    assert batch.token_states.shape == (10, 3, 4)
    for place, row in enumerate(rows):
        assert np.array_equal(batch.image_embed[place], vector_of(NAMES[row], "img").astype(np.float32))
        assert np.array_equal(batch.text_embed[place], vector_of(NAMES[row], "text").astype(np.float32))
        expected = np.zeros((3, 4), np.float32)
        known = states_of(NAMES[row])[:3]
        expected[: len(known)] = known
        assert np.array_equal(batch.token_states[place], expected)
    assert keys(dataset, rows) == [NAMES[row] for row in rows]
    assert dataset.take(rows).token_states is None


def test_no_rows_are_an_empty_batch(write_embeddings: WriteEmbeddings) -> None:
    dataset = read_embeddings(str(write_embeddings(SHARDS)))
    batch = dataset.take(np.array([], np.int64), max_text_len=2)
    assert batch.image_embed.shape == (0, 8)
    assert batch.token_states is not None
    assert batch.token_states.shape == (0, 2, 4)
    assert dataset.metadata(np.array([], np.int64), ["key"]).num_rows == 0


def test_empty_shards_move_no_row(
    write_embeddings: WriteEmbeddings, vector_of: Callable[[str, str], np.ndarray]
) -> None:
    dataset = read_embeddings(str(write_embeddings([[], NAMES[:2], [], [], NAMES[2:4], []])))
    assert keys(dataset, np.arange(4)) == NAMES[:4]
    assert np.array_equal(dataset.take(np.array([2])).image_embed[0], vector_of("row2", "img").astype(np.float32))


def test_every_row_is_in_exactly_one_split_of_about_the_asked_size(write_embeddings: WriteEmbeddings) -> None:
    dataset = EmbeddingDataset(str(write_embeddings(SHARDS)), HALVES)
    rows = [dataset.rows(split) for split in SPLITS]
    assert sorted(np.concatenate(rows)) == list(range(300))
    train, validation, test = (len(part) / 300 for part in rows)
    assert (train, validation, test) == pytest.approx((0.5, 0.3, 0.2), abs=0.09)


def test_rows_stay_in_their_split_when_data_is_added_or_shards_are_cut_otherwise(
    write_embeddings: WriteEmbeddings,
) -> None:
    small = split_of(EmbeddingDataset(str(write_embeddings(SHARDS[:2], "small")), HALVES))
    grown = split_of(EmbeddingDataset(str(write_embeddings(SHARDS, "small")), HALVES))
    recut = split_of(EmbeddingDataset(str(write_embeddings([NAMES[250:], NAMES[:250]], "recut")), HALVES))
    assert len(small) == 180
    assert {key: grown[key] for key in small} == small
    assert recut == grown


def test_the_test_split_does_not_move_when_the_share_of_validation_changes(write_embeddings: WriteEmbeddings) -> None:
    folder = str(write_embeddings(SHARDS))
    more = ReadSettings(validation_fraction=0.6, test_fraction=0.2)
    assert np.array_equal(EmbeddingDataset(folder, HALVES).rows("test"), EmbeddingDataset(folder, more).rows("test"))
    assert len(EmbeddingDataset(folder, ReadSettings(validation_fraction=0, test_fraction=0)).rows("train")) == 300


@pytest.mark.parametrize(
    "columns",
    [
        {"sha256": lambda name: name[-1], "url": lambda name: name},
        {"url": lambda name: name[-1]},
        {"sha256": lambda name: None, "url": lambda name: name[-1]},
    ],
    ids=["hash", "url", "url where there is no hash"],
)
def test_copies_of_an_image_are_on_one_side(write_embeddings: WriteEmbeddings, columns: dict[str, Any]) -> None:
    splits = split_of(EmbeddingDataset(str(write_embeddings(SHARDS, columns=columns)), HALVES))
    for group in "0123456789":
        assert len({split for key, split in splits.items() if key[-1] == group}) == 1
    assert len(set(splits.values())) > 1


def test_without_hash_and_url_the_embedding_names_the_image(write_embeddings: WriteEmbeddings) -> None:
    twice = [["a", "b", "c", "d", "e", "f"], ["f", "e", "d", "c", "b", "a"]]
    dataset = EmbeddingDataset(str(write_embeddings(twice, columns={})), HALVES)
    assert dataset.split_plan[:6].tolist() == dataset.split_plan[6:][::-1].tolist()


def test_the_order_of_an_epoch_is_a_pure_function_of_seed_and_epoch(write_embeddings: WriteEmbeddings) -> None:
    folder = str(write_embeddings(SHARDS))
    one, other = EmbeddingDataset(folder, HALVES), EmbeddingDataset(folder, HALVES)
    order = one.epoch_order("train", seed=3, epoch=1)
    assert np.array_equal(order, other.epoch_order("train", seed=3, epoch=1))
    assert sorted(order) == one.rows("train").tolist()
    for seed, epoch in ((3, 2), (4, 1), (1, 3)):
        assert not np.array_equal(order, one.epoch_order("train", seed=seed, epoch=epoch))


def test_a_selection_is_kept_and_a_damaged_one_is_made_anew(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS)
    split_plan = EmbeddingDataset(str(folder), HALVES).split_plan
    (path,) = (folder / "selections").iterdir()
    for damage in (b"", b"no array", path.read_bytes()[:-5]):
        path.write_bytes(damage)
        assert np.array_equal(EmbeddingDataset(str(folder), HALVES).split_plan, split_plan)
    assert len(path.read_bytes()) > 300


def test_a_read_only_folder_does_without_a_kept_selection(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS)
    (folder / "selections").write_bytes(b"in the way of the folder")
    assert len(EmbeddingDataset(str(folder), HALVES).split_plan) == 300


def test_a_missing_short_or_longer_file_is_refused_at_open(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS)
    files = [path for path in sorted(folder.rglob("*_0001.*")) if path.parent != folder / "shards"]
    assert len(files) == 5
    for path in files:
        whole = path.read_bytes()
        for content, state in (
            (None, "is missing"),
            (whole[:-1], "bytes instead of"),
            (whole + b"x", "bytes instead of"),
        ):
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(InputError, match=f"{path.name} .*{state}.*run `priorkit embed` again"):
                read_embeddings(str(folder))
            path.write_bytes(whole)
    read_embeddings(str(folder))


def test_an_array_of_another_length_than_its_record_is_refused(
    write_embeddings: WriteEmbeddings, replace_array: Callable[[Path, str, np.ndarray], None]
) -> None:
    folder = write_embeddings(SHARDS)
    for name, values in (
        ("img_emb/img_emb_0000.npy", np.zeros((99, 8), np.float16)),
        ("token_states/offsets_0000.npy", np.zeros(100, np.int64)),
    ):
        before, manifest = (folder / name).read_bytes(), (folder / "manifest.json").read_bytes()
        replace_array(folder, name, values)
        with pytest.raises(InputError, match="rows, its record says"):
            read_embeddings(str(folder)).take(np.arange(3), max_text_len=2)
        (folder / name).write_bytes(before)
        (folder / "manifest.json").write_bytes(manifest)


def test_pickled_arrays_are_never_loaded(
    write_embeddings: WriteEmbeddings, replace_array: Callable[[Path, str, np.ndarray], None]
) -> None:
    folder = write_embeddings(SHARDS)
    replace_array(folder, "img_emb/img_emb_0000.npy", np.array([print] * 100, dtype=object))
    with pytest.raises(InputError, match=r"img_emb_0000\.npy is not an array of numbers"):
        read_embeddings(str(folder)).take(np.arange(3))


def test_metadata_that_lacks_a_column_is_named(write_embeddings: WriteEmbeddings) -> None:
    dataset = read_embeddings(str(write_embeddings(SHARDS)))
    with pytest.raises(InputError, match=r"metadata_0000\.parquet has no column 'licence'"):
        dataset.metadata(np.arange(3), ["licence"])


def test_metadata_of_another_length_is_refused(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS)
    path = folder / "metadata/metadata_0000.parquet"
    pq.write_table(pa.table({"key": NAMES[:50]}), path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"]["0000"]["files"]["metadata/metadata_0000.parquet"]["bytes"] = path.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="50 rows, its record says 100"):
        read_embeddings(str(folder)).metadata(np.arange(3), ["key"])


def test_token_states_that_are_not_stored_are_not_made_up(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS)
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"].values():
        shard["files"] = {name: entry for name, entry in shard["files"].items() if "token_states" not in name}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"token_states/.* is in no record"):
        read_embeddings(str(folder))
    shutil.rmtree(folder / "token_states")
    dataset = read_embeddings(str(folder))
    assert dataset.token_width is None
    with pytest.raises(InputError, match="stores no token states; embed with token_states: true"):
        dataset.take(np.arange(3), max_text_len=2)


def test_folders_that_hold_no_embeddings_are_refused(write_embeddings: WriteEmbeddings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no result of `priorkit embed`"):
        read_embeddings(str(tmp_path / "none"))
    with pytest.raises(InputError, match="holds no embeddings"):
        read_embeddings(str(write_embeddings([[], []], "empty")))


def test_splits_are_those_of_one_hash_after_the_other(write_embeddings: WriteEmbeddings) -> None:
    """As they have been from the first version on, for rows must never move from one split to another."""
    dataset = EmbeddingDataset(str(write_embeddings(SHARDS)), HALVES)
    for row, name in enumerate(NAMES):
        digest = hashlib.sha256(b"priorkit split\0" + f"hash of {name}".encode()).digest()
        place = (int.from_bytes(digest[:8], "big") >> 11) / 2**53
        assert dataset.split_plan[row] == (2 if place < 0.2 else 1 if place < 0.5 else 0)


@pytest.mark.parametrize("block_rows", [1, 7, 64, 1000])
def test_counts_of_blocks_are_those_of_their_rows(write_embeddings: WriteEmbeddings, block_rows: int) -> None:
    settings = HALVES.model_copy(update={"block_rows": block_rows})
    dataset = EmbeddingDataset(str(write_embeddings([SHARDS[0], [], *SHARDS[1:]])), settings)
    for split in SPLITS:
        visits = dataset.visits(split)
        counts = visits.counts(0, 0)
        rows = [visits.rows_in_block(block, 0, 0) for block in range(len(counts))]
        assert [len(part) for part in rows] == counts.tolist()
        assert np.array_equal(np.concatenate(rows), dataset.rows(split))
    sizes = dataset.blocks.sizes
    assert sizes.max() <= block_rows
    starts = dataset.blocks.starts
    shards = np.searchsorted(dataset.shard_starts, [starts[:-1], starts[1:] - 1], side="right")
    assert np.array_equal(*shards)  # a block is of one shard


def test_a_folder_without_text_embeddings_opens(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS)
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"].values():
        shard["files"] = {name: entry for name, entry in shard["files"].items() if "text_emb" not in name}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(folder / "text_emb")
    dataset = read_embeddings(str(folder))
    assert len(dataset.rows("train")) > 200
    with pytest.raises(InputError, match=r"stores no text embeddings; embed with embed\.text=true"):
        dataset.take(np.arange(3))


def test_files_of_ours_in_another_type_are_refused_at_open(
    write_embeddings: WriteEmbeddings, replace_array: Callable[[Path, str, np.ndarray], None]
) -> None:
    folder = write_embeddings(SHARDS)
    replace_array(folder, "text_emb/text_emb_0001.npy", np.zeros((80, 8), np.float32))
    with pytest.raises(InputError, match=r"text_emb_0001\.npy holds embeddings of 8 in float32, the manifest says 8"):
        read_embeddings(str(folder))


def test_opening_reads_no_file_but_the_manifest(
    write_embeddings: WriteEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, opened = write_embeddings(SHARDS), []
    original = Store.open
    monkeypatch.setattr(Store, "open", lambda store, name: (opened.append(name), original(store, name))[1])
    monkeypatch.setattr(Store, "size", lambda store, name: pytest.fail(f"asks for the size of {name}"))
    assert read_embeddings(str(folder)).count == 300
    assert opened == ["manifest.json"]
