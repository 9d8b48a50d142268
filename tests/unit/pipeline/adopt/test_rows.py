"""Metadata rows: keys, captions, and what else a table holds."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from priorkit.pipeline.adopt.parts import Table, describe_table
from priorkit.pipeline.adopt.rows import MadeRows, TableRows, choose_columns
from priorkit.pipeline.adopt.settings import AdoptSettings
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import SettingsError

from .conftest import fixed, save_table, units


def table(folder: Path, **columns: object) -> Table:
    save_table(folder / "t.parquet", **columns)
    return describe_table(Store(str(folder)), "t.parquet")


def rows(source: Table, **settings: object) -> list[dict[str, list[object]]]:
    chosen = AdoptSettings(not_clip="x", **settings)  # type: ignore[arg-type]
    reader = TableRows(source, choose_columns(source, chosen))
    return [{name: column.to_pylist() for name, column in block.items()} for block in reader.blocks(0, source.rows, 2)]


def test_keys_captions_and_groups_get_the_names_that_readers_look_for(tmp_path: Path) -> None:
    source = table(tmp_path, uid=["a", "b", "c"], TEXT=["x", None, "z"], URL=["u", "v", "w"], size=[1, 2, 3])
    assert rows(source) == [
        {"key": ["a", "b"], "caption": ["x", None], "url": ["u", "v"], "size": [1, 2]},
        {"key": ["c"], "caption": ["z"], "url": ["w"], "size": [3]},
    ]


def test_a_setting_names_other_columns(tmp_path: Path) -> None:
    source = table(tmp_path, key=[1, 2], name=["a", "b"], caption=["x", "y"], alt=["p", "q"])
    [block] = rows(source, key_column="name", caption_column="alt")
    assert block == {"key": ["a", "b"], "caption": ["p", "q"], "key_of_table": [1, 2], "caption_of_table": ["x", "y"]}
    with pytest.raises(SettingsError, match=r"key_column=nobody: .* has no such column; it has key, name"):
        rows(source, key_column="nobody")
    with pytest.raises(SettingsError, match=r"caption_column=key: .* has int64 there, not text"):
        rows(source, caption_column="key")


def test_rows_without_a_key_get_one(tmp_path: Path) -> None:
    [block] = rows(table(tmp_path, key=[None, "b"], caption=["x", "y"]))
    assert block["key"] == ["t_000000000", "b"]
    [block] = rows(table(tmp_path, caption=["x", "y"]))
    assert list(block) == ["key", "caption"]
    assert block["key"] == ["t_000000000", "t_000000001"]
    made = [block["key"].to_pylist() for block in MadeRows("a/x").blocks(9, 3, 2)]
    assert made == [["a/x_000000009", "a/x_000000010"], ["a/x_000000011"]]


def test_embeddings_and_bytes_are_left_out(tmp_path: Path) -> None:
    source = table(
        tmp_path, key=["a", "b"], image=[b"x", b"y"], v=fixed(units(2, 3)), tags=[["p"], ["q", "r"]],
        kind=pa.array(["k", "k"]).dictionary_encode(),
    )  # fmt: skip
    assert choose_columns(source, AdoptSettings(not_clip="x")).left_out == ("image", "v")
    [block] = rows(source)
    assert block == {"key": ["a", "b"], "tags": [["p"], ["q", "r"]], "kind": ["k", "k"]}


def test_image_path_is_a_key_and_stays(tmp_path: Path) -> None:
    [block] = rows(table(tmp_path, image_path=["a", "b"], caption=["x", "y"]))
    assert block == {"key": ["a", "b"], "caption": ["x", "y"], "image_path": ["a", "b"]}
