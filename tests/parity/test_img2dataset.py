"""Our download against img2dataset's own, on the same server: same keys, same image bytes, same columns."""

from __future__ import annotations

import functools
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import download

from ..conftest import QuietHandler, serving

ROWS_PER_SHARD = 10
IMG2DATASET = """
import json, multiprocessing, sys
from img2dataset import distributor, download, logger
if __name__ == "__main__":
    distributor.get_context = lambda method: multiprocessing.get_context("fork")
    logger.LoggerProcess._start_method = "fork"
    logger.LoggerProcess._Popen = staticmethod(multiprocessing.context.ForkProcess._Popen)
    download(**json.loads(sys.argv[1]))
"""
"""img2dataset's own command. It forks its processes, which otherwise each import torch, Ray and W&B again."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server's address, and a list of 24 URLs: images of many kinds, and rows that fail."""
    folder = tmp_path_factory.mktemp("served")
    random = np.random.default_rng(0)
    names = []
    kinds = [
        ("jpg", "JPEG", "RGB"),
        ("png", "PNG", "RGBA"),
        ("webp", "WEBP", "RGB"),
        ("png", "PNG", "L"),
        ("gif", "GIF", "P"),
    ]
    for number in range(20):
        suffix, kind, mode = kinds[number % len(kinds)]
        height, width = (int(side) for side in random.integers(20, 200, 2))
        smooth = np.kron(random.integers(0, 255, (5, 5, 3), dtype=np.uint8), np.ones((40, 40, 1), np.uint8))
        image = Image.fromarray(smooth[:height, :width]).convert(mode)
        image.save(folder / f"{number}.{suffix}", kind)
        names.append(f"{number}.{suffix}")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(smooth[:60, :120]).save(folder / "turned.jpg", exif=exif)
    (folder / "page.html").write_text("<html>no image</html>")
    (folder / "cut.png").write_bytes((folder / "1.png").read_bytes()[:50])
    names = [*names[:7], "gone.jpg", *names[7:], "page.html", "cut.png", "turned.jpg"]
    with serving(functools.partial(QuietHandler, directory=str(folder))) as base:
        source = tmp_path_factory.mktemp("list") / "list.parquet"
        captions = [f"caption {number}, 猫" for number in range(len(names))]
        urls = [f"{base}/{name}" for name in names]
        boxes = [[[0.1, 0.2, 0.6, 0.9], [0.5, 0.0, 1.0, 0.4]][: number % 3] for number in range(len(names))]
        faces = [None if number == 6 else each for number, each in enumerate(boxes)]
        columns = {"url": urls, "caption": captions, "licence": ["cc0"] * len(names), "faces": faces}
        pq.write_table(pa.table(columns), source)
        yield base, source


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found


def rows_by_key(folder: Path) -> dict[str, dict[str, Any]]:
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


@pytest.mark.filterwarnings("ignore:value is deprecated, use fill instead")  # img2dataset's call of albumentations
@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(
            {"resize_mode": "border", "encode_format": "webp", "min_image_size": 30, "max_aspect_ratio": 3.0},
            marks=pytest.mark.slow,
        ),
        pytest.param({"resize_mode": "no", "max_image_area": 25_000}, marks=pytest.mark.slow),
        pytest.param({"resize_mode": "center_crop", "resize_only_if_bigger": False}, marks=pytest.mark.slow),
        pytest.param(
            {"resize_mode": "keep_ratio_largest", "encode_format": "png", "encode_quality": 3}, marks=pytest.mark.slow
        ),
        pytest.param({"resize_mode": "border", "resize_only_if_bigger": False}, marks=pytest.mark.slow),
        pytest.param(
            {
                "resize_mode": "center_crop",
                "resize_only_if_bigger": False,
                "upscale_interpolation": "nearest",
                "downscale_interpolation": "cubic",
                "bbox_column": "faces",
                "extract_exif": True,
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=[
        "default",
        "bordered webp",
        "not resized",
        "cropped and enlarged",
        "png by the longer side",
        "bordered",
        "blurred",
    ],
)
def test_the_results_are_those_of_img2dataset(
    served: tuple[str, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    _, source = served
    settings = DownloadSettings(
        rows_per_shard=ROWS_PER_SHARD, image_size=64, allow_private_addresses=True, exif_orientation="ignore", **changes
    )
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    download(str(source), str(ours), settings)
    options = {
        "url_list": str(source), "input_format": "parquet", "url_col": "url", "caption_col": "caption",
        "save_additional_columns": ["licence"], "output_folder": str(theirs), "output_format": "webdataset",
        "image_size": settings.image_size, "resize_mode": settings.resize_mode,
        "resize_only_if_bigger": settings.resize_only_if_bigger, "encode_format": settings.encode_format,
        "upscale_interpolation": settings.upscale_interpolation, "bbox_col": settings.bbox_column,
        "downscale_interpolation": settings.downscale_interpolation,
        "encode_quality": settings.encode_quality, "min_image_size": settings.min_image_size,
        "max_image_area": settings.max_image_area or float("inf"),
        "max_aspect_ratio": settings.max_aspect_ratio or float("inf"), "number_sample_per_shard": ROWS_PER_SHARD,
        "processes_count": 1, "thread_count": 4, "extract_exif": settings.extract_exif, "compute_hash": "sha256",
        "retries": 0, "enable_wandb": False,
    }  # fmt: skip
    subprocess.run(
        [sys.executable, "-c", IMG2DATASET, json.dumps(options)], check=True, capture_output=True, timeout=120
    )

    mine, upstream = members(ours), members(theirs)
    assert len(mine) >= 3 * 12
    assert set(mine) == set(upstream)
    assert [name for name in mine if name.endswith(settings.encode_format) and mine[name] != upstream[name]] == []
    assert {n: d for n, d in mine.items() if n.endswith("txt")} == {
        n: d for n, d in upstream.items() if n.endswith("txt")
    }
    with Image.open(
        io.BytesIO(next(data for name, data in mine.items() if name.endswith(settings.encode_format)))
    ) as one:
        assert one.size[0] > 0

    my_rows, their_rows = rows_by_key(ours), rows_by_key(theirs)
    assert my_rows.keys() == their_rows.keys()
    their_columns = set(next(iter(their_rows.values())))
    assert their_columns <= set(next(iter(my_rows.values())))
    for key, row in my_rows.items():
        # the wording of an error is each program's own
        for column in their_columns - {"error_message"}:
            assert row[column] == their_rows[key][column], (key, column)
        assert (row["error_message"] is None) == (their_rows[key]["error_message"] is None)
    for name in (name for name in mine if name.endswith("json")):
        assert json.loads(mine[name]).keys() >= json.loads(upstream[name]).keys()

    for number in range(3):
        my_stats = json.loads((ours / f"0000{number}_stats.json").read_text())
        their_stats = json.loads((theirs / f"0000{number}_stats.json").read_text())
        assert their_stats.keys() <= my_stats.keys()
        for name in ("count", "successes", "failed_to_download", "failed_to_resize"):
            assert my_stats[name] == their_stats[name], name
        assert list(my_rows) == sorted(my_rows)
