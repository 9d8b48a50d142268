"""Image shards against their tables: keys, captions and sizes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.inspect import images
from priorkit.pipeline.inspect.findings import Inspection
from priorkit.pipeline.inspect.images import ImageInspector, read_shard_rows

KEYS = ["000", "001", "002"]


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, keys: list[str], captions: dict[str, bytes] | None = None) -> None:
    with tarfile.open(path, "w") as tar:
        for key in keys:
            caption = (captions or {}).get(key, f"caption {key}".encode())
            for name, data in ((f"{key}.png", png(4, 3)), (f"{key}.txt", caption)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_table(path: Path, **columns: list[Any]) -> None:
    failed = [None, "HTTP 404", None, None]
    table = {
        "key": ["000", None, "001", "002"],
        "status": ["success" if error is None else "failed" for error in failed],
        "caption": ["caption 000", None, "caption 001", "caption 002"],
        "width": [4, None, 4, 4],
        "height": [3, None, 3, 3],
    }
    pq.write_table(pa.table(table | columns), path)


def inspect(folder: Path, recorded: bool = True) -> Inspection:
    store, inspection = Store(str(folder)), Inspection("folder", "download", 1, 4, 0)
    inspector = ImageInspector(store, inspection, recorded=recorded)
    table = read_shard_rows(store, "0.parquet")
    assert inspector.inspect("0", table, inspection.add_problem) == 3
    inspector.finish()
    return inspection


def test_rows_of_images_are_those_that_succeeded(tmp_path: Path) -> None:
    write_table(tmp_path / "0.parquet")
    table = read_shard_rows(Store(str(tmp_path)), "0.parquet")
    assert (table.rows, table.images) == (4, [0, 2, 3])
    assert sorted(table.columns) == ["caption", "height", "key", "status", "width"]


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0.parquet").write_bytes(b"PAR1 damaged PAR1")
    with pytest.raises(InputError, match=r"0\.parquet is damaged .*download that shard again"):
        read_shard_rows(Store(str(tmp_path)), "0.parquet")


def test_a_sound_shard_has_no_problems_but_a_missing_key(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", KEYS)
    write_table(tmp_path / "0.parquet", key=["000", "x", "001", "002"])
    inspection = inspect(tmp_path)
    assert inspection.problems == []
    assert inspection.looked_at["images, read to the end"] == 3
    assert inspection.distributions["width in pixels"]["mean"] == 4
    write_table(tmp_path / "0.parquet")
    assert inspect(tmp_path).problems == ["shard 0, row 1: no key"]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"width": [4, None, 5, 4]}, "shard 0, row 2: the image of '001' is 4x3, its table says 5x3"),
        (
            {"caption": ["caption 000", None, "another", "caption 002"]},
            "shard 0, row 2: the caption of '001' in the tar is not that of its parquet",
        ),
        ({"key": ["000", "x", "009", "002"]}, "shard 0, row 2: the tar has key '001' where its parquet has '009'"),
        ({"key": ["000", "x", "001", "000"]}, "shard 0, row 3: has the key of shard 0, row 0"),
    ],
    ids=["size", "caption", "key", "repeated key"],
)
def test_a_difference_is_named_by_row(tmp_path: Path, columns: dict[str, list[Any]], problem: str) -> None:
    write_tar(tmp_path / "0.tar", KEYS)
    write_table(tmp_path / "0.parquet", **{"key": ["000", "x", "001", "002"], **columns})
    assert problem in inspect(tmp_path).problems


def test_another_order_is_a_note_in_foreign_folders_only(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", ["001", "000", "002"])
    write_table(tmp_path / "0.parquet", key=["000", "x", "001", "002"])
    assert inspect(tmp_path, recorded=False).notes == ["shard 0: the tar is in another order than its parquet"]
    assert any("the tar has key '001' where its parquet has '000'" in found for found in inspect(tmp_path).problems)


def test_captions_that_are_empty_or_not_utf8_are_noted(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", KEYS, {"001": b" ", "002": b"\xff"})
    write_table(tmp_path / "0.parquet", key=["000", "x", "001", "002"], caption=[None] * 4)
    notes = inspect(tmp_path).notes
    assert "1 captions are empty, such as shard 0, row 2" in notes
    assert "1 captions are not UTF-8, such as shard 0, row 3" in notes


def test_sizes_are_those_of_a_bounded_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "SAMPLED_IMAGES", 2)
    write_tar(tmp_path / "0.tar", KEYS)
    write_table(tmp_path / "0.parquet", key=["000", "x", "001", "002"])
    looked_at = inspect(tmp_path).looked_at
    assert looked_at["images, for the distribution of sizes: a seeded sample"] == 2
    assert 2 <= looked_at["images, of which the header was read"] <= 3


def test_the_size_of_a_rotated_image_may_be_that_of_the_file_or_of_the_upright_image(tmp_path: Path) -> None:
    """Our `encode_format=original` stores the one size, img2dataset without encoding the other."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (4, 3)).save(file, "JPEG", exif=exif)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for key in KEYS:
            for name, data in ((f"{key}.jpg", file.getvalue()), (f"{key}.txt", f"caption {key}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    sizes = {"width": [4, None, 3, 4], "height": [3, None, 4, 4], "key": ["000", "x", "001", "002"]}
    write_table(tmp_path / "0.parquet", **sizes)
    assert inspect(tmp_path).problems == ["shard 0, row 3: the image of '002' is 4x3, its table says 4x4"]
