"""Splits by group: rows that are linked by image or by a column are in one split, and nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read import groups
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.groups import find_roots, hash_value
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.pipeline.read.split_plan import SPLITS

WriteEmbeddings = Callable[..., Path]
NAMES = [f"row{number}" for number in range(300)]
SHARDS = [NAMES[:100], NAMES[100:180], NAMES[180:]]


def halves(*columns: str) -> ReadSettings:
    return ReadSettings(validation_fraction=0.3, test_fraction=0.2, group_column=columns or None)


def number(name: str) -> int:
    return int(name.removeprefix("row"))


def image(name: str) -> str:
    return f"hash of {name}"


def split_of(folder: Path, *columns: str) -> dict[str, str]:
    dataset = EmbeddingDataset(str(folder), halves(*columns))
    names = dataset.metadata(np.arange(dataset.count), ["key"]).column("key").to_pylist()
    return {key: SPLITS[code] for key, code in zip(names, dataset.split_plan, strict=True)}


def united(splits: dict[str, str], value: Callable[[str], Any]) -> bool:
    """Tell whether rows of equal values are in one split, and whether more than one split is in use."""
    found: dict[Any, set[str]] = {}
    for name, split in splits.items():
        found.setdefault(value(name), set()).add(split)
    return all(len(parts) == 1 for parts in found.values()) and len(set(splits.values())) > 1


def test_rows_of_equal_values_are_in_one_split(write_embeddings: WriteEmbeddings) -> None:
    columns = {"sha256": image, "family": lambda name: f"family {number(name) % 40}"}
    folder = write_embeddings(SHARDS, columns=columns)
    assert not united(split_of(folder), columns["family"])  # the test would prove nothing otherwise
    splits = split_of(folder, "family")
    assert united(splits, columns["family"])
    assert set(splits.values()) == set(SPLITS)


def test_images_and_values_join_rows_through_other_rows(write_embeddings: WriteEmbeddings) -> None:
    """Each row shares its image with one neighbour and its scene with the other: chains of ten rows."""
    columns = {
        "sha256": lambda name: f"image {(number(name) + 1) // 2}.{number(name) // 10}",
        "scene": lambda name: f"scene {number(name) // 2}",
    }
    folder = write_embeddings(SHARDS, columns=columns)
    splits = split_of(folder, "scene")
    assert united(splits, lambda name: number(name) // 10)
    assert len({splits[f"row{first}"] for first in range(0, 300, 10)}) == 3


def test_several_columns_each_keep_rows_together(write_embeddings: WriteEmbeddings) -> None:
    columns = {
        "sha256": image,
        "scene": lambda name: f"{number(name) // 3}",
        "author": lambda name: f"{number(name) // 5}",
    }
    folder = write_embeddings(SHARDS, columns=columns)
    splits = split_of(folder, "scene", "author")
    assert united(splits, lambda name: number(name) // 15)  # neither of the columns alone would do that
    assert not united(split_of(folder, "scene"), columns["author"])


def test_the_same_value_in_two_columns_joins_nothing(write_embeddings: WriteEmbeddings) -> None:
    columns = {"sha256": image, "a": lambda name: f"{number(name)}", "b": lambda name: f"{(number(name) + 1) % 300}"}
    folder = write_embeddings(SHARDS, columns=columns)
    assert set(split_of(folder, "a", "b").values()) == set(SPLITS)


def test_null_and_empty_values_join_nothing(write_embeddings: WriteEmbeddings) -> None:
    """Without a value, a row is where it is without the setting."""
    columns = {"sha256": image, "family": lambda name: None if number(name) % 2 else ""}
    folder = write_embeddings(SHARDS, columns=columns)
    assert split_of(folder, "family") == split_of(folder)


def test_a_group_stays_when_rows_are_added(write_embeddings: WriteEmbeddings) -> None:
    columns = {"sha256": image, "family": lambda name: f"{number(name) % 40}"}
    small = split_of(write_embeddings(SHARDS[:2], "small", columns=columns), "family")
    grown = split_of(write_embeddings(SHARDS, "grown", columns=columns), "family")
    recut = split_of(write_embeddings([NAMES[250:], NAMES[:250]], "recut", columns=columns), "family")
    assert {key: grown[key] for key in small} == small
    assert recut == grown


def test_without_the_setting_splits_and_fingerprints_are_as_before(write_embeddings: WriteEmbeddings) -> None:
    assert "group_column" not in halves().identity()
    assert "group_column" not in halves().splits()
    assert (
        halves("a").identity() == ReadSettings(validation_fraction=0.3, test_fraction=0.2, group_column="a").identity()
    )
    assert halves("a").splits()["group_column"] == ["a"]
    recorded = ReadSettings(**json.loads(json.dumps(halves("a", "b").identity())))  # as a prior records them
    assert recorded.splits() == halves("a", "b").splits()
    folder = write_embeddings(SHARDS)
    plain = EmbeddingDataset(str(folder), halves())
    assert plain.split_plan.tolist() == EmbeddingDataset(str(folder), ReadSettings(
        **json.loads(json.dumps(halves().identity()))
    )).split_plan.tolist()  # fmt: skip


def test_whole_numbers_are_the_same_with_and_without_nulls(write_embeddings: WriteEmbeddings) -> None:
    """Pandas stores whole numbers as floating-point numbers where a value is missing."""
    folder = write_embeddings([NAMES[:60], NAMES[60:120]], columns={"url": lambda name: name})
    for shard, kind in (("0000", pa.int64()), ("0001", pa.float64())):
        path = folder / f"metadata/metadata_{shard}.parquet"
        table = pq.read_table(path).append_column("scene", pa.array(range(60), kind))
        pq.write_table(table, path)
    (folder / "manifest.json").unlink()
    splits = split_of(folder, "scene")
    assert united(splits, lambda name: number(name) % 60)
    assert hash_value("7.0") == hash_value("7") != hash_value("7.5")


def test_a_missing_column_is_named_with_those_that_exist(write_embeddings: WriteEmbeddings) -> None:
    dataset = EmbeddingDataset(str(write_embeddings(SHARDS)), halves("famly"))
    with pytest.raises(InputError) as raised:
        _ = dataset.split_plan
    message = str(raised.value)
    assert message.startswith("read.group_column=famly: ")
    assert message.endswith("metadata_0000.parquet has no column 'famly'; it has caption, key, sha256")


@pytest.mark.parametrize("wrong", ["", ("a", "a"), ("a", "")])
def test_columns_have_names_and_come_once(wrong: Any) -> None:
    with pytest.raises(ValueError, match="each column needs a name, and may be named once"):
        ReadSettings(group_column=wrong)


def test_roots_are_those_of_a_search_one_row_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with several chunks, chains, and roots that several links lower at once."""
    monkeypatch.setattr(groups, "_CHUNK_ROWS", 7)
    for seed in range(20):
        random = np.random.default_rng(seed)
        links = np.sort(random.integers(0, 60, (random.integers(0, 70), 2)), axis=1)[:, ::-1]
        expected = list(range(60))
        for _ in range(60):
            for one, other in links:
                expected[one] = expected[other] = min(expected[one], expected[other])
        assert find_roots(links, 60).tolist() == expected
    chain = np.stack([np.arange(1, 500), np.arange(499)], axis=1)
    assert set(find_roots(chain[::-1], 500).tolist()) == {0}


def test_chunks_and_parts_do_not_change_the_plan(
    write_embeddings: WriteEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"sha256": lambda name: f"{number(name) % 147}", "family": lambda name: f"{number(name) % 21}"}
    one = split_of(write_embeddings(SHARDS, "one", columns=columns), "family")
    monkeypatch.setattr(groups, "_CHUNK_ROWS", 11)
    assert split_of(write_embeddings(SHARDS, "two", columns=columns), "family") == one
    assert united(one, lambda name: number(name) % 21)
