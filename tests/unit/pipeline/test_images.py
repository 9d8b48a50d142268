"""Which bytes reach the decoder, and what comes out of it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, features

from priorkit.pipeline.config import DownloadSettings
from priorkit.pipeline.decoded import ImageError
from priorkit.pipeline.images import ImageResizer, is_image

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
KINDS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"] + (["AVIF"] if features.check("avif") else [])


def encoded(kind: str, pixels: np.ndarray = PIXELS) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_known_kinds_of_images_pass(kind: str) -> None:
    assert is_image(encoded(kind))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xd8",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<?xml version='1.0'?><svg/>",
        b"<!DOCTYPE html><html></html>",
        b'{"error": "not found"}',
        b"%PDF-1.7",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"PK\x03\x04",
        b"RIFF\x00\x00\x00\x00WAVEfmt ",
        b"\x00\x00\x00\x18ftypmp42",
        b"8BPS\x00\x01",
        b"P6\n1 1\n255\n\0\0\0",
        b"#?RADIANCE\n",
        b"\x1f\x8b\x08",
    ],
)
def test_all_else_is_refused_before_the_decoder(body: bytes) -> None:
    assert not is_image(body)
    with pytest.raises(ImageError, match="not_image: first bytes") as error:
        ImageResizer(DownloadSettings())(body)
    assert error.value.outcome == "not_image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_an_image_is_resized_and_encoded(kind: str) -> None:
    result = ImageResizer(DownloadSettings(image_size=20))(encoded(kind))
    assert (result.width, result.height) == (30, 20)
    assert (result.original_width, result.original_height) == (60, 40)
    with Image.open(io.BytesIO(result.data)) as image:
        assert (image.format, image.size) == ("JPEG", (30, 20))


@pytest.mark.parametrize(("encode_format", "name"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_the_stored_format_is_the_one_asked_for(encode_format: str, name: str) -> None:
    settings = DownloadSettings(image_size=20, encode_format=encode_format, encode_quality=9)
    with Image.open(io.BytesIO(ImageResizer(settings)(encoded("PNG")).data)) as image:
        assert image.format == name


def test_small_images_stay_as_they_are() -> None:
    result = ImageResizer(DownloadSettings(image_size=256))(encoded("PNG"))
    assert (result.width, result.height) == (60, 40)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (DownloadSettings(min_image_size=41), "image too small"),
        (DownloadSettings(max_aspect_ratio=1.4), "aspect ratio too large"),
    ],
)
def test_images_out_of_bounds_are_filtered(settings: DownloadSettings, reason: str) -> None:
    with pytest.raises(ImageError, match=f"filtered: {reason}") as error:
        ImageResizer(settings)(encoded("PNG"))
    assert error.value.outcome == "filtered"


def test_images_on_the_bounds_are_kept() -> None:
    assert ImageResizer(DownloadSettings(min_image_size=40, max_aspect_ratio=1.5))(encoded("PNG")).width == 60


@pytest.mark.parametrize("body", [b"\xff\xd8\xff\xe0 nothing more", b"\x89PNG\r\n\x1a\n", b"BM", encoded("PNG")[:60]])
def test_bytes_that_do_not_decode_are_counted(body: bytes) -> None:
    with pytest.raises(ImageError) as error:
        ImageResizer(DownloadSettings())(body)
    assert error.value.outcome == "decode"


def test_an_image_that_claims_too_many_pixels_is_refused() -> None:
    header = bytearray(encoded("PNG"))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(ImageError) as error:
        ImageResizer(DownloadSettings())(bytes(header))
    assert error.value.outcome == "decode"
