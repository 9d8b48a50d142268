"""Records and manifests: reading, checks, pending shards and refusals."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from priorkit.pipeline.contract.commit import (
    open_stage,
)
from priorkit.pipeline.contract.manifest import (
    MANIFEST_NAME,
    Manifest,
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
from priorkit.pipeline.errors import InputError

from .conftest import planned, two_shards, write_shard

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def edit_manifest(store: Store, edit: Callable[[dict[str, Any]], None]) -> None:
    value = store.read_json(MANIFEST_NAME)
    edit(value)
    store.write_json(MANIFEST_NAME, value)


def test_names_of_shards_are_those_of_the_upstream_tools() -> None:
    assert image_shard_name(12) == "00012"
    assert embedding_shard_name(12) == "0012"


def test_a_finished_shard_is_not_pending(store: Store) -> None:
    two_shards(store)
    with open_stage(store, planned()) as folder:
        assert folder.pending({"00000": "in", "00001": "in"}) == []


def test_a_shard_with_another_input_is_pending(store: Store) -> None:
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


def test_the_error_for_a_folder_without_result_names_the_command(store: Store) -> None:
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
def test_json_of_another_shape_is_refused(store: Store, text: str) -> None:
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
def test_fingerprints_do_not_depend_on_the_order_of_keys(value: Any) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(list(value))}
        return [turned(item) for item in value] if isinstance(value, list) else value

    assert fingerprint(value) == fingerprint(turned(value))
    assert fingerprint(value) == fingerprint(json.loads(json.dumps(value)))
    assert fingerprint(value) != fingerprint([value])


def test_fingerprints_do_not_change_between_versions() -> None:
    """All existing folders depend on these values."""
    assert fingerprint({"b": [1, 2.5, None, True], "a": "é"}) == (
        "0b8cc543e984d4d7398f5f603a4b91d358a2565f1d6b6a058565d662854e37cf"
    )


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
