"""Split plan: the split of each row does not change with data, shards or other fractions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.pipeline.read.split_plan import SPLITS, group_digests, identify_groups, identify_rows, split_codes

WriteEmbeddings = Callable[..., Path]
NAMES = [f"row{number}" for number in range(300)]
SHARDS = [NAMES[:100], NAMES[100:180], NAMES[180:]]
HALVES = ReadSettings(validation_fraction=0.3, test_fraction=0.2)


def keys(dataset: EmbeddingDataset, rows: np.ndarray) -> list[str]:
    return dataset.metadata(rows, ["key"]).column("key").to_pylist()


def split_of(dataset: EmbeddingDataset) -> dict[str, str]:
    names = keys(dataset, np.arange(dataset.count))
    return {key: SPLITS[code] for key, code in zip(names, dataset.split_plan, strict=True)}


def test_hashes_below_the_fractions_test_and_validate() -> None:
    """The order is test, validation, train; each range excludes its end."""
    step = 1 << 62  # a quarter of all hashes
    hashes = np.array([0, step - 1, step, 3 * step - 1, 3 * step, 4 * step - 1], np.uint64)
    settings = ReadSettings(validation_fraction=0.5, test_fraction=0.25)
    codes = split_codes(hashes, settings)
    assert codes.dtype == np.uint8
    assert [SPLITS[code] for code in codes] == ["test", "test", "validation", "validation", "train", "train"]


def test_digests_match_hashes_computed_one_by_one(write_embeddings: WriteEmbeddings) -> None:
    dataset = EmbeddingDataset(str(write_embeddings([["a", "b"], [], ["c"]])))
    expected = [hashlib.sha256(f"priorkit split\0hash of {name}".encode()).digest() for name in "abc"]
    digests = np.concatenate(list(group_digests(dataset.shards)))
    assert digests.astype(">u8").tobytes() == b"".join(expected)
    assert np.array_equal(np.concatenate(list(identify_groups(dataset.shards))), digests[:, 0])


def test_row_ids_are_hashes_of_group_and_text(
    write_embeddings: WriteEmbeddings, vector_of: Callable[[str, str], np.ndarray]
) -> None:
    dataset = EmbeddingDataset(str(write_embeddings([["a"], ["b", "c"]])))
    contents = [f"hash of {name}".encode() + vector_of(name, "text").tobytes() for name in "abc"]
    expected = [int.from_bytes(hashlib.sha256(content).digest()[:8], "little") for content in contents]
    assert np.concatenate(list(identify_rows(dataset.shards))).tolist() == expected


def test_copies_and_captions_of_an_image_have_one_group_id(write_embeddings: WriteEmbeddings) -> None:
    """The group is the hash of the image; it does not depend on the position of the row or on other columns."""
    names = [f"image{number % 40}, caption{number}" for number in range(120)]
    by_image = {"sha256": lambda name: name.split(",")[0]}
    dataset = EmbeddingDataset(str(write_embeddings([names[:70], names[70:]], columns=by_image)))
    ids = dict(zip(keys(dataset, np.arange(120)), dataset.group_ids.tolist(), strict=True))
    assert len({(name.split(",")[0], group) for name, group in ids.items()}) == len(set(ids.values())) == 40
    moved = EmbeddingDataset(str(write_embeddings([names[::-1]], "moved", columns=by_image)))
    assert dict(zip(keys(moved, np.arange(120)), moved.group_ids.tolist(), strict=True)) == ids
    assert len(set(dataset.row_ids.tolist())) == 120


def test_every_row_is_in_one_split_of_about_the_requested_size(write_embeddings: WriteEmbeddings) -> None:
    dataset = EmbeddingDataset(str(write_embeddings(SHARDS)), HALVES)
    rows = [dataset.rows(split) for split in SPLITS]
    assert sorted(np.concatenate(rows)) == list(range(300))
    train, validation, test = (len(part) / 300 for part in rows)
    assert (train, validation, test) == pytest.approx((0.5, 0.3, 0.2), abs=0.09)


def test_rows_stay_in_their_split_when_data_is_added_or_shards_change(
    write_embeddings: WriteEmbeddings,
) -> None:
    small = split_of(EmbeddingDataset(str(write_embeddings(SHARDS[:2], "small")), HALVES))
    grown = split_of(EmbeddingDataset(str(write_embeddings(SHARDS, "small")), HALVES))
    recut = split_of(EmbeddingDataset(str(write_embeddings([NAMES[250:], NAMES[:250]], "recut")), HALVES))
    assert len(small) == 180
    assert {key: grown[key] for key in small} == small
    assert recut == grown


def test_the_test_split_does_not_depend_on_the_validation_fraction(write_embeddings: WriteEmbeddings) -> None:
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
def test_copies_of_an_image_are_in_one_split(write_embeddings: WriteEmbeddings, columns: dict[str, Any]) -> None:
    splits = split_of(EmbeddingDataset(str(write_embeddings(SHARDS, columns=columns)), HALVES))
    for group in "0123456789":
        assert len({split for key, split in splits.items() if key[-1] == group}) == 1
    assert len(set(splits.values())) > 1


def test_without_hash_and_url_copies_have_equal_embeddings(write_embeddings: WriteEmbeddings) -> None:
    twice = [["a", "b", "c", "d", "e", "f"], ["f", "e", "d", "c", "b", "a"]]
    dataset = EmbeddingDataset(str(write_embeddings(twice, columns={})), HALVES)
    assert dataset.split_plan[:6].tolist() == dataset.split_plan[6:][::-1].tolist()


def test_splits_match_hashes_computed_one_by_one(write_embeddings: WriteEmbeddings) -> None:
    """The formula must never change, or rows would move from one split to another."""
    dataset = EmbeddingDataset(str(write_embeddings(SHARDS)), HALVES)
    for row, name in enumerate(NAMES):
        digest = hashlib.sha256(b"priorkit split\0" + f"hash of {name}".encode()).digest()
        place = (int.from_bytes(digest[:8], "big") >> 11) / 2**53
        assert dataset.split_plan[row] == (2 if place < 0.2 else 1 if place < 0.5 else 0)
