"""Folders with a manifest: faults that are refused at open, and which files are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from priorkit.pipeline.contract.manifest import read_manifest
from priorkit.pipeline.contract.storage import TEMPORARY_SUFFIX, Store
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.dataset import read_embeddings
from priorkit.pipeline.read.recorded import open_recorded
from priorkit.pipeline.read.shards import FolderShards

WriteEmbeddings = Callable[..., Path]
NAMES = [f"row{number}" for number in range(300)]
SHARDS = [NAMES[:100], NAMES[100:180], NAMES[180:]]


def open_folder(folder: Path) -> FolderShards:
    store = Store(str(folder))
    manifest = read_manifest(store)
    assert manifest is not None
    return open_recorded(store, manifest)


def change_manifest(folder: Path, change: Callable[[dict], None]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_recorded_folder_is_described_by_its_manifest(write_embeddings: WriteEmbeddings) -> None:
    opened = open_folder(write_embeddings(SHARDS))
    assert [shard.rows for shard in opened.shards] == [100, 80, 120]
    assert (opened.embed_dim, opened.token_width) == (8, 4)
    assert opened.about["clip_settings"] == {"model": "none"}
    assert len(opened.recorded_fingerprint) > 16
    assert (opened.foreign_files, opened.notes) == ((), [])


def test_a_manifest_that_does_not_name_its_clip_is_refused(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS)
    change_manifest(folder, lambda manifest: manifest["about"].pop("clip_settings"))
    with pytest.raises(InputError, match="does not say which CLIP made it"):
        open_folder(folder)


@pytest.mark.parametrize("width", [None, 0, -8, True, "8", 8.0, (1 << 20) + 1])
@pytest.mark.parametrize("name", ["embed_dim", "token_width"])
def test_an_impossible_width_is_refused(write_embeddings: WriteEmbeddings, name: str, width: object) -> None:
    folder = write_embeddings([["a"]])
    change_manifest(folder, lambda manifest: manifest["about"]["clip"].update({name: width}))
    with pytest.raises(InputError, match=f"its manifest gives .* as the CLIP's {name}"):
        open_folder(folder)


def test_an_unfinished_folder_is_refused(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS)
    change_manifest(folder, lambda manifest: manifest["input"].update(shards=4))
    with pytest.raises(InputError, match="holds 3 of 4 shards"):
        open_folder(folder)


def test_an_unrecorded_file_is_refused_unless_it_is_temporary(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS)
    (folder / f"img_emb/img_emb_0003.npy{TEMPORARY_SUFFIX}").write_bytes(b"of a writer that was killed")
    (folder / "notes.txt").write_text("not in a folder of data")
    open_folder(folder)
    (folder / "img_emb/img_emb_0003.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"img_emb_0003\.npy is in no record"):
        open_folder(folder)


def test_a_missing_short_or_longer_file_is_refused_at_open(write_embeddings: WriteEmbeddings) -> None:
    folder = write_embeddings(SHARDS)
    files = [path for path in sorted(folder.rglob("*_0001.*")) if path.parent != folder / "shards"]
    assert len(files) == 5
    for path in files:
        whole = path.read_bytes()
        for content, state in (
            (None, "is missing"),
            (whole[:-1], "bytes instead of"),
            (whole + b"x", "bytes instead of"),
        ):
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(InputError, match=f"{path.name} .*{state}.*run `priorkit embed` again"):
                read_embeddings(str(folder))
            path.write_bytes(whole)
    read_embeddings(str(folder))


def test_an_array_of_another_length_than_its_record_is_refused(
    write_embeddings: WriteEmbeddings, replace_array: Callable[[Path, str, np.ndarray], None]
) -> None:
    folder = write_embeddings(SHARDS)
    for name, values in (
        ("img_emb/img_emb_0000.npy", np.zeros((99, 8), np.float16)),
        ("token_states/offsets_0000.npy", np.zeros(100, np.int64)),
    ):
        before, manifest = (folder / name).read_bytes(), (folder / "manifest.json").read_bytes()
        replace_array(folder, name, values)
        with pytest.raises(InputError, match="rows, its record says"):
            read_embeddings(str(folder)).take(np.arange(3), max_text_len=2)
        (folder / name).write_bytes(before)
        (folder / "manifest.json").write_bytes(manifest)


def test_recorded_files_of_another_type_are_refused_at_open(
    write_embeddings: WriteEmbeddings, replace_array: Callable[[Path, str, np.ndarray], None]
) -> None:
    folder = write_embeddings(SHARDS)
    replace_array(folder, "text_emb/text_emb_0001.npy", np.zeros((80, 8), np.float32))
    with pytest.raises(InputError, match=r"text_emb_0001\.npy holds embeddings of 8 in float32, the manifest says 8"):
        read_embeddings(str(folder))


def test_opening_reads_no_file_but_the_manifest(
    write_embeddings: WriteEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, opened = write_embeddings(SHARDS), []
    original = Store.open
    monkeypatch.setattr(Store, "open", lambda store, name: (opened.append(name), original(store, name))[1])
    monkeypatch.setattr(Store, "size", lambda store, name: pytest.fail(f"asks for the size of {name}"))
    assert read_embeddings(str(folder)).count == 300
    assert opened == ["manifest.json"]
