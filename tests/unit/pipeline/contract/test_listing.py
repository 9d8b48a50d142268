"""Listings of folders, and the rule for data files."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from priorkit.pipeline.contract.commit import open_stage
from priorkit.pipeline.contract.listing import is_data, list_files
from priorkit.pipeline.contract.manifest import Manifest, read_manifest
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.errors import FolderError, InputError
from priorkit.pipeline.urls.url_list import open_url_list

FOREIGN = [
    ".DS_Store", "._00000.tar", "a/._0.jpg", ".git/config", ".cache/huggingface/x.npy", ".ipynb_checkpoints/0.jpg",
    "_delta_log/00000000000000000000.json", "_delta_log/0.checkpoint.parquet", "__MACOSX/0.jpg", "__MACOSX/._0.jpg",
    "Thumbs.db", "a/desktop.ini", "README", "README.md", "a/readme.txt", "LICENSE", "_SUCCESS", ".part-0.parquet.crc",
    "part-0.parquet.crc", "img_emb_$folder$", "img_emb/", "", "a/", "_temporary/0/part-0.parquet", "@eaDir/0.jpg",
    "_committed_123", "_started_123", "._", "__pycache__/x.pyc", "lost+found/x.jpg",
    "PaxHeaders.123/0.jpg", "./a/._0.jpg",
]  # fmt: skip
DATA = [
    "00000.tar", "_DSC0001.jpg", "img_emb/img_emb_0.npy", "two words.tar", "猫/猫.jpg", "a.b/c.d.txt",
    "year=2020/part-0.parquet", "readme about cats.txt", "README.jpg", "metadata/_x.parquet", "x.priorkit-tmp", "-rf",
]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_tools_are_not_data(name: str) -> None:
    assert not is_data(name)


@pytest.mark.parametrize("name", [*DATA, "./00000.tar", "../a/0.jpg", "./a/./0.jpg"])
def test_other_files_are_data_whatever_their_names(name: str) -> None:
    assert is_data(name)


def fill(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


ON_DISK = [name for name in FOREIGN if name and not name.endswith("/") and not name.startswith("./")]


def test_a_local_folder_is_listed_without_other_files(tmp_path: Path) -> None:
    store = Store(str(fill(tmp_path / ".hidden parent", [*ON_DISK, *DATA])))
    assert store.names() == sorted(DATA) == list(store.sizes())
    assert store.names("img_emb") == ["img_emb/img_emb_0.npy"] == list(store.sizes("img_emb"))


class Bucket(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Objects in memory, as S3 has them: an empty object whose name ends with a slash marks a folder."""

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        marks = [path + "/", f"{path}/img_emb/"]
        found = super().find(path, *args, **kwargs)
        return {**found, **{name: {"name": name, "size": 0, "type": "file"} for name in marks}}


def test_a_bucket_is_listed_without_its_folder_markers(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    store.fs = Bucket()
    for name in (*ON_DISK, "img_emb/img_emb_0.npy"):
        store.fs.pipe(f"{store.root}/{name}", b"xyz")
    assert store.names() == ["img_emb/img_emb_0.npy"]
    assert store.sizes("img_emb") == {"img_emb/img_emb_0.npy": 3}


def test_links_to_folders_are_followed_once_per_path(tmp_path: Path) -> None:
    fill(tmp_path / "real", ["cat/0.jpg", "dog/1.jpg"])
    folder = fill(tmp_path / "in", ["a/2.jpg"])
    (folder / "cat").symlink_to("../real/cat")
    (folder / "again").symlink_to("../real")
    (folder / "file.jpg").symlink_to("../real/cat/0.jpg")
    expected = ["a/2.jpg", "again/cat/0.jpg", "again/dog/1.jpg", "cat/0.jpg", "file.jpg"]
    assert Store(str(folder)).names() == expected
    assert Store(str(folder)).sizes() == dict.fromkeys(expected, 1)
    (tmp_path / "linked").symlink_to("in")
    assert Store(str(tmp_path / "linked")).names() == expected


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x/in", ["a/0.jpg", "b/1.jpg"])
    (folder / "a/up").symlink_to("..")
    (folder / "out").symlink_to(tmp_path)
    (folder / "itself").symlink_to(".")
    (folder / "a/b").symlink_to("../b")
    (folder / "b/a").symlink_to("../a")
    (folder / "self.jpg").symlink_to("self.jpg")
    names = Store(str(folder)).names()
    assert names == ["a/0.jpg", "a/b/1.jpg", "b/1.jpg", "b/a/0.jpg", "self.jpg"]


def test_a_broken_link_is_listed_so_that_reading_it_fails(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").symlink_to("gone.jpg")
    assert Store(str(tmp_path)).sizes() == {"0.jpg": 0}


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, ["a/0.jpg"])
    scandir = os.scandir

    def refuse(folder: str) -> Any:
        if folder.endswith("/a"):  # a mock, since root may list every folder
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="a cannot be listed"):
        Store(str(tmp_path)).names()


def test_an_output_folder_may_have_hidden_files_but_no_other_files(tmp_path: Path) -> None:
    planned = Manifest("embed", {}, {})
    with open_stage(Store(str(fill(tmp_path / "new", ON_DISK))), planned) as held:
        held.finish()
    assert (tmp_path / "new/.DS_Store").exists()
    with (
        pytest.raises(FolderError, match=r"other work \(1 files, such as 'my notes.doc'\)"),
        open_stage(Store(str(fill(tmp_path / "used", [".DS_Store", "my notes.doc"]))), planned),
    ):
        pass


def test_records_without_a_manifest_belong_to_another_tool(tmp_path: Path) -> None:
    fill(tmp_path, ["shards/00000.tar", "shards/00000_stats.json", "shards/.hidden.json"])
    assert read_manifest(Store(str(tmp_path))) is None


def test_a_folder_of_lists_follows_the_same_rule(tmp_path: Path) -> None:
    fill(tmp_path / "in", ["README.txt", ".cache/x.txt", "._a.txt", "_delta_log/0.json", "a b.txt"])
    (tmp_path / "more").mkdir()
    (tmp_path / "more/c.txt").write_text("https://example.com/c.jpg\n")
    (tmp_path / "in/linked").symlink_to("../more")
    (tmp_path / "in/a b.txt").write_text("https://example.com/a.jpg\n")
    found = open_url_list(str(tmp_path / "in"), DownloadSettings(caption_column=None))
    assert [file.path.rpartition("/in/")[2] for file in found.files] == ["a b.txt", "linked/c.txt"]


def test_a_location_without_a_bucket_is_an_input_error() -> None:
    class Buckets(MemoryFileSystem):  # type: ignore[misc]
        protocol = "buckets"

        def find(self, path: str, *args: Any, **options: Any) -> Any:
            raise ValueError("Cannot traverse all of S3")

    with pytest.raises(InputError, match=r"Cannot traverse all of S3\); name a bucket or a folder in it"):
        list_files(Buckets(), "")
