"""`download.engine: img2dataset` against img2dataset's own command, on the same server: equal members and columns."""

from __future__ import annotations

import functools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from priorkit.pipeline.contract.manifest import read_manifest
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import download
from priorkit.pipeline.inspect.folder import inspect_folder

from ..conftest import QuietHandler, picture, serving
from .img2dataset_server import Img2dataset
from .test_img2dataset import members

ROWS_PER_SHARD = 12
COLUMNS = ["licence", "score", "tags", "place"]
OUTCOMES = {
    "success": 22, "http_4xx": 1, "http_5xx": 1, "http_429": 1, "opted_out": 1, "redirect_loop": 1, "connection": 1,
    "decode": 2, "refused": 1, "bad_scheme": 2, "empty_url": 2, "bad_url": 2,
}  # fmt: skip
STATUSES = {"gone": 404, "broken": 503, "busy": 429}


class Handler(QuietHandler):
    """Answers with files, and in the ways in which servers fail."""

    def do_GET(self) -> None:
        name = self.path.strip("/")
        if name in STATUSES:
            self.send_error(STATUSES[name])
        elif name in ("loop", "moved"):
            self.send_response(302)
            self.send_header("Location", "/loop" if name == "loop" else "/1.png")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif name == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"less")
            self.close_connection = True
        else:
            super().do_GET()

    def end_headers(self) -> None:
        if self.path == "/no-ai.jpg":
            self.send_header("X-Robots-Tag", "noai")
        super().end_headers()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A list of images of all kinds and of rows that fail in all ways, with columns of several types."""
    folder = tmp_path_factory.mktemp("served")
    names = []
    for number, kind in enumerate(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"] * 3):
        names.append(f"{number}.{kind.lower().replace('jpeg', 'jpg')}")
        (folder / names[-1]).write_bytes(picture(number, kind, size=40 + 9 * number))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    smooth = np.kron(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5, np.ones((20, 40, 1), np.uint8))
    Image.fromarray(smooth).save(folder / "turned.jpg", exif=exif)
    alpha = np.dstack([smooth, np.full(smooth.shape[:2], 90, np.uint8)])
    Image.fromarray(alpha).save(folder / "alpha.png")
    (folder / "no-ai.jpg").write_bytes(picture(0))
    (folder / "page.html").write_text("<html>no image</html>")
    Image.new("RGB", (17_000, 1)).save(folder / "long.png")  # too long for WebP
    (folder / "half.png").write_bytes((folder / "1.png").read_bytes()[:50])
    with serving(functools.partial(Handler, directory=str(folder))) as base:
        names += [
            "turned.jpg",
            "alpha.png",
            "no-ai.jpg",
            "page.html",
            "half.png",
            "long.png",
            "moved",
            "loop",
            "cut",
            *STATUSES,
        ]
        urls: list[str | None] = [f"{base}/{name}" for name in names]
        urls[7:7] = ["http://127.0.0.1:9/refused", "ftp://127.0.0.1:9/x", "no-scheme.jpg", "", None]
        urls += [f"{base}/a b.jpg", "http://127.0.0.1:port/x.jpg"]
        count = len(urls)
        table = pa.table(
            {
                "image_url": urls,
                "text": [None if number % 7 == 3 else f'caption "{number}", 猫\n' for number in range(count)],
                "licence": ["cc0", None] * (count // 2) + ["cc0"] * (count % 2),
                "score": pa.array([number / 3 for number in range(count)], pa.float32()),
                "tags": [[f"tag {number}", "猫"][: number % 3] for number in range(count)],
                "place": [{"x": number, "known": number % 2 == 0} for number in range(count)],
            }
        )
        path = tmp_path_factory.mktemp("list") / "list.parquet"
        pq.write_table(table, path)
        yield path


def run_img2dataset(
    img2dataset: Img2dataset, source: Path, output: Path, settings: DownloadSettings, **changed: Any
) -> None:
    """Run img2dataset's own command with the options that the settings stand for."""
    options = {
        "url_list": str(source), "input_format": "parquet", "url_col": "image_url", "caption_col": "text",
        "save_additional_columns": COLUMNS, "output_folder": str(output), "output_format": "webdataset",
        "image_size": settings.image_size, "resize_mode": settings.resize_mode,
        "resize_only_if_bigger": settings.resize_only_if_bigger, "encode_format": settings.encode_format,
        "encode_quality": settings.encode_quality, "min_image_size": settings.min_image_size,
        "max_image_area": settings.max_image_area or float("inf"),
        "max_aspect_ratio": settings.max_aspect_ratio or float("inf"), "number_sample_per_shard": ROWS_PER_SHARD,
        "processes_count": 1, "thread_count": 8, "extract_exif": settings.extract_exif, "retries": settings.retries,
        "upscale_interpolation": settings.upscale_interpolation,
        "downscale_interpolation": settings.downscale_interpolation,
        "enable_wandb": False, "distributor": "multiprocessing", **changed,
    }  # fmt: skip
    img2dataset.download(**options)


def settings_of(**changed: Any) -> DownloadSettings:
    return DownloadSettings(
        engine="img2dataset", rows_per_shard=ROWS_PER_SHARD, image_size=64, url_column="image_url",
        caption_column="text", concurrency=8, **changed,
    )  # fmt: skip


def assert_equal(ours: Path, theirs: Path) -> None:
    """Check that two folders hold the same members and tables. Only ours are in input order."""
    names = sorted(path.name for path in theirs.glob("*.parquet"))
    assert len(names) == 4
    assert sorted(path.name for path in ours.glob("*.parquet")) == names
    assert members(ours) == members(theirs)
    for name in names:
        mine, upstream = pq.read_table(ours / name), pq.read_table(theirs / name)
        assert mine.schema == upstream.schema
        assert mine.to_pylist() == upstream.sort_by("key").to_pylist()
        with tarfile.open((ours / name).with_suffix(".tar")) as tar:
            listed = tar.getnames()
        assert listed == sorted(listed)
        stats = [
            json.loads((folder / name.replace(".parquet", "_stats.json")).read_text()) for folder in (ours, theirs)
        ]
        assert stats[0].keys() >= stats[1].keys()
        for key in ("count", "successes", "failed_to_download", "failed_to_resize"):
            assert stats[0][key] == stats[1][key]


def test_the_result_is_that_of_img2datasets_own_command(source: Path, img2dataset: Img2dataset, tmp_path: Path) -> None:
    settings = settings_of()
    result = download(str(source), str(tmp_path / "ours"), settings)
    assert result.counts == OUTCOMES
    run_img2dataset(img2dataset, source, tmp_path / "theirs", settings)
    assert_equal(tmp_path / "ours", tmp_path / "theirs")
    assert inspect_folder(str(tmp_path / "ours")).problems == []
    manifest = read_manifest(Store(str(tmp_path / "ours")))
    assert manifest is not None
    assert set(manifest.about) == {"img2dataset"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"resize_mode": "border", "encode_format": "webp", "min_image_size": 50, "max_aspect_ratio": 3.0},
        {"resize_mode": "no", "encode_format": "webp", "max_image_area": 20_000, "retries": 0},
        {
            "resize_mode": "center_crop",
            "resize_only_if_bigger": False,
            "encode_quality": 60,
            "extract_exif": True,
            "upscale_interpolation": "cubic",
            "downscale_interpolation": "linear",
        },
        {"resize_mode": "keep_ratio_largest", "encode_format": "png", "encode_quality": 3},
    ],
    ids=["bordered webp", "not resized", "cropped and enlarged", "png by the longer side"],
)
def test_the_result_is_that_of_img2dataset_with_other_settings(
    source: Path, img2dataset: Img2dataset, tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = settings_of(**changes)
    download(str(source), str(tmp_path / "ours"), settings)
    run_img2dataset(img2dataset, source, tmp_path / "theirs", settings)
    assert_equal(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.slow
def test_a_list_without_captions_and_other_columns_gives_the_same(
    source: Path, img2dataset: Img2dataset, tmp_path: Path
) -> None:
    settings = DownloadSettings(
        engine="img2dataset", rows_per_shard=ROWS_PER_SHARD, image_size=64, url_column="image_url",
        caption_column=None, keep_columns="none",
    )  # fmt: skip
    download(str(source), str(tmp_path / "ours"), settings)
    run_img2dataset(img2dataset, source, tmp_path / "theirs", settings, caption_col=None, save_additional_columns=None)
    assert_equal(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.slow
def test_boxes_are_blurred_as_by_img2dataset(source: Path, img2dataset: Img2dataset, tmp_path: Path) -> None:
    table = pq.read_table(source)
    boxes = [None if number % 5 == 0 else [[0.1, 0.2, 0.6, 0.7]] * (number % 3) for number in range(len(table))]
    path = tmp_path / "list.parquet"
    pq.write_table(table.append_column("faces", pa.array(boxes)), path)
    settings = settings_of(bbox_column="faces")
    download(str(path), str(tmp_path / "ours"), settings)
    run_img2dataset(img2dataset, path, tmp_path / "theirs", settings, bbox_col="faces")
    assert_equal(tmp_path / "ours", tmp_path / "theirs")
    plain = settings_of()
    download(str(path), str(tmp_path / "plain"), plain)
    assert members(tmp_path / "ours") != members(tmp_path / "plain")


@pytest.mark.slow
def test_failures_have_the_outcomes_of_the_native_engine(source: Path, tmp_path: Path) -> None:
    """Except for a page and a URL with a space, which the two engines treat differently."""
    native = DownloadSettings(
        rows_per_shard=ROWS_PER_SHARD, url_column="image_url", caption_column="text", allow_private_addresses=True,
        decode_processes=1,
    )  # fmt: skip
    expected = download(str(source), str(tmp_path / "native"), native).counts
    counted = dict(OUTCOMES)
    counted["not_image"] = 1  # img2dataset has no such outcome: OpenCV cannot decode the page
    counted["decode"] -= 1
    counted["http_4xx"] += 1  # the native engine quotes the space, and asks the server
    counted["bad_url"] -= 1
    assert expected == counted
