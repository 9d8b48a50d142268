"""Rows of an image shard: the table's columns, the members in the tar, and rows that a retry reuses."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.download.rows import Row, add_sample, image_schema, reused_rows
from priorkit.pipeline.errors import InputError

JPEG = b"\xff\xd8\xff"
LIST_SCHEMA = pa.schema([("url", pa.string()), ("caption", pa.string())])
ADDED = ("key", "status", "error_message", "width", "height", "original_width", "original_height", "sha256")
MESSAGES = [None, "dns: a", "http_4xx: 404", None, "http_5xx: 503, to be tried again after 3 s", "decode"]
"""Error message of each row of a shard; those of two are transient."""


def row(index: int, message: str | None = None) -> Row:
    meta: dict[str, Any] = {"url": f"http://h/{index}", "caption": f"caption {index}", "key": f"{index:05d}"}
    meta |= {"status": "failed_to_download" if message else "success", "error_message": message}
    meta |= dict.fromkeys(("width", "height", "original_width", "original_height"), 8) | {"sha256": "0" * 64}
    return Row(meta, None if message else JPEG + b"image %d" % index, (message or "success").partition(":")[0])


def write_shard(folder: Path, images: list[Row], rows: list[Row]) -> Store:
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for each in images:
            if each.image is not None:
                add_sample(tar, each)
    table = pa.Table.from_pylist([each.meta for each in rows], schema=image_schema(LIST_SCHEMA))
    pq.write_table(table, folder / "00000.parquet")
    return Store(str(folder))


ROWS = [row(index, message) for index, message in enumerate(MESSAGES)]
VALUES = [{"url": each.meta["url"], "caption": each.meta["caption"]} for each in ROWS]


def test_the_table_has_the_columns_of_the_list_then_ours() -> None:
    schema = image_schema(LIST_SCHEMA)
    assert tuple(schema.names) == ("url", "caption", *ADDED)
    assert [str(kind) for kind in schema.types[2:]] == ["string"] * 3 + ["int32"] * 4 + ["string"]


def members(rows: list[Row]) -> dict[str, bytes]:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for each in rows:
            add_sample(tar, each)
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_a_sample_has_its_files_in_the_order_of_their_extensions() -> None:
    webp = row(7)
    webp.image = b"RIFF1234WEBP"
    written = members([webp])
    assert list(written) == ["00007.json", "00007.txt", "00007.webp"]
    assert (written["00007.txt"], written["00007.webp"]) == (b"caption 7", b"RIFF1234WEBP")
    assert json.loads(written["00007.json"]) == row(7).meta
    assert b'{\n    "url": "http://h/7",\n' in written["00007.json"]


def test_captions_may_be_missing_null_or_no_unicode() -> None:
    without, null, lone = row(1), row(2), row(3)
    del without.meta["caption"]
    null.meta["caption"] = None
    lone.meta["caption"] = "\udcff"
    written = members([without, null, lone])
    assert list(written) == [
        "00001.jpg", "00001.json", "00002.jpg", "00002.json", "00002.txt", "00003.jpg", "00003.json", "00003.txt",
    ]  # fmt: skip
    assert (written["00002.txt"], written["00003.txt"]) == (b"", b"\xed\xb3\xbf")


def test_each_image_has_the_extension_of_its_true_format() -> None:
    starts = {"jpg": JPEG, "png": b"\x89PNG\r\n\x1a\n", "gif": b"GIF89a", "bmp": b"BM", "tiff": b"II*\0"}
    rows = [row(number) for number in range(len(starts))]
    for each, start in zip(rows, starts.values(), strict=True):
        each.image = start
    images = {name.partition(".")[2]: data for name, data in members(rows).items() if name[-3:] not in ("son", "txt")}
    assert images == starts


def test_the_exif_has_a_column_if_it_is_extracted() -> None:
    names = image_schema(LIST_SCHEMA, exif=True).names
    assert names == ["url", "caption", *ADDED[:-1], "exif", "sha256"]


def test_rows_are_reused_except_for_transient_failures(tmp_path: Path) -> None:
    reused = list(reused_rows(write_shard(tmp_path, ROWS, ROWS), "00000", VALUES))
    assert [each is None for each in reused] == [False, True, False, False, True, False]
    for each, original in zip(reused, ROWS, strict=True):
        if each is not None:
            assert (each.meta, each.image, each.outcome) == (original.meta, original.image, original.outcome)
            assert each.reused
            assert list(each.meta) == ["url", "caption", *ADDED]


@pytest.mark.parametrize("images", [ROWS[:1], [*ROWS, row(9)], [ROWS[3], ROWS[0]]])
def test_a_tar_with_other_images_is_refused(tmp_path: Path, images: list[Row]) -> None:
    store = write_shard(tmp_path, images, ROWS)
    with pytest.raises(InputError, match=r"00000\.tar holds other images than 00000\.parquet"):
        list(reused_rows(store, "00000", VALUES))


@pytest.mark.parametrize("rows", [ROWS[:5], [*ROWS, row(9)]])
def test_a_table_with_another_number_of_rows_is_refused(tmp_path: Path, rows: list[Row]) -> None:
    store = write_shard(tmp_path, ROWS, rows)
    with pytest.raises(InputError, match=r"00000\.parquet is damaged"):
        list(reused_rows(store, "00000", VALUES))


def test_a_stored_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    store = write_shard(tmp_path, ROWS, ROWS)
    tar = tmp_path / "00000.tar"
    tar.write_bytes(tar.read_bytes().replace(JPEG, b"???", 1))
    with pytest.raises(InputError, match=r"00000\.tar holds other images than 00000\.parquet"):
        list(reused_rows(store, "00000", VALUES))


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    store = write_shard(tmp_path, ROWS, ROWS)
    store.remove("00000.parquet")
    with pytest.raises(InputError, match=r"00000\.parquet is damaged"):
        list(reused_rows(store, "00000", VALUES))
