"""The stages one after the other, through the public functions, on a small scale."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import download
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed


def test_every_row_of_the_list_is_one_row_of_the_tables(images_folder: Path, url_list: object) -> None:
    rows = [row for path in sorted(images_folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [row["url"] for row in rows] == url_list.urls  # type: ignore[attr-defined]
    assert [row["key"] for row in rows] == [f"{i // 20:05d}{i % 20:02d}" for i in range(63)]
    bad = [row for row in rows if row["error_message"]]
    failed = {row["url"].rpartition("/")[2]: (row["status"], row["error_message"]) for row in bad}
    assert failed["gone.jpg"] == ("failed_to_download", "http_4xx: 404")
    assert failed["page.html"][0] == "failed_to_resize"
    assert failed["page.html"][1].startswith("not_image")
    assert failed["refused.jpg"][1].startswith("refused")
    assert sum(row["status"] == "success" for row in rows) == 60


def test_a_lost_embedding_shard_is_made_again_with_the_same_bytes(
    images_folder: Path,
    embeddings_folder: Path,
    embed_settings: EmbedSettings,
    folder_bytes: Callable[[Path], dict[str, bytes]],
) -> None:
    before = folder_bytes(embeddings_folder)
    (embeddings_folder / "img_emb/img_emb_0002.npy").unlink()
    result = embed(str(images_folder), str(embeddings_folder), embed_settings)
    assert result.done_now == 1
    assert folder_bytes(embeddings_folder) == before


def test_a_second_download_fetches_nothing(
    images_folder: Path, url_list: object, image_server: object, download_settings: DownloadSettings
) -> None:
    asked = len(image_server.requests)  # type: ignore[attr-defined]
    result = download(str(url_list.path), str(images_folder), download_settings)  # type: ignore[attr-defined]
    assert result.done_now == 0
    assert len(image_server.requests) == asked  # type: ignore[attr-defined]
    shutil.rmtree(images_folder)
