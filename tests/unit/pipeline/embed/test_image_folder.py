"""Hugging Face's image folders: images, and a metadata file that describes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed.image_folder import read_image_rows
from priorkit.pipeline.embed.inputs import open_input
from priorkit.pipeline.errors import InputError, SettingsError

from .conftest import samples_of, shards_of, write

ROWS: list[dict[str, Any]] = [
    {"file_name": "b.jpg", "text": 'bee, "b"', "id": 1},
    {"file_name": "./sub/a.PNG", "text": "a", "id": 2},
]


def folder_of(path: Path, kind: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    """Write two images and a metadata file of a kind."""
    write(path, {"b.jpg": b"image b", "sub/a.PNG": b"image a"})
    if kind == "jsonl":
        (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        (path / "metadata.csv").write_text('file_name,text,id\nb.jpg,"bee, ""b""",1\n./sub/a.PNG,a,2\n')
    else:
        pq.write_table(pa.Table.from_pylist(rows), path / "metadata.parquet")
    return path


def captions(path: Path, **settings: Any) -> list[tuple[str, tuple[bytes, ...]]]:
    return [(sample.key, sample.captions) for part in samples_of(path, **settings) for sample in part]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_captions_and_other_columns_come_from_the_metadata_file(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path, kind)
    ((b, a),) = samples_of(folder, caption_column="text")
    assert (b.key, b.image, b.captions) == ("b", b"image b", (b'bee, "b"',))
    assert (a.key, a.image, a.captions) == ("sub/a", b"image a", (b"a",))
    (shard,) = shards_of(folder, caption_column="text")
    (table,) = shard.tables(open_input(str(folder)))
    assert table is not None
    assert table.select(["file_name", "key"]).to_pylist() == [
        {"file_name": "b.jpg", "key": "b"}, {"file_name": "./sub/a.PNG", "key": "sub/a"},
    ]  # fmt: skip
    assert [str(value) for value in table.column("id").to_pylist()] == ["1", "2"]


def test_the_metadata_file_is_used_without_a_setting_where_no_image_has_a_text_file(tmp_path: Path) -> None:
    rows = [{"file_name": "b.jpg", "caption": "table"}]
    folder = folder_of(tmp_path, "jsonl", rows)
    write(folder, {"notes.txt": b"no caption of an image"})
    assert captions(folder) == [("b", (b"table",)), ("sub/a", ())]
    write(folder, {"b.txt": b"file"})
    assert captions(folder) == [("b", (b"file",)), ("notes", (b"no caption of an image",)), ("sub/a", ())]
    assert captions(folder, caption_column="caption")[0] == ("b", (b"table",))
    assert captions(folder, text=False)[0] == ("b", (b"file",))


def test_a_metadata_file_that_describes_no_images_is_ignored(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "jsonl", [{"name": "b.jpg", "caption": "a"}])
    assert captions(folder) == [("b", ()), ("sub/a", ())]
    with pytest.raises(SettingsError, match="has no column 'file_name'; it has name, caption"):
        captions(folder, caption_column="caption")


def test_a_column_that_is_not_there_is_named_with_the_others(tmp_path: Path) -> None:
    message = r"no column 'caption'; it has file_name, text, id; set embed\.caption_column=text"
    with pytest.raises(SettingsError, match=message):
        captions(folder_of(tmp_path, "jsonl"))
    with pytest.raises(SettingsError, match="has int64 there, needed is text"):
        captions(tmp_path, caption_column="id")
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(SettingsError, match=r"has no metadata\.jsonl, metadata\.csv or metadata\.parquet"):
        captions(tmp_path, caption_column="text")


def test_several_rows_or_lists_are_several_captions(tmp_path: Path) -> None:
    rows = [
        {"file_name": "b.jpg", "text": ["1", "2"]},
        {"file_name": "sub/a.PNG", "text": []},
        {"file_name": "b.jpg", "text": ["3"]},
    ]
    folder = folder_of(tmp_path, "jsonl", rows)
    ((b, a),) = samples_of(folder, caption_column="text")
    assert (b.captions, b.caption_rows) == ((b"1", b"2", b"3"), (0, 0, 1))
    assert (a.captions, a.instead) == ((), "metadata.jsonl has no caption of this image")
    (folder / "metadata.jsonl").write_text(json.dumps(rows[0]))  # one row with a list
    assert captions(folder, caption_column="text")[0] == ("b", (b"1", b"2"))


def test_text_in_some_rows_and_lists_in_others_are_all_captions(tmp_path: Path) -> None:
    rows = [{"file_name": "b.jpg", "text": "1"}, {"file_name": "sub/a.PNG", "text": ["2", None, "\ud83d"]}]
    ((b, a),) = samples_of(folder_of(tmp_path, "jsonl", rows), caption_column="text")
    assert (b.captions, a.captions) == ((b"1",), (b"2", b"?"))


def test_a_row_without_an_image_and_an_image_without_a_row_are_samples(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "jsonl", [ROWS[0], {"file_name": "lost/b.jpg", "text": "x"}])
    write(folder, {"other/b.jpg": b"image"})
    ((b, lost, other, a),) = samples_of(folder, caption_column="text")
    assert b.captions
    assert (lost.key, lost.image) == ("lost/b.jpg", None)
    assert "names this file, but the folder has no such image" in lost.instead
    assert [sample.instead for sample in (other, a)] == ["metadata.jsonl has no caption of this image"] * 2
    (shard,) = shards_of(folder, caption_column="text")
    assert shard.samples == 4


def test_each_folder_may_have_a_metadata_file(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = folder_of(tmp_path / split, "jsonl", [{"file_name": "b.jpg", "caption": split}])
        (folder / "sub/a.PNG").unlink()
    assert captions(tmp_path) == [("test/b", (b"test",)), ("train/b", (b"train",))]


def test_a_shard_keeps_its_fingerprint_when_images_follow(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "jsonl")
    before = shards_of(folder, caption_column="text", rows_per_shard=2)
    write(folder, {"z.jpg": b"image"})
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "z.jpg", "text": "z"}))
    after = shards_of(folder, caption_column="text", rows_per_shard=2)
    assert [shard.fingerprint for shard in after][:1] == [shard.fingerprint for shard in before]
    text = (folder / "metadata.jsonl").read_text()
    for old, new in (('"a"', '"c"'), ('"id": 2', '"id": 3')):
        (folder / "metadata.jsonl").write_text(text.replace(old, new))
        changed = shards_of(folder, caption_column="text", rows_per_shard=2)
        assert [shard.fingerprint for shard in changed][1:] == [shard.fingerprint for shard in after][1:]
        assert changed[0].fingerprint != after[0].fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"file_name": null, "text": "a"}\n{"file_name": "b", "text": "a"}', r"metadata\.jsonl, row 0: no file_name"),
        ('{"file_name": ', r"metadata\.jsonl is damaged \(line 1 is no JSON"),
        ('["b.jpg"]', "line 1 is no object"),
    ],
)
def test_damage_names_the_file_and_row(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        read_image_rows(Store(str(tmp_path)), ["metadata.jsonl"], "text", ignore_others=False)


def test_two_metadata_files_in_one_folder_are_refused(tmp_path: Path) -> None:
    folder_of(folder_of(tmp_path, "jsonl"), "csv")
    with pytest.raises(InputError, match=r"holds both metadata\.csv and metadata\.jsonl"):
        captions(tmp_path, caption_column="text")
