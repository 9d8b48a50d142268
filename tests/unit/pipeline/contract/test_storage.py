"""Plain names, atomic files and hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from priorkit.pipeline.contract.hashing import FileRecord
from priorkit.pipeline.contract.storage import Store, atomic_file, check_name
from priorkit.pipeline.errors import InputError


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A folder on disk, and one on an object store."""
    url = str(tmp_path / "folder") if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    store = Store(url)
    yield store
    if not store.is_local and store.fs.exists(store.root):
        store.fs.rm(store.root, recursive=True)


@pytest.mark.parametrize(
    "name", ["00000.tar", "img_emb/img_emb_0000.npy", "a..b", "_private/x", "a-b_c.d"], ids=lambda name: str(name)
)
def test_plain_names_pass(name: str) -> None:
    assert check_name(name) == name


LEAVING = ["", ".", "..", "../x", "a/../x", "a/..", "/etc/passwd", "a//b", "a/", "s3://bucket/x", "file:///x", "x\0y"]


@pytest.mark.parametrize(
    "name",
    [*LEAVING, ".hidden", "a/.hidden", "a\\b", "C:\\x", "~root/x", "a b", "a\nb", "a\n", "é", "-rf"],
)
def test_names_that_are_not_plain_are_refused_in_manifests_and_for_writing(name: str, store: Store) -> None:
    with pytest.raises(InputError, match="plain relative name"):
        check_name(name)
    with pytest.raises(InputError, match="plain relative name"):
        store.remove(name)
    for pair in ((name, "x"), ("x", name)):
        with pytest.raises(InputError, match="plain relative name"):
            store.move(*pair)
    with pytest.raises(InputError, match="plain relative name"), store.create(name):
        pass


@pytest.mark.parametrize("name", LEAVING)
def test_names_that_could_leave_the_folder_are_refused_before_any_use(name: str, store: Store) -> None:
    for use in (store.open, store.size, store.path, store.read_json):
        with pytest.raises(InputError, match="leaves the folder"):
            use(name)


@pytest.mark.parametrize("name", ["two words.bin", "größe/☃.bin", "a\\b", "[x]?*.bin", "-rf", "a#b%2e.bin"])
def test_files_of_other_tools_are_read_whatever_their_names(name: str, store: Store) -> None:
    store.make()
    store.fs.makedirs(os.path.dirname(f"{store.root}/{name}"), exist_ok=True)
    with store.fs.open(f"{store.root}/{name}", "wb") as file:
        file.write(b"content")
    assert store.names() == [name]
    assert store.sizes() == {name: 7} == {name: store.size(name)}
    with store.open(name) as file:
        assert file.read() == b"content"


def test_the_record_of_a_file_has_its_size_and_hash(store: Store) -> None:
    with store.create("a/b.bin") as file:
        file.write(b"one")
        file.write(memoryview(b"two"))
        assert file.tell() == 6
        record = file.record()
    assert record == FileRecord(6, hashlib.sha256(b"onetwo").hexdigest())
    with store.open("a/b.bin") as stored:
        assert stored.read() == b"onetwo"
    assert store.size("a/b.bin") == 6
    assert store.names() == ["a/b.bin"]


def test_a_block_that_fails_leaves_no_file(store: Store) -> None:
    with contextlib.suppress(RuntimeError), store.create("a/b.bin") as file:
        file.write(b"half")
        raise RuntimeError
    assert store.size("a/b.bin") is None
    assert store.names() == []


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_unchanged(store: Store, stop: type[BaseException]) -> None:
    with store.create("x.bin") as file:
        file.write(b"old")
    with contextlib.suppress(stop), store.create("x.bin") as file:
        file.write(b"new and longer")
        raise stop
    with store.open("x.bin") as stored:
        assert stored.read() == b"old"
    assert store.names() == ["x.bin"]


def test_a_file_is_invisible_before_its_block_ends(store: Store) -> None:
    with store.create("x.bin") as file:
        file.write(b"content")
        assert store.size("x.bin") is None
    assert store.size("x.bin") == 7


def test_json_is_written_and_read(store: Store) -> None:
    store.write_json("a/x.json", {"caption": "猫 🐈", "n": 1})
    assert store.read_json("a/x.json") == {"caption": "猫 🐈", "n": 1}
    with pytest.raises(ValueError, match="JSON"):
        store.write_json("a/x.json", {"n": float("nan")})
    assert store.read_json("a/x.json")["n"] == 1


def test_absent_and_damaged_files_raise_different_exceptions(store: Store) -> None:
    assert store.size("none.json") is None
    with pytest.raises(FileNotFoundError):
        store.read_json("none.json")
    store.remove("none.json")
    for damaged in (b'{"a": ', b'{"a": "\xff"}', b"[" * 100_000, b'{"a": ' * 100_000):
        with store.create("cut.json") as file:
            file.write(damaged)
        with pytest.raises(InputError, match=r"cut\.json is not JSON"):
            store.read_json("cut.json")


def test_sweep_removes_the_temporary_files_of_killed_writers(store: Store) -> None:
    with store.create("a.bin") as file:
        file.write(b"x")
    with store.fs.open(f"{store.root}/dead.bin.priorkit-tmp", "wb") as left:
        left.write(b"half")
    store.sweep()
    assert store.names() == ["a.bin"]


def test_a_store_is_pickled_as_its_url(store: Store) -> None:
    with store.create("x.bin") as file:
        file.write(b"x")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.url == store.url
    assert copy.size("x.bin") == 1


def test_unknown_schemes_and_missing_extras_are_named() -> None:
    with pytest.raises(InputError, match="nosuch://bucket"):
        Store("nosuch://bucket/x")


def test_relative_and_file_urls_are_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("data/images").url == Store(f"file://{tmp_path}/data/images/").url == str(tmp_path / "data/images")


def test_ranges_and_sizes(store: Store) -> None:
    for name, content in (("a/one.bin", b"0123456789"), ("a/b/two.bin", b""), ("c/three.bin", b"x")):
        with store.create(name) as file:
            file.write(content)
    assert store.sizes("a") == {"a/b/two.bin": 0, "a/one.bin": 10}
    assert store.sizes("none") == {}
    for start, length, expected in ((0, 10, b"0123456789"), (3, 4, b"3456"), (8, 5, b"89")):
        target = bytearray(length)
        assert store.read_into("a/one.bin", start, memoryview(target)) == len(expected)
        assert target[: len(expected)] == expected


def test_two_writers_of_one_file_use_different_temporary_files(store: Store) -> None:
    with store.create("a.bin") as first, store.create("a.bin") as second:
        first.write(b"the first, longer")
        second.write(b"the second")
    with store.open("a.bin") as file:
        assert file.read() == b"the first, longer"  # its block ended last


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_file_is_on_disk_before_it_has_its_name(
    durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "file", []

    def fsync(file: int) -> None:
        synced.append((os.fstat(file).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_file(path, durable=durable) as file:
        file.write(b"whole")
    assert synced == ([(5, False)] if durable else [])
    assert path.read_bytes() == b"whole"


def test_an_atomic_file_may_have_any_name_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "größe ☃.npy"
    path.write_bytes(b"old")
    with atomic_file(path, durable=False) as file:
        file.write(b"new and longer")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new and longer"
    with contextlib.suppress(RuntimeError), atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"new and longer"
    assert list(tmp_path.iterdir()) == [path]
