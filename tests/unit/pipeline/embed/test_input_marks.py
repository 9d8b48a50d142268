"""Inputs that changed, were touched, or were never read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from priorkit.pipeline.contract.commit import ShardCommit
from priorkit.pipeline.contract.file_marks import FileMark, content_fingerprint
from priorkit.pipeline.contract.image_shards import ImageShard
from priorkit.pipeline.contract.manifest import ShardRecord, fingerprint
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed.input_marks import UNREAD, RecordedInputs, input_fingerprint, record_inputs
from priorkit.pipeline.errors import FolderError

from .conftest import shards_of

MARK = FileMark(1, "time", "hash")


def test_a_shard_of_a_manifest_is_known_by_its_own_fingerprint() -> None:
    shard = ImageShard("00000", "mark", 3)
    assert input_fingerprint(shard, {}, None) == "mark"
    assert input_fingerprint(shard, {}, 2) == fingerprint(["mark", 2])


def test_other_shards_are_known_by_the_content_of_their_files_too() -> None:
    shard = ImageShard("00000", "mark", 3, ("00000.tar",))
    marks = {"00000.tar": MARK, "00001.tar": MARK}
    content = fingerprint(["mark", content_fingerprint({"00000.tar": MARK})])
    assert input_fingerprint(shard, marks, None) == content
    assert input_fingerprint(shard, marks, 2) == fingerprint([content, 2])
    assert input_fingerprint(shard, {"00001.tar": MARK}, None) == UNREAD


class Folder:
    """Two captions, each in an embedding shard of its own."""

    def __init__(self, root: Path) -> None:
        self.source, self.store = Store(str(root / "pairs")), Store(str(root / "out"))
        self.files = [root / "pairs" / name for name in ("a.txt", "b.txt")]
        self.files[0].parent.mkdir()
        for file in self.files:
            self.write(file, b"old", 1e9)
        self.records = {}
        for number, shard in enumerate(self.shards()):
            list(shard.read(self.source))
            commit = ShardCommit(self.store, f"{number:04d}", settings="")
            found = record_inputs(commit, f"{number:04d}", self.source, shard, None)
            self.records[f"{number:04d}"] = commit.commit(rows=1, input=found)

    def write(self, file: Path, content: bytes, seconds: float) -> None:
        file.write_bytes(content)
        os.utime(file, (seconds, seconds))

    def shards(self) -> list:
        return shards_of(self.files[0].parent, image=False, rows_per_shard=1)

    def recorded(self, done: dict[str, ShardRecord] | None = None) -> RecordedInputs:
        return RecordedInputs(self.source, self.store, self.shards(), self.records if done is None else done, None)

    def unchanged(self) -> list[bool]:
        now = self.recorded()
        pairs = zip(self.shards(), self.records.values(), strict=True)
        return [now.fingerprint(shard, None) == record.input for shard, record in pairs]


def test_only_the_shard_of_a_changed_file_differs(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.unchanged() == [True, True]
    folder.write(folder.files[1], b"new", 1e9 + 5)
    assert folder.unchanged() == [True, False]
    folder.files[0].unlink()
    folder.files[0].symlink_to(folder.files[1])
    assert folder.unchanged() == [False, False]


def test_a_touched_file_is_the_same_and_its_new_time_is_recorded(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write(folder.files[1], b"old", 1e9 + 5)
    recorded = folder.recorded()
    assert folder.unchanged() == [True, True]
    assert list(recorded.touched) == ["0001"]
    recorded.record_again(folder.store, ["0000"])
    assert list(folder.recorded().touched) == ["0001"]
    recorded.record_again(folder.store, ["0000", "0001"])
    assert folder.recorded().touched == {}


def test_shards_that_are_not_embedded_are_unread(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    recorded = folder.recorded({"0000": folder.records["0000"]})
    first, second = folder.shards()
    assert recorded.fingerprint(first, None) == folder.records["0000"].input
    assert recorded.fingerprint(second, None) == UNREAD


def test_marks_are_a_log_beside_the_shard(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.records["0000"].logs == ["inputs/inputs_0000.json"]
    assert "a.txt" in json.dumps(folder.store.read_json("inputs/inputs_0000.json"))


def test_a_folder_without_marks_is_refused(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    old = {name: ShardRecord(name, 1, record.input, "", {}) for name, record in folder.records.items()}
    with pytest.raises(FolderError, match=r"made by an older priorkit.*a to a.*--overwrite"):
        folder.recorded(old)
