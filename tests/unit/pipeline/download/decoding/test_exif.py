"""EXIF tags of images as JSON, against img2dataset's own expression."""

from __future__ import annotations

import io
import json

import exifread
import pytest
from PIL import Image

from priorkit.pipeline.download.decoding.exif import read_exif

CAMERA = {0x010F: "Camera & Söhne", 0x0112: 6, 0x8298: "© somebody", 0x829A: 0.01}


def tagged(kind: str) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    for tag, value in CAMERA.items():
        exif[tag] = value
    Image.new("RGB", (8, 6)).save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "TIFF"])
def test_the_tags_are_those_of_img2dataset(kind: str) -> None:
    body = tagged(kind)
    tags = exifread.process_file(io.BytesIO(body), details=False)
    text = read_exif(body)
    assert text == json.dumps({k: str(v).strip() for k, v in tags.items() if v is not None})
    assert text.isascii()
    if kind != "PNG":  # whose EXIF exifread does not find
        assert json.loads(text)["Image Orientation"] == "Rotated 90 CW"


def test_without_exif_there_are_no_tags() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "JPEG")
    assert read_exif(file.getvalue()) == "{}"
    assert read_exif(b"GIF89a") == "{}"


def test_damaged_exif_is_none() -> None:
    body = tagged("TIFF")
    assert read_exif(body[:4] + b"\xff\xff\xff\x7f" + body[8:]) in (None, "{}")
    for end in range(4, len(body), 7):
        text = read_exif(body[:end])
        assert text is None or isinstance(json.loads(text), dict)
    assert read_exif(b"\xff\xd8") is None
