"""Parquet tables of captions and of encoded images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.embed.inputs import open_input
from priorkit.pipeline.errors import InputError, SettingsError

from .conftest import samples_of, shards_of, write


def table(**columns: Any) -> pa.Table:
    return pa.table(columns)


def test_a_table_of_captions(tmp_path: Path) -> None:
    pq.write_table(table(caption=["one", None, "drei ü"], lang=["en", "en", "de"]), tmp_path / "t.parquet")
    (found,) = samples_of(tmp_path, image=False)
    assert [(sample.key, sample.caption) for sample in found] == [
        ("t_000000000", b"one"), ("t_000000001", None), ("t_000000002", "drei ü".encode()),
    ]  # fmt: skip
    (shard,) = shards_of(tmp_path, image=False)
    (known,) = shard.tables(open_input(str(tmp_path)))
    assert known is not None
    assert known.to_pydict() == {"lang": ["en", "en", "de"], "key": [sample.key for sample in found]}


@pytest.mark.parametrize("struct", [False, True])
def test_a_table_of_images_with_keys(tmp_path: Path, struct: bool) -> None:
    images: list[Any] = [b"1", b"2", None]
    if struct:  # as Hugging Face datasets store them
        images = [{"bytes": value, "path": "p"} for value in images]
    data = table(key=["x", "y", "z"], text=["1", "2", "3"], photo=images, url=["u", "v", "w"])
    pq.write_table(data, tmp_path / "t.parquet")
    settings = {"caption_column": "text", "image_column": "photo"}
    (found,) = samples_of(tmp_path, **settings)
    assert [(s.key, s.image, s.caption) for s in found] == [("x", b"1", b"1"), ("y", b"2", b"2"), ("z", None, b"3")]
    (shard,) = shards_of(tmp_path, **settings)
    (known,) = shard.tables(open_input(str(tmp_path)))
    assert known is not None
    assert known.column_names == ["url", "key"]


@pytest.mark.parametrize("group", [1, 7, 1000])
def test_a_table_is_split_by_rows_independent_of_its_row_groups(tmp_path: Path, group: int) -> None:
    captions = [f"caption {row}" for row in range(1000)]
    pq.write_table(table(caption=captions), tmp_path / "a.parquet", row_group_size=group)
    pq.write_table(table(caption=["last"]), tmp_path / "b.parquet")
    parts = samples_of(tmp_path, image=False, rows_per_shard=300)
    assert [len(part) for part in parts] == [300, 300, 300, 100, 1]
    assert [sample.caption for part in parts for sample in part] == [*(c.encode() for c in captions), b"last"]
    assert len({sample.key for part in parts for sample in part}) == 1001


def test_one_table_may_be_named(tmp_path: Path) -> None:
    pq.write_table(table(caption=["a"]), tmp_path / "a.parquet")
    pq.write_table(table(caption=["b"]), tmp_path / "b.parquet")
    ((found,),) = samples_of(tmp_path / "b.parquet", image=False)
    assert (found.key, found.caption) == ("b_000000000", b"b")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"image": False, "caption_column": "text"},
            "caption_column=text.*it has caption, number; set embed.caption_column=caption; ",
        ),
        ({"caption_column": "title"}, "set embed.caption_column=caption; to embed without, embed.text=false"),
        ({"text": False}, "image_column=image: .* it has caption, number; to embed without, embed.image=false"),
        ({"image": False, "caption_column": "number"}, "caption_column=number.*int64.*text"),
        ({"image_column": "caption"}, "image_column=caption.*string.*binary.*embed the folder of the image files"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    pq.write_table(table(caption=["a"], number=[1]), tmp_path / "a.parquet")
    with pytest.raises(SettingsError, match=named):
        shards_of(tmp_path, **settings)


def test_columns_with_a_common_name_are_proposed_first(tmp_path: Path) -> None:
    pq.write_table(table(url=["u"], TEXT=["a"], jpg=[b"x"]), tmp_path / "a.parquet")
    with pytest.raises(SettingsError, match=r"set embed\.caption_column=TEXT or another of them; "):
        shards_of(tmp_path)
    with pytest.raises(SettingsError, match=r"set embed\.image_column=jpg; "):
        shards_of(tmp_path, caption_column="TEXT")


def test_damage_in_another_column_is_reported(tmp_path: Path) -> None:
    data = table(caption=["one"] * 2000, url=[f"https://example.com/{row}" for row in range(2000)])
    pq.write_table(data, tmp_path / "t.parquet", compression="NONE", use_dictionary=False)
    column = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(0).column(1)
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[column.data_page_offset : column.data_page_offset + 40] = b"\xff" * 40
    (tmp_path / "t.parquet").write_bytes(content)
    (shard,) = shards_of(tmp_path, image=False)
    assert len(list(shard.read(open_input(str(tmp_path))))) == 2000
    with pytest.raises(InputError, match=r"t\.parquet is damaged at row 0"):
        shard.tables(open_input(str(tmp_path)))


def test_keys_are_text_if_the_table_name_is_not_utf8(tmp_path: Path) -> None:
    pq.write_table(table(caption=["a"], url=["u"]), tmp_path / "t.parquet")
    (tmp_path / "t.parquet").rename(tmp_path / b"caf\xe9.parquet".decode(errors="surrogateescape"))
    (shard,) = shards_of(tmp_path, image=False)
    ((found,),) = samples_of(tmp_path, image=False)
    (known,) = shard.tables(open_input(str(tmp_path)))
    assert known is not None
    assert [found.key] == known.column("key").to_pylist() == ["caf\\udce9_000000000"]


def test_a_row_without_a_key_is_named_by_its_number(tmp_path: Path) -> None:
    pq.write_table(table(caption=["a"] * 3, key=["x", None, "z"]), tmp_path / "t.parquet")
    parts = samples_of(tmp_path, image=False, rows_per_shard=2)
    assert [[sample.key for sample in part] for part in parts] == [["x", "t_000000001"], ["z"]]


def test_a_table_of_paths_is_refused_and_a_missing_image_names_its_path(tmp_path: Path) -> None:
    images = [{"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(table(image=pa.array(images, kind), caption=["a", "b"]), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="column 'image' has no image in any row; if the table holds paths"):
        shards_of(tmp_path)
    pq.write_table(table(image=pa.array([images[0], {"bytes": b"1", "path": "b.jpg"}], kind), caption=["a", "b"]),
                   tmp_path / "t.parquet")  # fmt: skip
    ((first, second),) = samples_of(tmp_path)
    assert (first.image, first.instead) == (None, "the table holds the path 'a.jpg', not the image")
    assert (second.image, second.instead) == (b"1", "")


def test_shards_are_titled_by_their_rows(tmp_path: Path) -> None:
    pq.write_table(table(caption=["a"] * 5), tmp_path / "t.parquet")
    shards = shards_of(tmp_path, image=False, rows_per_shard=3)
    assert [shard.title.rpartition("/")[2] for shard in shards] == [
        "t.parquet, rows 0 to 2", "t.parquet, rows 3 to 4",
    ]  # fmt: skip
    assert [shard.sources(1) for shard in shards] == [("t.parquet",)] * 2
    assert len({shard.fingerprint for shard in shards}) == 2


def test_a_table_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t\.parquet.*no such table"):
        shards_of(tmp_path / "t.parquet", image=False, input_format="parquet")
    pq.write_table(table(caption=pa.array([], pa.string())), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="holds no table with rows"):
        shards_of(tmp_path, image=False)
    write(tmp_path, {"t.parquet": b"PAR1"})
    with pytest.raises(InputError, match="is no parquet file"):
        shards_of(tmp_path, image=False)


def test_a_list_of_captions_is_one_sample(tmp_path: Path) -> None:
    data = table(image=[b"1", b"2", b"3"], caption=[["a", "b"], None, ["c"]], lang=["en", "de", "fr"])
    pq.write_table(data, tmp_path / "t.parquet")
    (found,) = samples_of(tmp_path)
    assert [(sample.image, sample.captions) for sample in found] == [(b"1", (b"a", b"b")), (b"2", ()), (b"3", (b"c",))]
    (shard,) = shards_of(tmp_path)
    (known,) = shard.tables(open_input(str(tmp_path)))
    assert known is not None
    assert known.column_names == ["lang", "key"]
