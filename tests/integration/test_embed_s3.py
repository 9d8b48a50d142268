"""Embed from S3 to S3, against a local server that speaks its protocol."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.lock import LEASE_NAME
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed import worker as embed_worker
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed
from priorkit.pipeline.errors import FolderError, InputError
from priorkit.pipeline.read.batches import BatchStream, Columns
from priorkit.pipeline.read.dataset import EmbeddingDataset, read_embeddings
from priorkit.pipeline.read.settings import ReadSettings

from .command_server import CommandServer
from .conftest import environment, upload

FolderBytes = Callable[[Path], dict[str, bytes]]


def stored(url: str) -> dict[str, bytes]:
    """Content of a folder, without what holds times."""
    store = Store(url)
    found = {}
    for name in store.names():
        if "stats" not in name and not name.startswith("inputs/"):
            with store.open(name) as file:
                found[name] = file.read()
    return found


def same_but_input(found: dict[str, bytes], expected: dict[str, bytes]) -> bool:
    """Whether folders are equal but for the fingerprints of inputs, which S3 dates in its own way."""

    def without(data: bytes) -> Any:
        manifest = json.loads(data)
        manifest.pop("input")
        for record in manifest["shards"].values():
            record.pop("input")
        return manifest

    files = {name: data for name, data in found.items() if name != "manifest.json"}
    others = {name: data for name, data in expected.items() if name != "manifest.json"}
    return files == others and without(found["manifest.json"]) == without(expected["manifest.json"])


def test_the_same_files_as_locally_and_a_rerun_does_nothing(
    bucket: str, images_folder: Path, embeddings_folder: Path, embed_settings: EmbedSettings, folder_bytes: FolderBytes
) -> None:
    images, embeddings = f"{bucket}/images", f"{bucket}/a/embeddings"
    upload(images_folder, images)
    result = embed(images, embeddings, embed_settings)
    assert (result.folder, result.done_now, result.rows) == (embeddings, 4, 60)
    assert stored(embeddings) == folder_bytes(embeddings_folder)  # so no lease and no record is left either
    before = Store(embeddings).fs.find(Store(embeddings).root, detail=True)
    assert embed(images, embeddings, embed_settings).done_now == 0
    after = Store(embeddings).fs.find(Store(embeddings).root, detail=True)
    changed = {name for name in after if after[name]["LastModified"] != before[name]["LastModified"]}
    assert {name.rpartition("/")[2] for name in changed} <= {"manifest.json"}
    rows = np.arange(60)
    remote, local = read_embeddings(embeddings), read_embeddings(str(embeddings_folder))
    assert remote.count == 60
    there, here = remote.take(rows, 24), local.take(rows, 24)
    for name in ("image_embed", "text_embed", "token_states"):
        assert np.array_equal(getattr(there, name), getattr(here, name))


@pytest.mark.slow
def test_what_was_interrupted_goes_on_where_it_was(
    bucket: str, images_folder: Path, embeddings_folder: Path, embed_settings: EmbedSettings,
    folder_bytes: FolderBytes, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Stopped among the files of the third shard; and what a lost object leaves is made again."""
    images, embeddings = f"{bucket}/images", f"{bucket}/embeddings"
    upload(images_folder, images)
    whole = embed_worker.EmbedWorker._metadata

    def interrupted(worker: embed_worker.EmbedWorker, task: Any, done: Any) -> pa.Table:
        if task.name == "0002":
            raise KeyboardInterrupt
        return whole(worker, task, done)

    monkeypatch.setattr(embed_worker.EmbedWorker, "_metadata", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed(images, embeddings, embed_settings)
    monkeypatch.setattr(embed_worker.EmbedWorker, "_metadata", whole)
    held = stored(embeddings)
    assert "img_emb/img_emb_0002.npy" in held  # written, but in no record
    assert {"shards/0000.json", "shards/0001.json"} == {name for name in held if name.startswith("shards/")}
    assert LEASE_NAME not in held
    with pytest.raises(InputError, match="holds 2 of 4 shards"):
        read_embeddings(embeddings)
    assert embed(images, embeddings, embed_settings).done_now == 2
    assert stored(embeddings) == folder_bytes(embeddings_folder)
    Store(embeddings).remove("text_emb/text_emb_0001.npy")
    assert embed(images, embeddings, embed_settings).done_now == 1
    assert stored(embeddings) == folder_bytes(embeddings_folder)


def test_a_second_writer_is_refused_while_the_first_is_at_work(
    bucket: str, images_folder: Path, embed_settings: EmbedSettings
) -> None:
    images, embeddings = f"{bucket}/images", f"{bucket}/embeddings"
    upload(images_folder, images)
    refused: list[str] = []

    def try_too(done: int, total: int, note: str) -> None:
        if done == 2:
            with pytest.raises(FolderError) as raised:
                embed(images, embeddings, embed_settings)
            refused.append(str(raised.value))

    embed(images, embeddings, embed_settings, progress=try_too)
    assert len(refused) == 1
    assert "is writing here" in refused[0]


def test_image_and_caption_files(
    bucket: str, embed_settings: EmbedSettings, tmp_path: Path, folder_bytes: FolderBytes, image_server: Any,
    url_list: Any,
) -> None:  # fmt: skip
    folder = tmp_path / "pairs"
    for index in range(0, 30, 3):  # those that are JPEG
        path = folder / f"part{index % 2}/{index:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((image_server.folder / f"{index}.jpg").read_bytes())
        if index != 12:
            path.with_suffix(".txt").write_text(f"a picture, number {index}")
    upload(folder, f"{bucket}/pairs")
    embed(str(folder), str(tmp_path / "out"), embed_settings)
    result = embed(f"{bucket}/pairs", f"{bucket}/out", embed_settings)
    assert result.counts == {"success": 9, "missing_caption": 1}
    assert same_but_input(stored(f"{bucket}/out"), folder_bytes(tmp_path / "out"))
    assert embed(f"{bucket}/pairs", f"{bucket}/out", embed_settings).done_now == 0
    Store(f"{bucket}/pairs").fs.pipe_file(f"{bucket}/pairs/part0/12.txt".removeprefix("s3://"), b"late")
    again = embed(f"{bucket}/pairs", f"{bucket}/out", embed_settings)
    assert (again.done_now, again.counts) == (1, {"success": 10})


@pytest.mark.parametrize("one_file", [False, True])
def test_a_table_of_captions_and_images(
    bucket: str, embed_settings: EmbedSettings, tmp_path: Path, folder_bytes: FolderBytes, image_server: Any,
    url_list: Any, one_file: bool,
) -> None:  # fmt: skip
    folder = tmp_path / "table"
    folder.mkdir()
    images = [(image_server.folder / f"{index}.jpg").read_bytes() for index in range(0, 60, 3)]
    captions = [f"a picture, number {index}" for index in range(20)]
    table = pa.table({"image": images, "caption": captions, "source": ["here"] * 20})
    pq.write_table(table, folder / "rows.parquet", row_group_size=6)
    upload(folder, f"{bucket}/table")
    settings = embed_settings.model_copy(update={"rows_per_shard": 8})
    name = "/rows.parquet" if one_file else ""
    embed(f"{folder}{name}", str(tmp_path / "out"), settings)
    result = embed(f"{bucket}/table{name}", f"{bucket}/out", settings)
    assert (result.done_now, result.rows) == (3, 20)
    assert stored(f"{bucket}/out") == folder_bytes(tmp_path / "out")
    assert embed(f"{bucket}/table{name}", f"{bucket}/out", settings).done_now == 0


@pytest.mark.slow
def test_the_command_and_a_bucket_that_is_not_there(
    bucket: str, images_folder: Path, embeddings_folder: Path, embed_settings: EmbedSettings, folder_bytes: FolderBytes,
    commands: CommandServer,
) -> None:  # fmt: skip
    upload(images_folder, f"{bucket}/images")
    options = ["--model", embed_settings.clip.model, "--batch-size", "8", "--device", "cpu"]
    options += ["--set", "embed.threads=1", "--set", "embed.token_states=true"]

    def run(images: str) -> subprocess.CompletedProcess[str]:
        arguments = ["embed", images, "--embeddings", f"{bucket}/out", *options]
        return commands.run(arguments, Path.cwd(), environment())

    done = run(f"{bucket}/images")
    assert done.returncode == 0, done.stderr
    assert stored(f"{bucket}/out") == folder_bytes(embeddings_folder)
    absent = run("s3://no-such-bucket-here/images")
    assert absent.returncode == 1
    assert "Traceback" not in absent.stderr
    assert "no-such-bucket-here" in absent.stderr


@pytest.mark.slow
def test_batches_are_those_of_the_local_folder(bucket: str, embeddings_folder: Path) -> None:
    embeddings = f"{bucket}/embeddings"
    upload(embeddings_folder, embeddings)
    settings = ReadSettings(block_rows=4, shuffle_window=16)
    streams = [
        BatchStream(EmbeddingDataset(folder, settings), "train", batch_size=7, seed=0, columns=Columns(True, 8, True))
        for folder in (embeddings, str(embeddings_folder), embeddings)  # the last reads the cached split plan
    ]
    batches = [list(islice(stream.batches(3), 2 * stream.steps_per_epoch)) for stream in streams]
    assert len(batches[0]) > 10
    for parts in zip(*batches, strict=True):
        for part in parts[1:]:
            for field in ("rows", "image_embed", "text_embed", "token_states"):
                assert np.array_equal(getattr(part, field), getattr(parts[0], field))
            assert part.captions == parts[0].captions
    kept = Store(embeddings).names("selections")
    assert {name.rpartition("_")[0] for name in kept} == {"selections/selection", "selections/counts"}
