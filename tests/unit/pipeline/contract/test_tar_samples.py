"""Samples in a tar, and damage of it."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from priorkit.pipeline.contract.file_marks import marks_of_read
from priorkit.pipeline.contract.hashing import hash_file
from priorkit.pipeline.contract.samples import SampleFiles
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.contract.tar_samples import count_keys, count_samples, read_tar
from priorkit.pipeline.errors import InputError

from ....conftest import tar_bytes


def read(folder: Path, content: bytes, hashed: bool = False) -> list[tuple[str, bytes | None, bytes | None]]:
    (folder / "0.tar").write_bytes(content)
    return [(s.key, s.image, s.caption) for s in read_tar(Store(str(folder)), "0.tar", hashed=hashed)]


def test_files_up_to_the_first_dot_of_their_name_form_a_sample(tmp_path: Path) -> None:
    content = tar_bytes([("./a/0.x.txt", b"no"), ("./a/0.jpg", b"1"), ("./a/0.TXT", b"2"), ("b/0.png", b"3")])
    assert read(tmp_path, content) == [("a/0", b"1", b"2"), ("b/0", b"3", None)]
    assert count_samples(Store(str(tmp_path)), "0.tar") == 2


def test_a_repeated_extension_begins_a_new_sample(tmp_path: Path) -> None:
    assert read(tmp_path, tar_bytes([("0.jpg", b"1"), ("0.jpg", b"2")])) == [("0", b"1", None), ("0", b"2", None)]


def test_a_sample_whose_files_are_apart_is_a_failure(tmp_path: Path) -> None:
    content = tar_bytes([("0.jpg", b"1"), ("1.jpg", b"2"), ("0.txt", b"3")])
    assert read(tmp_path, content)[2] == ("0", None, None)
    with pytest.raises(InputError, match=r"do not stand together.*sample '0'"):
        count_samples(Store(str(tmp_path)), "0.tar")


def test_files_that_are_no_data_and_folders_belong_to_no_sample(tmp_path: Path) -> None:
    assert read(tmp_path, tar_bytes([("._0.jpg", b"1"), ("README.md", b"2"), ("noextension", b"3")])) == []


def test_a_link_has_no_content_and_is_named(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        member = tarfile.TarInfo("0.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "1.jpg"
        tar.addfile(member)
    (tmp_path / "0.tar").write_bytes(file.getvalue())
    (sample,) = read_tar(Store(str(tmp_path)), "0.tar", hashed=False)
    assert sample.image is None
    assert ".jpg (a link)" in sample.instead


@pytest.mark.parametrize("end", [700, 1500, 2048])
def test_samples_before_damage_are_yielded_and_then_it_is_raised(tmp_path: Path, end: int) -> None:
    content = tar_bytes([("0.jpg", b"1" * 100), ("1.jpg", b"2" * 100)])
    (tmp_path / "0.tar").write_bytes(content[:end])
    samples = read_tar(Store(str(tmp_path)), "0.tar", hashed=False)
    keys: list[str] = []
    with pytest.raises(InputError, match="download that shard again"):
        keys.extend(sample.key for sample in samples)
    assert keys == ["0", "1"][: len(keys)]
    assert count_samples(Store(str(tmp_path)), "0.tar") == {700: 1, 1500: 1, 2048: 2}[end]


def test_a_tar_is_hashed_completely_while_it_is_read(tmp_path: Path) -> None:
    read(tmp_path, tar_bytes([("0.jpg", b"1")]), hashed=True)
    (mark,) = marks_of_read(Store(str(tmp_path)), ["0.tar"]).values()
    with (tmp_path / "0.tar").open("rb") as file:
        assert mark.sha256 == hash_file(file)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_complete_tar_ends_with_two_empty_blocks(tmp_path: Path, blocks: int) -> None:
    content = tar_bytes([("0.jpg", b"1" * 512)])[:1024] + bytes(512 * blocks)
    if blocks == 2:
        assert len(read(tmp_path, content)) == 1
    else:
        with pytest.raises(InputError, match="it ends early"):
            read(tmp_path, content)


def test_a_compressed_tar_is_read_and_hashed_like_any_other(tmp_path: Path) -> None:
    plain = tar_bytes([("0.jpg", b"1" * 2000), ("0.txt", b"a"), ("1.jpg", b"2")])
    packed = gzip.compress(plain[:1000]) + gzip.compress(plain[1000:])  # pigz and bgzip write several streams
    assert read(tmp_path, packed, hashed=True) == read(tmp_path / "", plain)
    read(tmp_path, packed, hashed=True)
    (mark,) = marks_of_read(Store(str(tmp_path)), ["0.tar"]).values()
    with (tmp_path / "0.tar").open("rb") as file:
        assert mark.sha256 == hash_file(file)
    assert count_samples(Store(str(tmp_path)), "0.tar") == 2
    assert count_keys(Store(str(tmp_path)), "0.tar") == {"0": 1, "1": 1}


@pytest.mark.parametrize("damage", ["packed", "last byte", "content", "no end", "flipped"])
def test_damage_in_a_compressed_tar_is_named(tmp_path: Path, damage: str) -> None:
    plain = tar_bytes([("0.jpg", bytes(range(256)) * 4), ("1.jpg", b"2" * 100)])
    packed = gzip.compress(plain)
    content = {
        "packed": packed[: len(packed) // 2],
        "last byte": packed[:-1],
        "content": gzip.compress(plain[:2048]),
        "no end": gzip.compress(plain[:2560]),  # two complete members
        "flipped": packed[:-6] + b"\0\0\0\0" + packed[-2:],
    }[damage]
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(InputError, match=r"0\.tar is damaged .*; download that shard again"):
        list(read_tar(Store(str(tmp_path)), "0.tar", hashed=False))
    assert count_samples(Store(str(tmp_path)), "0.tar") <= 2


def test_rules_choose_the_files_of_a_sample(tmp_path: Path) -> None:
    members = [("s0.input.JPG", b"1"), ("s0.mask.png", b"2"), ("s0.outputs.txt", b"thing"), ("s0.txt", b"other")]
    (tmp_path / "0.tar").write_bytes(tar_bytes(members))
    rules = SampleFiles(("seg.png", "input.jpg"), "outputs.txt")
    (sample,) = read_tar(Store(str(tmp_path)), "0.tar", hashed=False, rules=rules)
    assert (sample.key, sample.image, sample.caption) == ("s0", b"1", b"thing")
