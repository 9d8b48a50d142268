"""Commits of shards, and folders that are opened for writing."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from priorkit.pipeline.contract.commit import (
    ShardCommit,
    check_stage,
    difference,
    finish_replacements,
    open_stage,
)
from priorkit.pipeline.contract.hashing import FileRecord
from priorkit.pipeline.contract.lock import lock_folder
from priorkit.pipeline.contract.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardRecord,
    differing_files,
    fingerprint,
    read_manifest,
)
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import FolderError

from .conftest import SETTINGS, planned, two_shards, write_shard

nested_settings = st.dictionaries(
    st.sampled_from("abcd"), st.integers(0, 2) | st.dictionaries(st.sampled_from("xyz"), st.integers(0, 2)), max_size=4
)


def test_a_shard_without_record_does_not_exist(store: Store) -> None:
    with open_stage(store, planned()) as folder:
        commit = ShardCommit(store, "00000", input="in", settings=folder.manifest.settings_fingerprint)
        with commit.create("00000.tar") as file:
            file.write(b"data")
        found = read_manifest(store)
        assert found is not None
        assert found.shards == {}
        record = commit.commit(rows=1)
        found = read_manifest(store)
        assert found is not None
        assert found.shards == {"00000": record}


def test_the_record_has_size_and_hash_of_files_and_lists_logs_separately(store: Store) -> None:
    with open_stage(store, planned()) as folder:
        record = write_shard(folder, "00000", b"data")
    assert record.files == {
        "00000.tar": FileRecord(4, "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7")
    }
    assert list(record.logs) == ["00000_stats.json"]
    assert record.counts == {"http_4xx": 1, "success": 1}
    assert record.content() == {"00000.tar": record.files["00000.tar"].sha256}


def test_only_existing_records_are_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    two_shards(store)
    assert store.names("shards") == []
    removed: list[str] = []
    original = Store.remove
    monkeypatch.setattr(Store, "remove", lambda self, name: (removed.append(name), original(self, name)))
    with open_stage(store, planned()) as folder:
        folder.add(write_shard(folder, "00002"))
        folder.finish()
    assert [name for name in removed if name.startswith("shards/")] == ["shards/00002.json"]
    assert store.names("shards") == []


def test_a_file_whose_block_failed_is_not_in_the_record(store: Store) -> None:
    with open_stage(store, planned()) as folder:
        commit = ShardCommit(store, "00000", input="in", settings=folder.manifest.settings_fingerprint)
        with contextlib.suppress(RuntimeError), commit.create("00000.tar") as file:
            file.write(b"half")
            raise RuntimeError
        assert commit.commit(rows=0).files == {}


def test_finish_merges_the_records_into_the_manifest_and_removes_leftovers(store: Store) -> None:
    with open_stage(store, planned()) as folder:
        folder.add(write_shard(folder, "00000"))
        with store.fs.open(f"{store.root}/left.tar.priorkit-tmp", "wb") as file:
            file.write(b"half")
        assert "shards/00000.json" in store.names()
        folder.finish()
    names = [name for name in store.names() if name != ".lock"]
    assert names == ["00000.tar", "00000_stats.json", MANIFEST_NAME]
    assert list(store.read_json(MANIFEST_NAME)["shards"]) == ["00000"]
    if store.is_local:
        assert not Path(store.root, "shards").exists()


def test_records_of_a_killed_run_count(store: Store) -> None:
    with open_stage(store, planned()) as folder:
        write_shard(folder, "00000")  # killed here: neither added nor finished
    with open_stage(store, planned()) as folder:
        assert folder.pending({"00000": "in", "00001": "in"}) == ["00001"]
        folder.finish()
    assert list(store.read_json(MANIFEST_NAME)["shards"]) == ["00000"]


def test_withdrawn_records_disappear_from_manifest_and_folder(store: Store) -> None:
    with open_stage(store, planned()) as folder:
        for name in ("00000", "00001"):
            folder.add(write_shard(folder, name))
        folder.describe(clip="tiny")  # the manifest holds both records, and so do the record files
        folder.withdraw(["00001", "00002"])
        found = read_manifest(store)
        assert found is not None
        assert list(found.shards) == ["00000"]
        assert found.about == {"clip": "tiny"}


def test_changed_settings_are_refused_with_their_names_and_the_fix(store: Store) -> None:
    two_shards(store)
    changed = planned(settings={"size": 64, "clip": {"model": "tiny", "tag": "x"}})
    with pytest.raises(FolderError) as error, open_stage(store, changed):
        pass
    assert "clip.tag: absent -> 'x', size: 32 -> 64" in str(error.value)
    assert "--overwrite" in str(error.value)
    assert store.url in str(error.value)


def test_about_entries_stay_only_with_the_same_settings(store: Store) -> None:
    with open_stage(store, planned()) as folder:
        folder.describe(clip="tiny")
    with open_stage(store, planned()) as folder:
        assert folder.manifest.about == {"clip": "tiny"}
    with open_stage(store, planned(settings={"size": 64})) as folder:
        assert folder.manifest.about == {}


def test_another_stage_is_refused_even_with_overwrite(store: Store) -> None:
    two_shards(store)
    for overwrite in (False, True):
        with (
            pytest.raises(FolderError, match="priorkit download"),
            open_stage(store, planned("embed"), overwrite=overwrite),
        ):
            pass
    assert store.size("00000.tar") == 4


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_refused_and_not_changed(store: Store, overwrite: bool) -> None:
    with store.create("thesis/draft.txt") as file:
        file.write(b"years")
    with (
        pytest.raises(FolderError, match=r"other work.*thesis/draft\.txt"),
        open_stage(store, planned(), overwrite=overwrite),
    ):
        pass
    assert store.names() == ["thesis/draft.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with (
        pytest.raises(FolderError, match="is a file; name a folder"),
        open_stage(Store(str(tmp_path / "file")), planned()),
    ):
        pass


def test_a_folder_with_only_our_own_leftovers_is_empty(store: Store) -> None:
    with lock_folder(store):
        pass
    with store.fs.open(f"{store.root}/manifest.json.priorkit-tmp", "wb") as file:
        file.write(b"{")
    assert check_stage(store, planned()) is None


def test_overwrite_removes_only_recorded_files(store: Store) -> None:
    two_shards(store)
    with store.create("notes.txt") as file:
        file.write(b"mine")
    with open_stage(store, planned(settings={"size": 64}), overwrite=True) as folder:
        assert [name for name in store.names() if name not in (".lock", "lease.json")] == [MANIFEST_NAME, "notes.txt"]
        assert folder.manifest.shards == {}
        assert folder.pending({"00000": "in"}) == ["00000"]
    assert store.read_json(MANIFEST_NAME)["settings"] == {"size": 64}


def test_the_manifest_is_written_before_the_first_shard(store: Store) -> None:
    with open_stage(store, planned()) as folder:
        found = read_manifest(store)
        assert found is not None
        assert found.settings == SETTINGS
        assert found.settings_fingerprint == folder.manifest.settings_fingerprint == fingerprint(SETTINGS)


@given(nested_settings, nested_settings)
def test_exactly_the_differing_settings_are_named(old: dict[str, Any], new: dict[str, Any]) -> None:
    expected = []
    for key in {*old, *new}:
        before, after = old.get(key, "absent"), new.get(key, "absent")
        if isinstance(before, dict) and isinstance(after, dict):
            pairs = {name: (before.get(name, "absent"), after.get(name, "absent")) for name in {*before, *after}}
            expected += [f"{key}.{name}: {_shown(a)} -> {_shown(b)}" for name, (a, b) in pairs.items() if a != b]
        elif before != after:
            expected.append(f"{key}: {_shown(before)} -> {_shown(after)}")
    assert difference(old, new) == ", ".join(sorted(expected))


def _shown(value: Any) -> str:
    return "absent" if value == "absent" else repr(value)


MOVE = Store.move


def write_version(store: Store, content: bytes, *, replaces: bool) -> ShardRecord:
    commit = ShardCommit(store, "00000", input="in", settings=fingerprint(SETTINGS), replaces=replaces)
    for name in ("00000.tar", "00000.parquet"):
        with commit.create(name) as file:
            file.write(content + name.encode())
    commit.write_log("00000_stats.json", {"content": content.decode()})
    return commit.commit(rows=1)


@pytest.mark.parametrize("scheme", ["local", "memory"])
def test_a_new_version_of_a_shard_replaces_the_old_one_when_it_is_complete(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill before any move, the next opening finds the old or the new shard, never a mixture."""
    for moves in range(5):
        store = Store(str(tmp_path / str(moves)) if scheme == "local" else f"memory://{uuid.uuid4().hex}")
        planned = Manifest("download", SETTINGS, {})
        with open_stage(store, planned) as folder:
            folder.add(write_version(store, b"old", replaces=False))
            folder.finish()
        left = [moves]

        def move_or_die(self: Store, name: str, target: str, left: list[int] = left) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            MOVE(self, name, target)

        with monkeypatch.context() as patched:
            patched.setattr(Store, "move", move_or_die)
            with contextlib.suppress(KeyboardInterrupt):
                write_version(store, b"new", replaces=True)
        assert (finish_replacements(store, "00000") is None) == (moves == 4)
        assert finish_replacements(store, "00001") is None
        with open_stage(store, Manifest("download", SETTINGS, {})) as folder:
            (record,) = folder.manifest.shards.values()
            assert differing_files(store, record) == []
            assert store.read_json("00000_stats.json") == {"content": "new"}
            folder.finish()
        assert [name for name in store.names() if "replacing" in name] == []


def test_a_shard_stays_unchanged_if_its_new_version_is_incomplete(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with open_stage(store, Manifest("download", SETTINGS, {})) as folder:
        folder.add(write_version(store, b"old", replaces=False))
        folder.finish()
    with ShardCommit(store, "00000", input="in", settings="s", replaces=True).create("00000.tar") as file:
        file.write(b"new")
    assert (tmp_path / "replacing/00000.tar").exists()
    with open_stage(store, Manifest("download", SETTINGS, {})) as folder:
        (record,) = folder.manifest.shards.values()
        assert differing_files(store, record) == []
        folder.finish()
    assert not (tmp_path / "replacing").exists()


def test_files_beside_the_manifest_are_not_taken_for_replacements(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with ShardCommit(store, "00000", input="in", settings="s", replaces=True).create("00000.tar") as file:
        file.write(b"new")
    with open_stage(store, planned(), beside=True) as folder:
        folder.finish()
    assert (tmp_path / "replacing/00000.tar").read_bytes() == b"new"
