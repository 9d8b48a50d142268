"""Images as they came, boxes that are blurred, EXIF, and paths in the URL column, from the list to the embeddings."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, features

from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import download
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed
from priorkit.pipeline.errors import FolderError, InputError
from priorkit.pipeline.inspect.folder import inspect_folder

from ..conftest import ImageServer, picture
from .conftest import upload
from .test_download import members, table_rows

FolderBytes = Callable[[Path], dict[str, bytes]]

KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF"}
if features.check("avif"):
    KINDS["avif"] = "AVIF"
SIDE = 40
"""Side of the images in pixels."""


def turned() -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112], exif[0x010F] = 6, "camera"
    Image.fromarray(np.random.default_rng(9).integers(0, 255, (20, SIDE, 3), dtype=np.uint8)).save(
        file, "JPEG", exif=exif
    )
    return file.getvalue()


BODIES = {f"{extension}.img": picture(3, kind, SIDE) for extension, kind in KINDS.items()} | {
    "turned.img": turned(), "large.img": picture(4, "PNG", 200), "page.img": b"<html></html>",
}  # fmt: skip
EXTENSIONS = [*KINDS, "jpg", "jpg"]
"""True kinds of the images that are stored, in order. The names of the files do not tell them."""
SETTINGS: dict[str, Any] = {
    "rows_per_shard": 5, "image_size": 64, "encode_format": "original", "allow_private_addresses": True,
    "decode_processes": 1,
}  # fmt: skip


def write_bodies(folder: Path) -> None:
    for name, body in BODIES.items():
        (folder / name).write_bytes(body)


def write_list(path: Path, urls: list[str], **columns: Any) -> str:
    captions = [f"caption {number}" for number in range(len(urls))]
    pq.write_table(pa.table({"url": urls, "caption": captions, **columns}), path)
    return str(path)


@pytest.fixture
def source(image_server: ImageServer, tmp_path: Path) -> str:
    write_bodies(image_server.folder)
    return write_list(tmp_path / "list.parquet", [f"{image_server.url}/{name}" for name in BODIES])


def images_of(folder: Path) -> list[tuple[str, bytes]]:
    """Extension and bytes of each image, in the order of their keys."""
    stored = [(name.partition("."), data) for name, data in sorted(members(folder).items())]
    return [(extension, data) for (_, _, extension), data in stored if extension not in ("json", "txt")]


def test_images_that_need_not_change_are_stored_as_they_came(
    source: str, tmp_path: Path, embed_settings: EmbedSettings
) -> None:
    images, embeddings = tmp_path / "images", tmp_path / "embeddings"
    result = download(source, str(images), DownloadSettings.model_validate(SETTINGS))
    assert result.counts == {"success": len(EXTENSIONS), "not_image": 1}
    stored = images_of(images)
    assert [extension for extension, _ in stored] == EXTENSIONS
    assert [data for _, data in stored[:-1]] == list(BODIES.values())[:-2]
    with Image.open(io.BytesIO(stored[-1][1])) as large:
        assert (large.format, large.size) == ("JPEG", (64, 64))
    rows = [row for row in table_rows(images) if row["status"] == "success"]
    assert [(row["width"], row["height"]) for row in rows] == [(SIDE, SIDE)] * len(KINDS) + [(20, SIDE), (64, 64)]
    assert [row["sha256"] for row in rows] == [hashlib.sha256(body).hexdigest() for body in list(BODIES.values())[:-1]]

    inspection = inspect_folder(str(images))
    assert inspection.problems == []
    assert embed(str(images), str(embeddings), embed_settings).counts == {"success": len(EXTENSIONS)}
    vectors = np.concatenate([np.load(path) for path in sorted((embeddings / "img_emb").glob("*.npy"))]).astype("f4")
    lossless = vectors[list(KINDS).index("png")]
    for extension in ("bmp", "tiff"):
        assert vectors[list(KINDS).index(extension)] @ lossless > 0.9999


def test_the_same_rows_again_change_nothing_and_a_retry_keeps_the_kinds(
    source: str, image_server: ImageServer, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    settings = DownloadSettings.model_validate(SETTINGS)
    urls = pq.read_table(source).column("url").to_pylist()
    gone = [url if number != 2 else "http://127.0.0.1:9/refused" for number, url in enumerate(urls)]
    refused = write_list(tmp_path / "refused.parquet", gone)
    download(refused, str(tmp_path / "retried"), settings)
    before = folder_bytes(tmp_path / "retried")
    result = download(refused, str(tmp_path / "retried"), settings, retry_failed=True)
    assert result.statistics["retried"] == {"rows": 1, "success": 0}
    assert folder_bytes(tmp_path / "retried") == before
    assert [extension for extension, _ in images_of(tmp_path / "retried")] == EXTENSIONS[:2] + EXTENSIONS[3:]
    with pytest.raises(FolderError, match="encode_format: 'original' -> 'jpg'"):
        download(refused, str(tmp_path / "retried"), settings.model_copy(update={"encode_format": "jpg"}))


def test_boxes_of_the_list_are_blurred(source: str, image_server: ImageServer, tmp_path: Path) -> None:
    from priorkit.pipeline.download.decoding.resize import _upstream_blurrer

    box = [0.25, 0.25, 0.75, 0.75]
    values: list[list[list[float]] | None] = [[box] if number % 2 else [] for number in range(len(BODIES))]
    values[2], values[4] = None, [[10.0, 10.0, 30.0, 30.0]]
    kind = pa.list_(pa.list_(pa.float64()))
    urls = pq.read_table(source).column("url").to_pylist()
    settings = DownloadSettings.model_validate(
        {**SETTINGS, "bbox_column": "faces", "reencode_format": "png", "encode_quality": 3, "extract_exif": True}
    )
    for name, column in (("boxes", pa.array(values, kind)), ("text", pa.array([json.dumps(each) for each in values]))):
        listed = write_list(tmp_path / f"{name}.parquet", urls, faces=column)
        result = download(listed, str(tmp_path / name), settings)
        assert result.counts == {"success": len(EXTENSIONS) - 1, "bad_boxes": 1, "not_image": 1}
    assert members(tmp_path / "boxes").keys() == members(tmp_path / "text").keys()
    assert images_of(tmp_path / "boxes") == images_of(tmp_path / "text")

    rows = [row for row in table_rows(tmp_path / "boxes") if row["status"] == "success"]
    for row, (extension, data) in zip(rows, images_of(tmp_path / "boxes"), strict=True):
        body = BODIES[row["url"].rpartition("/")[2]]
        if not row["faces"]:
            assert data == body if row["original_width"] < 64 else extension == "png"
            continue
        pixels = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_UNCHANGED)
        pixels = np.rot90(pixels, 3) if "turned" in row["url"] else pixels  # the box is the same after the rotation
        hidden = _upstream_blurrer.BoundingBoxBlurrer()(np.ascontiguousarray(pixels), [box])
        assert data == cv2.imencode(".png", hidden, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes()
        assert not np.array_equal(hidden, pixels)
    exif = {row["url"].rpartition("/")[2]: json.loads(row["exif"]) for row in rows}
    assert exif["turned.img"]["Image Make"] == "camera"
    assert exif["png.img"] == {}


PATH_SETTINGS: dict[str, Any] = {
    "rows_per_shard": 20, "image_size": 32, "decode_processes": 1, "allow_paths": True, "retries": 0,
}  # fmt: skip


@pytest.mark.parametrize("place", ["file", "folder"])
def test_the_url_column_may_hold_paths(image_server: ImageServer, tmp_path: Path, place: str) -> None:
    write_bodies(image_server.folder)
    (tmp_path / "lists").mkdir()
    write_bodies(tmp_path / "lists")
    (tmp_path / "a b.png").write_bytes(BODIES["png.img"])
    values = [
        "png.img", "./webp.img", "../a b.png", f"{tmp_path}/a b.png", f"file://{tmp_path}/a%20b.png", "gone.img",
        "/dev/zero", "page.img", "large.img", f"{image_server.url}/jpg.img", "ftp://h/x", "",
    ]  # fmt: skip
    source = write_list(tmp_path / "lists" / "list.parquet", values)
    settings = DownloadSettings.model_validate({**PATH_SETTINGS, "allow_private_addresses": True})
    result = download(source if place == "file" else str(tmp_path / "lists"), str(tmp_path / "images"), settings)
    outcomes = [(row["error_message"] or "success").partition(":")[0] for row in table_rows(tmp_path / "images")]
    assert outcomes == [
        *["success"] * 5, "no_file", "no_file", "not_image", "success", "success", "bad_scheme", "empty_url",
    ]  # fmt: skip
    assert result.rows == len(values)
    assert [row["url"] for row in table_rows(tmp_path / "images")] == values


def test_the_limits_apply_to_paths_too(tmp_path: Path) -> None:
    write_bodies(tmp_path)
    source = write_list(tmp_path / "list.parquet", ["png.img", "large.img", "turned.img"])
    for changes, outcome in (
        ({"max_pixels": SIDE * SIDE}, "too_many_pixels"),
        ({"max_bytes": len(BODIES["large.img"]) - 1, "min_image_size": 30}, "too_large"),
    ):
        folder = tmp_path / outcome
        download(source, str(folder), DownloadSettings.model_validate({**PATH_SETTINGS, **changes}))
        messages = [row["error_message"] for row in table_rows(folder)]
        assert messages[0] is None
        assert messages[1].startswith(outcome)


def test_paths_are_refused_row_by_row_without_the_setting(tmp_path: Path) -> None:
    write_bodies(tmp_path)
    source = write_list(tmp_path / "list.parquet", ["png.img", f"file://{tmp_path}/png.img"])
    settings = DownloadSettings.model_validate({**PATH_SETTINGS, "allow_paths": False, "min_success_rate": 0})
    with pytest.raises(InputError, match=r"2 bad_scheme.*if it names paths, set download\.allow_paths=true"):
        download(source, str(tmp_path / "images"), settings)
    for row in table_rows(tmp_path / "images"):
        assert row["error_message"].endswith("is not http or https; download.allow_paths=true reads paths")


def test_a_list_of_remote_paths(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_bodies(tmp_path / "data")
    (tmp_path / "data/empty.img").write_bytes(b"")
    values = [f"{bucket}/data/png.img", "webp.img", "../data/gif.img", "gone.img", "empty.img", "large.img"]
    write_list(tmp_path / "data/list.parquet", values)
    upload(tmp_path / "data", f"{bucket}/data")
    settings = DownloadSettings.model_validate({**PATH_SETTINGS, "image_size": 64, "encode_format": "original"})
    source = f"{bucket}/data/list.parquet"
    result = download(source, str(tmp_path / "images"), settings)
    assert result.counts == {"success": 4, "no_file": 1, "not_image": 1}
    assert images_of(tmp_path / "images")[:3] == [
        (extension, BODIES[f"{extension}.img"]) for extension in ("png", "webp", "gif")
    ]
    limited = settings.model_copy(update={"max_bytes": len(BODIES["large.img"]) - 1})
    assert download(source, str(tmp_path / "limited"), limited).counts["too_large"] == 1


def test_the_tar_is_a_plain_webdataset(source: str, tmp_path: Path) -> None:
    download(source, str(tmp_path / "images"), DownloadSettings.model_validate(SETTINGS))
    with tarfile.open(tmp_path / "images/00000.tar") as tar:
        names = tar.getnames()
    assert names == sorted(names)
    assert names[:6] == ["000000.jpg", "000000.json", "000000.txt", "000001.json", "000001.png", "000001.txt"]
