"""Image shards of a folder, and the samples in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import tarfile
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.commit import ShardCommit, open_stage
from priorkit.pipeline.contract.file_marks import marks_of_read
from priorkit.pipeline.contract.image_shards import list_image_shards, read_samples, read_shard_table
from priorkit.pipeline.contract.manifest import Manifest
from priorkit.pipeline.contract.samples import Sample
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError, SettingsError

from ....conftest import tar_bytes

PAIR = [("0000.jpg", b"image 0"), ("0000.json", b"{}"), ("0000.txt", b"caption 0")]


def read_all(folder: Path) -> list[Sample]:
    store = Store(str(folder))
    return [sample for shard in list_image_shards(store) for sample in read_samples(store, shard)]


def test_members_with_one_stem_are_one_sample_in_the_order_of_the_tar(tmp_path: Path) -> None:
    members = [*PAIR, ("0002.txt", b"caption 2"), ("0002.JPG", b"image 2"), ("0001.webp", b"image 1")]
    (tmp_path / "00000.tar").write_bytes(tar_bytes(members))
    assert read_all(tmp_path) == [
        Sample("0000", b"image 0", b"caption 0"),
        Sample("0002", b"image 2", b"caption 2"),
        Sample("0001", b"image 1", None),
    ]


def test_samples_without_image_or_caption_are_not_dropped(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(tar_bytes([("0.txt", b"only text"), ("1.json", b"{}"), ("2.jpeg", b"")]))
    assert read_all(tmp_path) == [Sample("0", None, b"only text"), Sample("1", None, None), Sample("2", b"", None)]


def test_folders_in_a_tar_are_part_of_the_key_and_links_are_not_followed(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        folder = tarfile.TarInfo("part")
        folder.type = tarfile.DIRTYPE
        link = tarfile.TarInfo("part/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(folder)
        tar.addfile(link)
        info = tarfile.TarInfo("./part/0.jpg")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    (tmp_path / "00000.tar").write_bytes(file.getvalue())
    found = read_all(tmp_path)
    assert found == [Sample("part/link", None, None), Sample("part/0", b"x", None)]
    assert found[0].instead.startswith("the sample has .jpg (a link); its image")


def test_an_empty_tar_has_no_samples(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(tar_bytes([]))
    assert read_all(tmp_path) == []


@pytest.mark.parametrize("data", [b"", b"no tar" * 200, tar_bytes(PAIR)[:700], tar_bytes(PAIR)[:515]])
def test_a_damaged_tar_is_named_in_the_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "00000.tar").write_bytes(data)
    with pytest.raises(InputError, match=r"00000\.tar is damaged"):
        read_all(tmp_path)


def test_foreign_shards_are_listed_by_number_with_their_images(tmp_path: Path) -> None:
    for name in ("00010", "00002"):
        (tmp_path / f"{name}.tar").write_bytes(tar_bytes([*PAIR, ("0001.txt", b"no image")]))
    table = pa.table({"key": ["0000", "0001"], "status": ["success", "failed_to_download"]})
    pq.write_table(table, tmp_path / "00010.parquet")
    (tmp_path / "00010_stats.json").write_text("{}")
    shards = list_image_shards(Store(str(tmp_path)))
    assert [shard.name for shard in shards] == ["00002", "00010"]
    assert shards[1].samples == 1
    assert len({shard.fingerprint for shard in shards}) == 2
    assert shards == list_image_shards(Store(str(tmp_path)))
    assert read_shard_table(Store(str(tmp_path)), shards[0]) is None
    found = read_shard_table(Store(str(tmp_path)), shards[1])
    assert found is not None
    assert found.equals(table)


def test_a_foreign_shard_is_hashed_as_a_whole_while_it_is_read(tmp_path: Path) -> None:
    path, store = tmp_path / "00000.tar", Store(str(tmp_path))
    name, content = PAIR[-1]
    for members in (PAIR, [*PAIR, ("0001.jpg", b"x" * 20_000)], [*PAIR[:-1], (name, content[::-1])]):
        for data in (tar_bytes(members), tar_bytes(members)[:-700]):  # also where it is damaged
            path.write_bytes(data)
            (shard,) = list_image_shards(store)
            list(shard.read(store))
            path.write_bytes(b"written after it was read")
            (mark,) = marks_of_read(store, shard.sources(None)).values()
            assert mark.sha256 == hashlib.sha256(data).hexdigest()
            assert mark.modified is None  # so young that a later change may have the same time


def test_a_foreign_table_without_status_counts_the_images_of_the_tar(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(tar_bytes([*PAIR, ("0001.jpg", b"x")]))
    pq.write_table(pa.table({"key": ["0000", "0001"]}), tmp_path / "00000.parquet")
    assert list_image_shards(Store(str(tmp_path)))[0].samples == 2


def test_a_foreign_table_that_is_not_parquet_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(tar_bytes(PAIR))
    (tmp_path / "00000.parquet").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"00000\.parquet"):
        list_image_shards(Store(str(tmp_path)))


def test_tars_of_any_name_are_numbered_in_order_and_keep_their_numbers_when_others_follow(tmp_path: Path) -> None:
    def found() -> list[tuple[str, str, str]]:
        shards = list_image_shards(Store(str(tmp_path)))
        return [(shard.name, shard.tar_name, shard.fingerprint) for shard in shards]

    for name in ("cc3m-train-0010.tar", "cc3m-train-0009.TAR", "val/my shard 1.tar.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(tar_bytes(PAIR))
    before = found()
    assert [(number, name) for number, name, _ in before] == [
        ("00000", "cc3m-train-0009.TAR"), ("00001", "cc3m-train-0010.tar"), ("00002", "val/my shard 1.tar.gz"),
    ]  # fmt: skip
    (tmp_path / "val/my shard 2.tar").write_bytes(tar_bytes(PAIR))
    assert found()[:3] == before
    assert len(found()) == 4
    (tmp_path / "cc3m-train-0001.tar").write_bytes(tar_bytes(PAIR))
    assert [name for _, name, _ in found()][1:4] == [name for _, name, _ in before]


def test_a_compressed_tar_has_the_samples_of_the_tar_and_its_table(tmp_path: Path) -> None:
    (tmp_path / "a-0.tgz").write_bytes(gzip.compress(tar_bytes([*PAIR, ("0001.jpg", b"x")])))
    pq.write_table(pa.table({"key": ["0000", "0001"]}), tmp_path / "a-0.parquet")
    store = Store(str(tmp_path))
    (shard,) = list_image_shards(store)
    assert (shard.samples, shard.table_name, shard.files) == (2, "a-0.parquet", ("a-0.tgz", "a-0.parquet"))
    assert [sample.key for sample in shard.read(store)] == ["0000", "0001"]
    assert shard.tables(store)[0] is not None


def test_only_the_tars_that_are_named_are_listed(tmp_path: Path) -> None:
    for name in ("00003.tar", "00007.tar", "00010.tar"):
        (tmp_path / name).write_bytes(tar_bytes(PAIR))
    shards = list_image_shards(Store(str(tmp_path)), ["00007.tar", "00003.tar"])
    assert [shard.name for shard in shards] == ["00003", "00007"]
    with pytest.raises(InputError, match=r"00004\.tar: no such file"):
        list_image_shards(Store(str(tmp_path)), ["00004.tar"])
    folder = tmp_path / "ours"
    store = committed(folder)
    assert [shard.name for shard in list_image_shards(store, ["00000.tar"])] == ["00000"]
    with pytest.raises(InputError, match=r"00001\.tar is in no record"):
        list_image_shards(store, ["00001.tar"])


SIDE = [("0000.jpg", b"image 0"), ("0001.jpg", b"image 1"), ("0002.jpg", b"image 2")]


def captions_beside(
    folder: Path, members: list[tuple[str, bytes]], **columns: Any
) -> list[tuple[str, tuple[bytes, ...]]]:
    (folder / "a.tar").write_bytes(tar_bytes(members))
    pq.write_table(pa.table(columns), folder / "a.parquet")
    store = Store(str(folder))
    (shard,) = list_image_shards(store, caption_column="text")
    table = shard.tables(store)[0]
    assert table is not None
    assert "text" not in table.column_names
    return [(sample.key, sample.captions) for sample in shard.read(store)]


def test_captions_are_read_from_a_column_beside_the_tar(tmp_path: Path) -> None:
    found = captions_beside(tmp_path, SIDE, key=["2", "0000"], text=["two", "zero"])
    assert found == [("0000", (b"zero",)), ("0001", ()), ("0002", (b"two",))]
    (shard,) = list_image_shards(Store(str(tmp_path)), caption_column="text")
    assert [sample.instead for sample in shard.read(Store(str(tmp_path)))][1] == "a.parquet has no row of key '0001'"
    plain = list_image_shards(Store(str(tmp_path)))[0]
    assert shard.fingerprint != plain.fingerprint


def test_a_column_of_the_table_is_proposed_if_the_tar_has_no_captions(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([*SIDE, ("3.jpg", b"3"), ("3.txt", b"three")]))
    store = Store(str(tmp_path))
    proposal = "; for captions in a.parquet, set embed.caption_column=TEXT"
    for columns, ending in (({"TEXT": ["a"], "key": ["0000"]}, proposal), ({"key": ["0000"]}, "its caption a .txt")):
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        (shard,) = list_image_shards(store)
        *images, pair = shard.read(store)
        assert all(sample.instead.endswith(ending) for sample in images)
        assert proposal not in pair.instead


def test_several_rows_or_a_list_are_several_captions_of_one_image(tmp_path: Path) -> None:
    keys = ["0000", "0001", "0000"]
    assert captions_beside(tmp_path, SIDE[:2], key=keys, text=["a", "b", "c"]) == [
        ("0000", (b"a", b"c")), ("0001", (b"b",)),
    ]  # fmt: skip
    (shard,) = list_image_shards(Store(str(tmp_path)), caption_column="text")
    assert [sample.caption_rows for sample in shard.read(Store(str(tmp_path)))] == [(0, 1), ()]
    lists = [["a", None, "b"], [], None]
    assert captions_beside(tmp_path, SIDE, key=["0000", "0001", "0002"], text=lists) == [
        ("0000", (b"a", b"b")), ("0001", ()), ("0002", ()),
    ]  # fmt: skip


def test_rows_of_one_key_belong_to_the_samples_of_that_key_in_order(tmp_path: Path) -> None:
    members = [("0.jpg", b"1"), ("0.jpg", b"2"), ("1.jpg", b"3")]
    found = captions_beside(tmp_path, members, key=["0", "0", "1", "1"], text=[*"abcd"])
    assert found == [("0", (b"a",)), ("0", (b"b",)), ("1", (b"c", b"d"))]


def test_a_column_that_cannot_be_captions_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"caption_column=text: .*a\.parquet has no column 'text'; it has key, url"):
        captions_beside(tmp_path, SIDE, key=["0000"], url=["u"])
    with pytest.raises(SettingsError, match=r"has no column 'key'; it has text"):
        captions_beside(tmp_path, SIDE, text=["a"])
    with pytest.raises(SettingsError, match=r"has int64 there, needed is text"):
        captions_beside(tmp_path, SIDE, key=["0000"], text=[1])
    (tmp_path / "b.tar").write_bytes(tar_bytes(PAIR))
    with pytest.raises(InputError, match=r"b\.parquet is missing; each tar needs a table"):
        list_image_shards(Store(str(tmp_path)), caption_column="text")


def test_the_error_for_a_folder_without_shards_names_the_command(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="run `priorkit download` first"):
            list_image_shards(Store(str(folder)))


def committed(folder: Path, stage: str = "download", name: str = "00000") -> Store:
    store = Store(str(folder))
    with open_stage(store, Manifest(stage, {}, {})) as held:
        commit = ShardCommit(store, name, input="in", settings="s")
        with commit.create(f"{name}.tar") as file:
            file.write(tar_bytes(PAIR))
        held.add(commit.commit(rows=2, counts={"success": 1, "timeout": 1}))
        held.finish()
    return store


def test_the_shards_are_those_in_the_manifest(tmp_path: Path) -> None:
    store = committed(tmp_path)
    (tmp_path / "00001.tar").write_bytes(tar_bytes(PAIR))
    (shard,) = list_image_shards(store)
    assert (shard.name, shard.samples) == ("00000", 1)


def test_a_recorded_shard_that_is_missing_or_short_is_refused(tmp_path: Path) -> None:
    store = committed(tmp_path)
    (tmp_path / "00000.tar").write_bytes(b"short")
    with pytest.raises(InputError, match=r"00000\.tar is missing or damaged; run `priorkit download` again"):
        list_image_shards(store)
    (tmp_path / "00000.tar").unlink()
    with pytest.raises(InputError, match=r"00000\.tar is missing or damaged"):
        list_image_shards(store)


def test_a_folder_of_another_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="written by `priorkit embed`"):
        list_image_shards(committed(tmp_path, "embed"))


def test_a_manifest_with_shards_that_are_not_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="image shards are named by number"):
        list_image_shards(committed(tmp_path, name="abc"))


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["00000.tar.bz2"], r"00000\.tar\.bz2: its compression is not read; unpack it by `bunzip2 00000\.tar\.bz2`"),
        (["00000.tar", "00000.tgz"], r"holds both 00000\.tar and 00000\.tgz; move one of them away"),
        (["00000.tar", "00001.parquet"], r"00001\.tar is missing, though there is 00001\.parquet"),
        (["a-0.tar", "a-01.parquet"], r"a-01\.tar is missing, though there is a-01\.parquet"),
    ],
)
def test_unsupported_shards_are_named(tmp_path: Path, names: list[str], named: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(tar_bytes(PAIR))
    with pytest.raises(InputError, match=named):
        list_image_shards(Store(str(tmp_path)))


def test_the_compression_of_a_tar_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(gzip.compress(tar_bytes(PAIR)))
    (tmp_path / "00001.tar.gz").write_bytes(tar_bytes(PAIR))
    assert len(read_all(tmp_path)) == 2
    (tmp_path / "00002.tar").write_bytes(lzma.compress(tar_bytes(PAIR)))
    with pytest.raises(InputError, match=r"00002\.tar: its compression is not read; unpack it by `unxz"):
        list_image_shards(Store(str(tmp_path)))


def test_requests_do_not_grow_with_the_number_of_shards(requests: list[str]) -> None:
    numbers = []
    for shards in (2, 20):
        store = Store(f"memory://{uuid.uuid4().hex}")
        with open_stage(store, Manifest("download", {}, {})) as folder:
            for number in range(shards):
                commit = ShardCommit(store, f"{number:05d}", settings=folder.manifest.settings_fingerprint)
                with commit.create(f"{number:05d}.tar") as file:
                    file.write(b"data")
                folder.add(commit.commit(rows=1, counts={"success": 1}))
            folder.finish()
        requests.clear()
        assert [shard.samples for shard in list_image_shards(store)] == [1] * shards
        numbers.append(len(requests))
    assert numbers[0] == numbers[1]
