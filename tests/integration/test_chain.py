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

from .conftest import Served


def test_every_row_of_the_list_is_one_row_of_the_tables(served: Served) -> None:
    rows = [row for path in sorted(served.images.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [row["url"] for row in rows] == served.list.urls
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


def test_a_second_download_fetches_nothing(served: Served, download_settings: DownloadSettings, tmp_path: Path) -> None:
    shutil.copytree(served.images, tmp_path / "images")
    asked = len(served.server.requests)
    result = download(str(served.list.path), str(tmp_path / "images"), download_settings)
    assert result.done_now == 0
    assert len(served.server.requests) == asked
