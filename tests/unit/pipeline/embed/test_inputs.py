"""What can be embedded besides image shards: files and tables, and shards that are joined."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.file_marks import marks_of_read
from priorkit.pipeline.contract.samples import Sample
from priorkit.pipeline.embed.input_marks import input_fingerprint
from priorkit.pipeline.embed.inputs import InputShard, list_input_shards, open_input
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.errors import InputError, SettingsError


def shards_of(path: Path, **settings: Any) -> list[InputShard]:
    return list_input_shards(str(path), EmbedSettings(**settings))


def samples_of(path: Path, **settings: Any) -> list[list[Sample]]:
    store = open_input(str(path))
    return [list(shard.read(store)) for shard in shards_of(path, **settings)]


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


PAIRS = {
    "b.jpg": b"image b", "b.txt": b"caption b", "a photo.PNG": b"image a", "a photo.txt": b"caption a",
    "sub/c.webp": b"image c", "only text.txt": b"text", "readme.md": b"no", "猫.jpeg": b"image cat", "猫.txt": b"cat",
    "d [1]?.jpg": b"image d", "d [1]?.txt": b"caption d", "*.txt": b"star",
}  # fmt: skip


def content_of(path: Path, limit: int | None = None, **settings: Any) -> list[str]:
    """Fingerprints of what is read of each shard."""
    store = open_input(str(path))
    found = []
    for shard in shards_of(path, **settings):
        list(shard.read(store))
        found.append(input_fingerprint(shard, marks_of_read(store, shard.sources(limit)), limit))
    return found


def test_files_are_paired_by_path_in_order(tmp_path: Path) -> None:
    (found,) = samples_of(write(tmp_path, PAIRS))
    assert found == [
        Sample("*", None, b"star"),
        Sample("a photo", b"image a", b"caption a"),
        Sample("b", b"image b", b"caption b"),
        Sample("d [1]?", b"image d", b"caption d"),
        Sample("only text", None, b"text"),
        Sample("sub/c", b"image c", None),
        Sample("猫", b"image cat", b"cat"),
    ]


def test_captions_alone_are_those_of_text_files(tmp_path: Path) -> None:
    (found,) = samples_of(write(tmp_path, PAIRS), image=False)
    assert [sample.key for sample in found if sample.caption is None] == ["sub/c"]
    assert len(found) == 7
    with pytest.raises(InputError, match="holds no captions"):
        shards_of(write(tmp_path / "images", {"a.jpg": b"1"}), image=False)


def test_files_are_cut_into_shards(tmp_path: Path) -> None:
    shards = shards_of(write(tmp_path, PAIRS), rows_per_shard=3)
    assert [(shard.name, shard.samples) for shard in shards] == [("00000", 3), ("00001", 3), ("00002", 1)]


def test_a_changed_file_changes_its_shard_alone(tmp_path: Path) -> None:
    folder = write(tmp_path, PAIRS)
    before = content_of(folder, rows_per_shard=4)
    content = (folder / "猫.txt").read_bytes()
    (folder / "猫.txt").write_bytes(content[::-1])
    after = content_of(folder, rows_per_shard=4)
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False]


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="same name"):
        shards_of(write(tmp_path, {"a.jpg": b"1", "a.png": b"2"}))


def test_a_file_that_cannot_be_read_is_a_sample_with_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path, PAIRS)
    store, (shard,) = open_input(str(folder)), shards_of(folder)
    (folder / "b.jpg").unlink()
    found = list(shard.read(store))
    (bad,) = (sample for sample in found if sample.error is not None)
    assert bad.key == "b"
    assert str(bad.error).startswith("unreadable: ")


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
def test_a_table_of_images_with_keys_of_its_own(tmp_path: Path, struct: bool) -> None:
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
def test_a_table_is_cut_by_rows_whatever_its_row_groups(tmp_path: Path, group: int) -> None:
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
        ({"image": False, "caption_column": "text"}, "caption_column=text.*it has caption, number"),
        ({"image": False, "caption_column": "number"}, "caption_column=number.*int64.*text"),
        ({"image_column": "caption"}, "image_column=caption.*string.*binary"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    pq.write_table(table(caption=["a"], number=[1]), tmp_path / "a.parquet")
    with pytest.raises(SettingsError, match=named):
        shards_of(tmp_path, **settings)


def test_a_folder_of_two_kinds_is_asked_about(tmp_path: Path) -> None:
    write(tmp_path, PAIRS)
    write_tar(tmp_path / "00000.tar", 0, 2)
    with pytest.raises(InputError, match=r"images .* and 00000\.tar; .*input_format=files or .*=webdataset"):
        shards_of(tmp_path)
    assert shards_of(tmp_path, input_format="webdataset")[0].samples == 2
    assert shards_of(tmp_path, input_format="files")[0].samples == 7
    (tmp_path / "00000.tar").unlink()
    pq.write_table(table(caption=["a"]), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"and t\.parquet; .*input_format=parquet"):
        shards_of(tmp_path)


def test_files_as_img2dataset_writes_them(tmp_path: Path) -> None:
    """With a table beside each folder."""
    for shard in ("00000", "00001"):
        write(tmp_path, {f"{shard}/{shard}0000.jpg": b"1", f"{shard}/{shard}0000.txt": b"a"})
        pq.write_table(table(caption=["a"], status=["success"]), tmp_path / f"{shard}.parquet")
    (found,) = samples_of(tmp_path)
    assert [sample.key for sample in found] == ["00000/000000000", "00001/000010000"]


def test_a_file_in_place_of_its_folder_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", 0, 2)
    with pytest.raises(InputError, match="is a file; name the folder"):
        shards_of(tmp_path / "00000.tar")


def test_damage_in_a_column_that_is_carried_along_is_named(tmp_path: Path) -> None:
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


def test_what_holds_nothing_or_no_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to embed"):
        shards_of(tmp_path)
    with pytest.raises(InputError, match="no images"):
        shards_of(write(tmp_path / "docs", {"a.md": b""}))
    with pytest.raises(InputError, match="no parquet file"):
        shards_of(write(tmp_path / "tables", {"a.parquet": b"nothing"}), image=False)


def write_tar(path: Path, first: int, count: int) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            info = tarfile.TarInfo(f"{number:05d}.txt")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))


def test_image_shards_are_joined_up_to_the_rows_asked_for(tmp_path: Path) -> None:
    for number, count in enumerate([3, 1, 2, 5, 1]):
        write_tar(tmp_path / f"{number:05d}.tar", number * 10, count)
    assert [shard.samples for shard in shards_of(tmp_path)] == [3, 1, 2, 5, 1]
    joined = shards_of(tmp_path, rows_per_shard=4)
    assert [(shard.name, shard.samples) for shard in joined] == [("00000", 4), ("00001", 7), ("00002", 1)]
    keys = [[sample.key for sample in part] for part in samples_of(tmp_path, rows_per_shard=4)]
    assert keys[0] == ["00000", "00001", "00002", "00010"]


def test_shards_that_are_joined_have_tables_all_or_none(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"{number:05d}.tar", number * 10, 2)
    pq.write_table(table(key=["00000", "00001"], url=["u", "v"], status=["success"] * 2), tmp_path / "00000.parquet")
    assert len(shards_of(tmp_path)) == 3
    with pytest.raises(InputError, match=r"00001\.parquet is missing, others are there.*rows_per_shard"):
        shards_of(tmp_path, rows_per_shard=100)


@pytest.mark.parametrize("left", [2 * 1024 + 700, 2 * 1024, 3 * 1024 + 512])
def test_a_damaged_tar_gives_what_is_before_the_damage_and_says_so(tmp_path: Path, left: int) -> None:
    write_tar(tmp_path / "00000.tar", 0, 4)
    write_tar(tmp_path / "00001.tar", 10, 2)
    (tmp_path / "00000.tar").write_bytes((tmp_path / "00000.tar").read_bytes()[:left])
    (found,) = samples_of(tmp_path, rows_per_shard=100)
    whole = [f"{number:05d}" for number in range((left - 513) // 1024 + 1)]  # a header and one byte
    assert [sample.key for sample in found if sample.error is None] == [*whole, "00010", "00011"]
    (bad,) = (sample for sample in found if sample.error is not None)
    assert bad.key == "00000.tar"
    assert str(bad.error).startswith("damaged_shard: ")


def test_keys_of_a_table_whose_name_is_no_utf8_are_text(tmp_path: Path) -> None:
    pq.write_table(table(caption=["a"], url=["u"]), tmp_path / "t.parquet")
    (tmp_path / "t.parquet").rename(tmp_path / b"caf\xe9.parquet".decode(errors="surrogateescape"))
    (shard,) = shards_of(tmp_path, image=False)
    ((found,),) = samples_of(tmp_path, image=False)
    (known,) = shard.tables(open_input(str(tmp_path)))
    assert known is not None
    assert [found.key] == known.column("key").to_pylist() == ["caf\\udce9_000000000"]


def test_a_folder_of_tables_may_be_named_as_one(tmp_path: Path) -> None:
    """As Spark does."""
    (tmp_path / "captions.parquet").mkdir()
    pq.write_table(table(caption=["a"]), tmp_path / "captions.parquet/part-0.parquet")
    ((found,),) = samples_of(tmp_path / "captions.parquet", image=False)
    assert (found.key, found.caption) == ("part-0_000000000", b"a")
