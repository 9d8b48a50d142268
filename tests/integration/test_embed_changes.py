"""Inputs without a manifest: a change of content is embedded again, a move, a touch or a copy is not."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from priorkit.pipeline.contract import file_marks
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed, plan_embed
from priorkit.pipeline.errors import FolderError, InputError

LONG_AGO = 1_000_000_000
CAPTIONS = ["a cat", "a dog", "a fox"]


def picture(index: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(index).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "BMP")  # of one size whatever it shows
    return file.getvalue()


def write_tars(folder: Path, captions: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for number, caption in enumerate(captions):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for name, data in (("0.bmp", picture(number)), ("0.txt", caption.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_files(folder: Path, captions: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for number, caption in enumerate(captions):
        (folder / f"{number}.bmp").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text(caption)


def write_tables(folder: Path, captions: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for number, caption in enumerate(captions):
        table = pa.table({"image": [picture(number)], "caption": [caption]})
        # at once, because other threads may be reading the file that is replaced
        pq.write_table(table, folder / f"{number}.new", compression="none", write_statistics=False)
        os.replace(folder / f"{number}.new", folder / f"{number}.parquet")


KINDS = {"tars": write_tars, "files": write_files, "tables": write_tables}


def age(folder: Path, seconds: float = LONG_AGO) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (seconds, seconds))


def captions(out: Path) -> list[str]:
    tables = [pq.read_table(path) for path in sorted(out.glob("metadata/*.parquet"))]
    return [caption for table in tables for caption in table.column("caption").to_pylist()]


@pytest.fixture
def settings(embed_settings: EmbedSettings) -> EmbedSettings:
    return embed_settings.model_copy(update={"input_format": "auto"})


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_content_decides_where_time_or_place_have_changed(
    kind: str, settings: EmbedSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    write, settings = KINDS[kind], settings.model_copy(update={"rows_per_shard": 1} if kind == "files" else {})
    write(folder, CAPTIONS)
    age(folder)
    assert embed(str(folder), str(out), settings).done_now == 3
    moved = folder.rename(tmp_path / "moved")
    with monkeypatch.context() as patch:
        patch.setattr(file_marks, "hash_file", None)  # would fail: nothing is read
        assert embed(str(moved), str(out), settings).done_now == 0
    age(moved, LONG_AGO + 5)
    assert embed(str(moved), str(out), settings).done_now == 0
    with monkeypatch.context() as patch:
        patch.setattr(file_marks, "hash_file", None)  # the new times have been recorded
        assert embed(str(moved), str(out), settings).done_now == 0
    shutil.copytree(moved, tmp_path / "copied", copy_function=shutil.copyfile)
    assert embed(str(tmp_path / "copied"), str(out), settings).done_now == 0
    sizes = {path.name: path.stat().st_size for path in moved.iterdir()}
    write(moved, ["a cat", "a dot", "a fox"])
    assert {path.name: path.stat().st_size for path in moved.iterdir()} == sizes
    assert plan_embed(str(moved), str(out), settings).pending_units == 1
    assert embed(str(moved), str(out), settings).done_now == 1
    assert captions(out) == ["a cat", "a dot", "a fox"]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_file_that_was_young_is_not_trusted_by_its_time(kind: str, settings: EmbedSettings, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    KINDS[kind](folder, CAPTIONS)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    embed(str(folder), str(out), settings)
    KINDS[kind](folder, ["a cat", "a dot", "a fox"])
    for path, time in times.items():  # as where times count in seconds
        os.utime(path, ns=(time, time))
    assert embed(str(folder), str(out), settings).done_now == 1
    assert captions(out) == ["a cat", "a dot", "a fox"]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_links_stand_for_the_files_they_point_to(kind: str, settings: EmbedSettings, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, texts in (("one", CAPTIONS), ("two", ["a cat", "a dot", "a fox"])):
        KINDS[kind](tmp_path / name, texts)
        age(tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        (folder / path.name).symlink_to(path)
    embed(str(folder), str(out), settings)
    assert embed(str(folder), str(out), settings).done_now == 0
    for path in folder.iterdir():
        path.unlink()
        path.symlink_to(tmp_path / "two" / path.name)
    assert embed(str(folder), str(out), settings).done_now == 1
    assert captions(out) == ["a cat", "a dot", "a fox"]
    KINDS[kind](tmp_path / "two", ["a cat", "a dot", "a fix"])  # what they point to is written anew
    assert embed(str(folder), str(out), settings).done_now == 1
    assert captions(out) == ["a cat", "a dot", "a fix"]


def test_the_table_beside_a_tar_is_an_input_too(settings: EmbedSettings, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    write_tars(folder, CAPTIONS[:1])

    def write_table(licence: str) -> None:
        pq.write_table(pa.table({"key": ["0"], "status": ["success"], "licence": [licence]}), folder / "00000.parquet")

    write_table("CC-BY")
    embed(str(folder), str(out), settings)
    write_table("CC-ND")
    assert embed(str(folder), str(out), settings).done_now == 1
    assert pq.read_table(out / "metadata/metadata_0000.parquet").column("licence").to_pylist() == ["CC-ND"]
    (folder / "00000.parquet").unlink()
    assert embed(str(folder), str(out), settings).done_now == 1


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_first_samples_go_on_to_all(kind: str, settings: EmbedSettings, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    KINDS[kind](folder, CAPTIONS)
    assert embed(str(folder), str(out), settings, limit=2).rows == 2
    assert embed(str(folder), str(out), settings, limit=2).done_now == 0
    assert embed(str(folder), str(out), settings).rows == 3
    assert embed(str(folder), str(out), settings, limit=1).done_now == 0


def test_a_file_that_changes_while_it_is_read_is_named(
    settings: EmbedSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    write_tables(folder, CAPTIONS)
    note_file: Callable[..., None] = file_marks.note_file

    def note_and_change(store: object, name: str) -> None:
        note_file(store, name)
        write_tables(folder, ["a cow", *CAPTIONS[1:]])

    monkeypatch.setattr("priorkit.pipeline.embed.tables.note_file", note_and_change)
    with pytest.raises(InputError, match=r"0\.parquet was changed while it was read; run the same command again"):
        embed(str(folder), str(out), settings)


def test_lost_marks_cost_a_reading_and_folders_that_never_had_any_are_refused(
    settings: EmbedSettings, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    write_tars(folder, CAPTIONS)
    embed(str(folder), str(out), settings)
    for path in (out / "inputs").iterdir():
        path.write_text("[damaged")
    assert embed(str(folder), str(out), settings).done_now == 0
    assert json.loads((out / "inputs/inputs_0000.json").read_text()).keys() == {"00000.tar"}
    manifest = json.loads((out / "manifest.json").read_text())
    for record in manifest["shards"].values():
        record["logs"] = [name for name in record["logs"] if not name.startswith("inputs/")]
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FolderError, match=r"did not record the content of 00000\.tar; use --overwrite"):
        embed(str(folder), str(out), settings)


def test_threads_may_change_and_each_shard_says_its_own(settings: EmbedSettings, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    write_tars(folder, CAPTIONS)
    embed(str(folder), str(out), settings.model_copy(update={"threads": 1}), limit=1)
    embed(str(folder), str(out), settings.model_copy(update={"threads": 2}))
    shards = json.loads((out / "manifest.json").read_text())["shards"]
    assert [record["threads"] for record in shards.values()] == [1, 2, 2]
