"""What a stage makes of one before it that was cut short or lost a file: a refusal, never half the data in silence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.clip.encoder import check_clip
from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.contract.manifest import ShardRecord, read_manifest
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import download
from priorkit.pipeline.embed import stage as embed_module
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.dataset import read_embeddings

from .conftest import Served


def test_embeddings_of_which_shards_are_still_to_come_are_not_read(
    images_folder: Path, embed_settings: EmbedSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between two shards: no stray file gives it away."""
    whole = embed_module.EmbedWorker.__call__
    done: list[str] = []

    def two_shards(
        worker: embed_module.EmbedWorker, task: embed_module.EmbedTask, following: embed_module.EmbedTask | None
    ) -> ShardRecord:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task.name)
        return whole(worker, task, following)

    folder = tmp_path / "embeddings"
    monkeypatch.setattr(embed_module.EmbedWorker, "__call__", two_shards)
    with pytest.raises(KeyboardInterrupt):
        embed(str(images_folder), str(folder), embed_settings)
    with pytest.raises(InputError, match="holds 2 of 4 shards"):
        read_embeddings(str(folder))
    monkeypatch.setattr(embed_module.EmbedWorker, "__call__", whole)
    embed(str(images_folder), str(folder), embed_settings)
    assert read_embeddings(str(folder)).count == 60


def test_the_old_record_of_a_shard_is_gone_before_its_files_are_rewritten(
    images_folder: Path, embeddings_folder: Path, embed_settings: EmbedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a kill among the new files would leave an old record over a mixture."""
    recorded: list[set[str]] = []

    def stopped(worker: embed_module.EmbedWorker, task: embed_module.EmbedTask, following: object) -> ShardRecord:
        manifest = read_manifest(Store(str(embeddings_folder)))
        assert manifest is not None
        recorded.append(set(manifest.shards))
        raise KeyboardInterrupt

    (embeddings_folder / "img_emb/img_emb_0002.npy").unlink()
    monkeypatch.setattr(embed_module.EmbedWorker, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        embed(str(images_folder), str(embeddings_folder), embed_settings)
    assert recorded == [{"0000", "0001", "0003"}]


@pytest.mark.parametrize("lost", ["00001.parquet", "00001.tar"])
def test_images_that_lost_a_file_are_not_embedded(
    images_folder: Path, embed_settings: EmbedSettings, tmp_path: Path, lost: str
) -> None:
    """Without the parquet, hash and URL of the rows would be lost, and with them the split of copies."""
    (images_folder / lost).unlink()
    with pytest.raises(InputError, match=rf"{lost} is missing or damaged; run `priorkit download` again"):
        embed(str(images_folder), str(tmp_path / "embeddings"), embed_settings)


def test_a_download_without_any_image_is_no_success(
    served: Served, download_settings: DownloadSettings, tmp_path: Path
) -> None:
    urls = [f"{served.server.url}/none/{index}.jpg" for index in range(5)]
    pq.write_table(pa.table({"url": urls, "caption": ["a"] * 5}), tmp_path / "urls.parquet")
    diagnosis = "100% of the failures are http_4xx 404: the images are gone"
    with pytest.raises(InputError, match=rf"no row gave an image \(5 http_4xx\); {diagnosis}"):
        download(str(tmp_path / "urls.parquet"), str(tmp_path / "images"), download_settings)
    assert pq.read_table(tmp_path / "images/00000.parquet").num_rows == 5


def test_text_that_is_not_utf8_stops_nothing(tmp_path: Path) -> None:
    bad = pa.array([b"caf\xe9", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"url": bad, "caption": bad}), tmp_path / "urls.parquet")
    with pytest.raises(InputError, match=r"no row gave an image \(2 bad_url\)"):
        download(str(tmp_path / "urls.parquet"), str(tmp_path / "images"), DownloadSettings())
    rows = pq.read_table(tmp_path / "images/00000.parquet").to_pylist()
    assert [row["caption"] for row in rows] == ["caf\ufffd", "\ufffd"]
    assert {row["error_message"] for row in rows} == {"bad_url: it holds bytes that are not UTF-8"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ViT-B-23", "no such model; nearest: ViT-B-32"),
        (
            "ViT-L-14",
            "laion2b_s34b_b79k: neither a file nor one of the [0-9]+ tags of ViT-L-14; nearest: laion2b_s32b_b82k",
        ),
        ("local-dir:/nowhere", "/nowhere"),
    ],
)
def test_a_clip_is_checked_without_loading_it(model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_clip(ClipSettings(model=model))
    check_clip(ClipSettings())


def test_files_that_are_not_ours_are_left_alone(
    served: Served, download_settings: DownloadSettings, tmp_path: Path
) -> None:
    """Whatever they are called: only what a writer of ours was killed at is cleared."""
    images = tmp_path / "images"
    shutil.copytree(served.images, images)
    kept = [images / name for name in ("thesis.tmp", "my file.tmp", "shards.tmp")]
    for path in kept:
        path.write_text("mine")
    (images / "00002.tar").unlink()
    assert download(str(served.list.path), str(images), download_settings).done_now == 1
    assert [path.read_text() for path in kept] == ["mine"] * 3
