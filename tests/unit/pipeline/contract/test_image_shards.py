"""Image shards of a folder, and the samples in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.commit import ShardCommit, open_stage
from priorkit.pipeline.contract.file_marks import marks_of_read
from priorkit.pipeline.contract.image_shards import list_image_shards, read_samples, read_shard_table
from priorkit.pipeline.contract.manifest import Manifest
from priorkit.pipeline.contract.samples import Sample
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError

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


def test_shards_need_distinct_numbers_as_names(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(tar_bytes(PAIR))
    with pytest.raises(InputError, match=r"train\.tar: image shards are named by number"):
        list_image_shards(Store(str(tmp_path)))
    (tmp_path / "train.tar").rename(tmp_path / "00001.tar")
    (tmp_path / "0001.tar").write_bytes(tar_bytes(PAIR))
    with pytest.raises(InputError, match="two shards have the number 1"):
        list_image_shards(Store(str(tmp_path)))


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
        (["cc3m-0000.tar"], r"cc3m-0000\.tar: image shards are named by number"),
        (["my shard 0.tar"], r"my shard 0\.tar: image shards are named by number"),
        (["deep/00000.tar"], r"deep/00000\.tar: image shards are named by number.*in the folder itself"),
        (["00000.TAR"], r"00000\.TAR: image shards are named by number"),
        (["00000.tar.gz"], r"00000\.tar\.gz: image shards must not be compressed"),
        (["00000.tar", "00001.tgz"], r"00001\.tgz: image shards must not be compressed"),
        (["0.tar", "00.tar"], "two shards have the number 0"),
        (["00000.tar", "00001.parquet"], r"00001\.tar is missing, though there is 00001\.parquet"),
    ],
)
def test_unsupported_shards_are_named(tmp_path: Path, names: list[str], named: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(tar_bytes(PAIR))
    with pytest.raises(InputError, match=named):
        list_image_shards(Store(str(tmp_path)))


def test_a_tar_that_is_compressed_under_a_plain_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(gzip.compress(tar_bytes(PAIR)))
    with pytest.raises(InputError, match=r"00000\.tar is compressed; unpack it"):
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
