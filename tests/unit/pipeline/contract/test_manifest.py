"""The on-disk contract: records, manifests, what is pending, and what is refused."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from priorkit.pipeline.contract.commit import (
    ShardCommit,
    StageFolder,
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
    damaged_shards,
    differing_files,
    embedding_shard_name,
    fingerprint,
    image_shard_name,
    missing_files,
    read_manifest,
    require_manifest,
    whole_shards,
)
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import FolderError, InputError

SETTINGS = {"size": 32, "clip": {"model": "tiny"}}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
nested_settings = st.dictionaries(
    st.sampled_from("abcd"), st.integers(0, 2) | st.dictionaries(st.sampled_from("xyz"), st.integers(0, 2)), max_size=4
)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "folder") if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def planned(stage: str = "download", settings: dict[str, Any] | None = None) -> Manifest:
    return Manifest(stage, dict(SETTINGS if settings is None else settings), {"rows": 4})


def write_shard(folder: StageFolder, name: str, data: bytes = b"data", input: str = "in") -> ShardRecord:
    """One committed shard, as a worker writes it."""
    commit = ShardCommit(folder.store, name, input=input, settings=folder.manifest.settings_fingerprint)
    with commit.create(f"{name}.tar") as file:
        file.write(data)
    commit.write_log(f"{name}_stats.json", {"seconds": 1.5})
    return commit.commit(rows=2, counts={"success": 1, "http_4xx": 1})


def two_shards(store: Store) -> None:
    with open_stage(store, planned()) as folder:
        for name in ("00000", "00001"):
            folder.add(write_shard(folder, name))
        folder.finish()


def edit_manifest(store: Store, edit: Callable[[dict[str, Any]], None]) -> None:
    value = store.read_json(MANIFEST_NAME)
    edit(value)
    store.write_json(MANIFEST_NAME, value)


def test_names_of_shards_are_those_of_the_upstream_tools() -> None:
    assert image_shard_name(12) == "00012"
    assert embedding_shard_name(12) == "0012"


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


def test_the_record_names_files_with_size_and_hash_and_keeps_logs_apart(store: Store) -> None:
    with open_stage(store, planned()) as folder:
        record = write_shard(folder, "00000", b"data")
    assert record.files == {
        "00000.tar": FileRecord(4, "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7")
    }
    assert list(record.logs) == ["00000_stats.json"]
    assert record.counts == {"http_4xx": 1, "success": 1}
    assert record.content() == {"00000.tar": record.files["00000.tar"].sha256}


def test_only_records_that_are_there_are_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_finish_merges_the_records_into_the_manifest_and_clears_up(store: Store) -> None:
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


def test_records_that_a_killed_run_left_count(store: Store) -> None:
    with open_stage(store, planned()) as folder:
        write_shard(folder, "00000")  # killed here: neither added nor finished
    with open_stage(store, planned()) as folder:
        assert folder.pending({"00000": "in", "00001": "in"}) == ["00001"]
        folder.finish()
    assert list(store.read_json(MANIFEST_NAME)["shards"]) == ["00000"]


def test_what_is_done_is_not_pending(store: Store) -> None:
    two_shards(store)
    with open_stage(store, planned()) as folder:
        assert folder.pending({"00000": "in", "00001": "in"}) == []


def test_another_input_of_a_shard_makes_that_one_pending(store: Store) -> None:
    two_shards(store)
    with open_stage(store, planned()) as folder:
        assert folder.pending({"00000": "in", "00001": "changed", "00002": "new"}) == ["00001", "00002"]


@pytest.mark.parametrize("content", [None, b"", b"dat", b"data and more"])
def test_a_missing_or_short_file_makes_its_shard_pending(store: Store, content: bytes | None) -> None:
    two_shards(store)
    if content is None:
        store.remove("00001.tar")
    else:
        with store.create("00001.tar") as file:
            file.write(content)
    with open_stage(store, planned()) as folder:
        assert missing_files(folder.manifest.shards["00001"], store.sizes()) == ["00001.tar"]
        assert damaged_shards(store, folder.manifest) == {"00001": ["00001.tar"]}
        assert folder.pending({"00000": "in", "00001": "in"}) == ["00001"]


def test_a_missing_log_does_not_make_a_shard_pending(store: Store) -> None:
    two_shards(store)
    store.remove("00001_stats.json")
    with open_stage(store, planned()) as folder:
        assert folder.pending({"00000": "in", "00001": "in"}) == []


def test_changed_bytes_of_equal_size_are_found_by_reading(store: Store) -> None:
    two_shards(store)
    with store.create("00001.tar") as file:
        file.write(b"Data")
    manifest = require_manifest(store, "download")
    assert damaged_shards(store, manifest) == {}
    assert differing_files(store, manifest.shards["00000"]) == []
    assert differing_files(store, manifest.shards["00001"]) == ["00001.tar"]
    store.remove("00001.tar")
    assert differing_files(store, manifest.shards["00001"]) == ["00001.tar"]


def test_withdrawn_records_are_gone_from_manifest_and_folder(store: Store) -> None:
    with open_stage(store, planned()) as folder:
        for name in ("00000", "00001"):
            folder.add(write_shard(folder, name))
        folder.describe(clip="tiny")  # the manifest holds both records, and so do the record files
        folder.withdraw(["00001", "00002"])
        found = read_manifest(store)
        assert found is not None
        assert list(found.shards) == ["00000"]
        assert found.about == {"clip": "tiny"}


def test_changed_settings_are_refused_by_name_with_the_way_out(store: Store) -> None:
    two_shards(store)
    changed = planned(settings={"size": 64, "clip": {"model": "tiny", "tag": "x"}})
    with pytest.raises(FolderError) as error, open_stage(store, changed):
        pass
    assert "clip.tag: absent -> 'x', size: 32 -> 64" in str(error.value)
    assert "--overwrite" in str(error.value)
    assert store.url in str(error.value)


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
def test_a_folder_with_other_work_is_refused_and_left_alone(store: Store, overwrite: bool) -> None:
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


def test_overwrite_removes_what_was_recorded_and_nothing_else(store: Store) -> None:
    two_shards(store)
    with store.create("notes.txt") as file:
        file.write(b"mine")
    with open_stage(store, planned(settings={"size": 64}), overwrite=True) as folder:
        assert [name for name in store.names() if name not in (".lock", "lease.json")] == [MANIFEST_NAME, "notes.txt"]
        assert folder.manifest.shards == {}
        assert folder.pending({"00000": "in"}) == ["00000"]
    assert store.read_json(MANIFEST_NAME)["settings"] == {"size": 64}


def test_the_manifest_stands_before_the_first_shard(store: Store) -> None:
    with open_stage(store, planned()) as folder:
        found = read_manifest(store)
        assert found is not None
        assert found.settings == SETTINGS
        assert found.settings_fingerprint == folder.manifest.settings_fingerprint == fingerprint(SETTINGS)


def test_totals_are_sums_over_the_shards(store: Store) -> None:
    two_shards(store)
    manifest = require_manifest(store, "download")
    assert manifest.rows == 4
    assert manifest.counts() == {"success": 2, "http_4xx": 2}


def test_the_content_fingerprint_does_not_depend_on_history(tmp_path: Path) -> None:
    straight, crooked = Store(str(tmp_path / "straight")), Store(str(tmp_path / "crooked"))
    two_shards(straight)
    with open_stage(crooked, planned(settings={"size": 1})) as folder:
        folder.add(write_shard(folder, "00001", b"old", input="old"))
        folder.finish()
    with open_stage(crooked, planned(settings={"size": 2}), overwrite=True) as folder:
        for name in ("00001", "00000"):
            folder.add(write_shard(folder, name))
        folder.describe(note="x")
        folder.finish()
    one, other = require_manifest(straight, "download"), require_manifest(crooked, "download")
    assert one.content_fingerprint() == other.content_fingerprint()
    with open_stage(crooked, planned(settings={"size": 2})) as folder:
        folder.withdraw(["00000"])
        folder.add(write_shard(folder, "00000", b"Data"))
        folder.finish()
    assert require_manifest(crooked, "download").content_fingerprint() != one.content_fingerprint()


def test_a_folder_without_result_says_what_to_run(store: Store) -> None:
    with pytest.raises(InputError, match="run that first"):
        require_manifest(store, "embed")
    two_shards(store)
    with pytest.raises(InputError, match="written by `priorkit download`"):
        require_manifest(store, "embed")


HOSTILE_NAMES = ("../x.tar", "/etc/passwd", "a/../../x", "s3://bucket/x", "", ".lock")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("place", ["files", "logs", "name"])
def test_hostile_names_in_a_manifest_are_refused_and_nothing_is_removed(tmp_path: Path, name: str, place: str) -> None:
    (tmp_path / "x.tar").write_bytes(b"outside")
    store = Store(str(tmp_path / "folder"))
    two_shards(store)

    def poison(value: dict[str, Any]) -> None:
        shard = value["shards"]["00000"]
        if place == "files":
            shard["files"] = {name: shard["files"]["00000.tar"]}
        elif place == "logs":
            shard["logs"] = [name]
        else:
            shard["name"] = name

    edit_manifest(store, poison)
    with pytest.raises(InputError, match="plain relative name"):
        read_manifest(store)
    with pytest.raises(InputError, match="plain relative name"), open_stage(store, planned(), overwrite=True):
        pass
    assert (tmp_path / "x.tar").read_bytes() == b"outside"
    assert store.size("00001.tar") == 4


def test_a_manifest_of_another_version_is_refused_by_its_number(store: Store) -> None:
    two_shards(store)
    edit_manifest(store, lambda value: value.update(format_version=99))
    with pytest.raises(InputError, match="format version 99; this priorkit reads 1"):
        read_manifest(store)


@pytest.mark.parametrize("key", ["format_version", "stage", "settings", "input", "about", "shards"])
def test_a_manifest_that_lacks_a_key_is_refused_by_that_key(store: Store, key: str) -> None:
    two_shards(store)
    edit_manifest(store, lambda value: value.pop(key))
    with pytest.raises(InputError, match=f"not a priorkit manifest.*{key}"):
        read_manifest(store)


@pytest.mark.parametrize("key", ["name", "rows", "input", "settings", "files", "logs"])
def test_a_record_that_lacks_a_key_is_refused_by_that_key(store: Store, key: str) -> None:
    two_shards(store)
    edit_manifest(store, lambda value: value["shards"]["00000"].pop(key))
    with pytest.raises(InputError, match=f"not a priorkit manifest.*{key}"):
        read_manifest(store)


@pytest.mark.parametrize("text", ["[]", "7", "null", '"text"', "{}"])
def test_json_that_is_no_manifest_is_refused(store: Store, text: str) -> None:
    with store.create(MANIFEST_NAME) as file:
        file.write(text.encode())
    with pytest.raises(InputError, match="not a priorkit manifest"):
        read_manifest(store)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe"])
def test_a_manifest_that_is_not_json_is_refused(store: Store, text: bytes) -> None:
    with store.create(MANIFEST_NAME) as file:
        file.write(text)
    with pytest.raises(InputError, match=r"manifest\.json is not JSON"):
        read_manifest(store)


@pytest.mark.parametrize(
    "text", [b"[]", b"{}", b'{"name": "00002"}', b"{", b'{"name": "../x", "files": {}, "logs": []}']
)
def test_a_damaged_record_file_is_refused(store: Store, text: bytes) -> None:
    two_shards(store)
    with store.create("shards/00002.json") as file:
        file.write(text)
    with pytest.raises(InputError):
        read_manifest(store)


def test_a_manifest_survives_a_round_trip(store: Store) -> None:
    two_shards(store)
    manifest = require_manifest(store, "download")
    again = Manifest.from_json(json.loads(json.dumps(manifest.to_json())), "memory")
    assert again == manifest


@given(json_values)
def test_equal_values_have_equal_fingerprints_whatever_the_order_of_their_keys(value: Any) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(list(value))}
        return [turned(item) for item in value] if isinstance(value, list) else value

    assert fingerprint(value) == fingerprint(turned(value))
    assert fingerprint(value) == fingerprint(json.loads(json.dumps(value)))
    assert fingerprint(value) != fingerprint([value])


@given(nested_settings, nested_settings)
def test_a_difference_is_named_exactly_where_settings_differ(old: dict[str, Any], new: dict[str, Any]) -> None:
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


def test_fingerprints_do_not_change_between_versions() -> None:
    """Every folder ever written is told apart by these."""
    assert fingerprint({"b": [1, 2.5, None, True], "a": "é"}) == (
        "0b8cc543e984d4d7398f5f603a4b91d358a2565f1d6b6a058565d662854e37cf"
    )


MOVE = Store.move


def write_anew(store: Store, content: bytes, *, replaces: bool) -> ShardRecord:
    commit = ShardCommit(store, "00000", input="in", settings=fingerprint(SETTINGS), replaces=replaces)
    for name in ("00000.tar", "00000.parquet"):
        with commit.create(name) as file:
            file.write(content + name.encode())
    commit.write_log("00000_stats.json", {"content": content.decode()})
    return commit.commit(rows=1)


@pytest.mark.parametrize("scheme", ["local", "memory"])
def test_a_shard_written_anew_takes_the_place_of_the_old_one_when_it_is_whole(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill before each of the moves: the old shard or the new one, never a mixture after the next opening."""
    for moves in range(5):
        store = Store(str(tmp_path / str(moves)) if scheme == "local" else f"memory://{uuid.uuid4().hex}")
        planned = Manifest("download", SETTINGS, {})
        with open_stage(store, planned) as folder:
            folder.add(write_anew(store, b"old", replaces=False))
            folder.finish()
        left = [moves]

        def killed(self: Store, name: str, target: str, left: list[int] = left) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            MOVE(self, name, target)

        with monkeypatch.context() as patched:
            patched.setattr(Store, "move", killed)
            with contextlib.suppress(KeyboardInterrupt):
                write_anew(store, b"new", replaces=True)
        assert (finish_replacements(store, "00000") is None) == (moves == 4)
        assert finish_replacements(store, "00001") is None
        with open_stage(store, Manifest("download", SETTINGS, {})) as folder:
            (record,) = folder.manifest.shards.values()
            assert differing_files(store, record) == []
            assert store.read_json("00000_stats.json") == {"content": "new"}
            folder.finish()
        assert [name for name in store.names() if "replacing" in name] == []


def test_a_shard_that_was_not_written_anew_to_its_end_stays_as_it_was(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with open_stage(store, Manifest("download", SETTINGS, {})) as folder:
        folder.add(write_anew(store, b"old", replaces=False))
        folder.finish()
    with ShardCommit(store, "00000", input="in", settings="s", replaces=True).create("00000.tar") as file:
        file.write(b"new")
    assert (tmp_path / "replacing/00000.tar").exists()
    with open_stage(store, Manifest("download", SETTINGS, {})) as folder:
        (record,) = folder.manifest.shards.values()
        assert differing_files(store, record) == []
        folder.finish()
    assert not (tmp_path / "replacing").exists()


@pytest.mark.parametrize("check", [damaged_shards, whole_shards])
def test_shards_are_checked_by_one_listing(check: Callable[[Store, Manifest], Any], requests: list[str]) -> None:
    numbers = []
    for shards in (2, 20):
        store = Store(f"memory://{uuid.uuid4().hex}")
        with open_stage(store, planned()) as folder:
            for number in range(shards):
                folder.add(write_shard(folder, image_shard_name(number)))
            folder.finish()
        manifest = require_manifest(store, "download")
        requests.clear()
        check(store, manifest)
        numbers.append(len(requests))
    assert numbers[0] == numbers[1] <= 3
