"""Stored and embedded images of all orientations and number types are upright and have 8 bits."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from priorkit.pipeline.clip.pixels import PixelError, Pixels
from priorkit.pipeline.download.decoding.resize import ImageResizer
from priorkit.pipeline.download.outcomes import ImageError, ResizedImage
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.images.upright import eight_bit, opened_rgb, turn

HEIGHT, WIDTH = 40, 60
ROW, COLUMN = np.mgrid[0:HEIGHT, 0:WIDTH]
GREY = (COLUMN * 4).astype(np.uint8)
RGB = np.stack([COLUMN * 4, ROW * 6, 255 - COLUMN * 4], -1).astype(np.uint8)
KINDS = ["JPEG", "PNG", "WEBP", "TIFF"] + (["AVIF"] if features.check("avif") else [])
PNG_OPTIONS: dict[str, Any] = {"encode_format": "png", "encode_quality": 1}


def encoded(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@functools.cache
def tagged(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(np.kron(RGB, np.ones((8, 8, 1), np.uint8)), kind, exif=exif)


def stored(body: bytes, **changes: Any) -> ResizedImage:
    return ImageResizer(DownloadSettings.model_validate({"image_size": 40, **PNG_OPTIONS, **changes}))(body)


def pixels_of(image: ResizedImage) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.data)).convert("RGB")).astype(int)


def embedded(body: bytes) -> np.ndarray:
    """Return the pixels that the CLIP gets, without normalisation."""
    pixels = Pixels(
        lambda image: torch.from_numpy(np.array(image.convert("RGB"))), 32, torch.device("cpu"), torch.float32
    )
    return pixels.decode(body).numpy().astype(int)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_stored_upright(kind: str, orientation: int, mode: str) -> None:
    body = tagged(kind, orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(body)))
    image = stored(body, decode_mode=mode)
    assert (image.original_width, image.original_height) == upright.size
    assert (image.width, image.height) == ((60, 40) if orientation < 5 else (40, 60))
    expected = np.asarray(upright.convert("RGB").resize((image.width, image.height), Image.Resampling.BOX)).astype(int)
    assert np.abs(pixels_of(image) - expected).mean() < 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_embedded_upright(kind: str, orientation: int) -> None:
    body = tagged(kind, orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(body))).convert("RGB")
    assert np.array_equal(embedded(body), np.asarray(upright))
    assert np.array_equal(np.asarray(opened_rgb(body)), np.asarray(upright))


@pytest.mark.parametrize("encode_format", ["jpg", "png", "webp"])
def test_stored_images_are_turned_only_once(encode_format: str) -> None:
    image = stored(tagged("JPEG", 6), encode_format=encode_format)
    with Image.open(io.BytesIO(image.data)) as opened:
        assert opened.getexif().get(0x0112) is None
    assert embedded(image.data).shape == (60, 40, 3)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_orientation_can_be_ignored(mode: str) -> None:
    plain, turned = tagged("JPEG", 1), tagged("JPEG", 6)
    kept = stored(turned, exif_orientation="ignore", decode_mode=mode)
    assert kept == stored(plain, exif_orientation="ignore", decode_mode=mode) == stored(plain, decode_mode=mode)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_invalid_orientation_changes_nothing(orientation: int) -> None:
    assert stored(tagged("JPEG", orientation)) == stored(tagged("JPEG", 1))


def test_damaged_exif_changes_nothing() -> None:
    body = encoded(RGB, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert stored(body).width == 60
    assert embedded(body).shape == (40, 60, 3)


def test_orientation_after_the_pixels_of_a_png_counts() -> None:
    body = tagged("PNG", 6)
    start = body.index(b"eXIf") - 4
    size = 12 + int.from_bytes(body[start : start + 4], "big")
    moved = body[:start] + body[start + size : -12] + body[start : start + size] + body[-12:]
    assert stored(moved) == stored(body)
    assert stored(moved).width == 40


def test_filters_and_crops_see_the_upright_image() -> None:
    turned = tagged("JPEG", 6)
    image = stored(turned, resize_mode="no")
    assert (image.width, image.height) == (320, 480)
    assert stored(turned, resize_mode="keep_ratio_largest").height == 40


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_like_in_pillow(orientation: int, shape: tuple[int, ...]) -> None:
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    assert np.array_equal(turn(pixels, orientation), np.asarray(ImageOps.exif_transpose(image)))


def png_of_16_bits(channels: np.ndarray, colour_type: int) -> bytes:
    """Write a PNG of big-endian samples `[H, W, C]`, such as grey with alpha, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", channels.shape[1], channels.shape[0], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def by_opencv(pixels: np.ndarray, extension: str, *params: int) -> bytes:
    return bytes(cv2.imencode(extension, pixels, params)[1])


WIDE = GREY.astype(np.uint16) * 257
WIDE_RGB = RGB.astype(np.uint16) * 257
OPAQUE = np.full((HEIGHT, WIDTH), 65535, np.uint16)
GREYS = {
    "png of 16 bits": encoded(WIDE, "PNG"),
    "png of 16 bits with alpha": png_of_16_bits(np.dstack([WIDE, OPAQUE]), 4),
    "tiff of 16 bits": encoded(WIDE, "TIFF"),
    "big-endian tiff of 16 bits": encoded(WIDE.astype(">u2"), "TIFF"),
    "tiff of int16": by_opencv((GREY.astype(np.int16) - 100) * 130, ".tiff"),
    "tiff of int32": encoded((GREY.astype(np.int32) - 100) * 9_000_000, "TIFF"),
    "tiff of int32 that holds 16 bits": encoded(WIDE.astype(np.int32), "TIFF"),
    "tiff of int32 that holds 8 bits": encoded(GREY.astype(np.int32), "TIFF"),
    "tiff of floats to 1": encoded(GREY.astype(np.float32) / 255, "TIFF"),
    "tiff of floats to 255": encoded(GREY.astype(np.float32), "TIFF"),
    "tiff of floats to 65535": encoded(WIDE.astype(np.float32), "TIFF"),
    "tiff of any floats": encoded((GREY.astype(np.float32) - 100) * 1e30, "TIFF"),
    "tiff of doubles": by_opencv(GREY / 255, ".tiff"),
}
COLOURED = {
    "png of 16 bits": png_of_16_bits(WIDE_RGB, 2),
    "png of 16 bits with alpha": png_of_16_bits(np.dstack([WIDE_RGB, OPAQUE]), 6),
    "tiff of 16 bits": by_opencv(WIDE_RGB[..., ::-1], ".tiff"),
    "tiff of floats": by_opencv(RGB[..., ::-1].astype(np.float32) / 255, ".tiff"),
}
STRETCHED = {"tiff of int16", "tiff of int32", "tiff of any floats"}
"""Types without a defined range: the darkest pixel becomes 0 and the brightest 255."""


def expected_grey(name: str) -> np.ndarray:
    grey = GREY.astype(float)
    return (grey - grey.min()) / (grey.max() - grey.min()) * 255 if name in STRETCHED else grey


@pytest.mark.parametrize("encode_format", ["png", "jpg", "webp"])
@pytest.mark.parametrize("name", GREYS)
def test_grey_of_any_type_is_stored_with_8_bits(name: str, encode_format: str) -> None:
    image = stored(GREYS[name], encode_format=encode_format, encode_quality=9 if encode_format == "png" else 95)
    with Image.open(io.BytesIO(image.data)) as opened:
        assert opened.mode in ("L", "RGB", "RGBA")
    assert np.abs(pixels_of(image) - expected_grey(name)[..., None]).max() <= (1 if encode_format == "png" else 16)


@pytest.mark.parametrize("name", sorted(set(GREYS) - {"tiff of doubles"}))  # Pillow reads no doubles: a named failure
def test_grey_of_any_type_is_embedded_with_8_bits(name: str) -> None:
    assert np.abs(embedded(GREYS[name]) - expected_grey(name)[..., None]).max() <= 1


@pytest.mark.parametrize("name", COLOURED)
def test_colours_of_any_type_are_stored_with_8_bits(name: str) -> None:
    assert np.abs(pixels_of(stored(COLOURED[name])) - RGB).max() <= 1
    if name != "tiff of floats":
        assert np.abs(embedded(COLOURED[name]) - RGB).max() <= 1


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
@pytest.mark.parametrize("bits", [8, 10, 12])
def test_avif_of_any_depth_is_stored_with_8_bits(bits: int) -> None:
    values = np.dstack([GREY.astype(np.uint16) << (bits - 8)] * 3).astype(np.uint8 if bits == 8 else np.uint16)
    body = by_opencv(values, ".avif", cv2.IMWRITE_AVIF_DEPTH, bits, cv2.IMWRITE_AVIF_QUALITY, 100)
    assert np.abs(pixels_of(stored(body)) - GREY[..., None]).max() <= 4


def test_wide_tiffs_are_turned_once() -> None:
    turned = encoded(WIDE, "TIFF", tiffinfo={274: 6})
    for pixels in (pixels_of(stored(turned)), embedded(turned)):
        assert np.abs(pixels[..., 0] - np.rot90(GREY, -1)).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 255, 256, 65535], np.uint16), [0, 0, 1, 255]),
        (np.array([0, 1, 128, 255], np.int32), [0, 1, 128, 255]),
        (np.array([-128, 0, 127], np.int8), [0, 128, 255]),
        (np.array([0.0, 0.5, np.nan, 1.0], np.float32), [0, 128, 0, 255]),
        (np.array([-np.inf, 0.0, np.inf, 1.0], np.float32), [0, 0, 255, 255]),
        (np.array([-3e38, 0.0, 3e38], np.float32), [0, 127, 255]),
        (np.array([-1.7e308, 0.0, 1.7e308], np.float64), [0, 127, 255]),
        (np.array([-7.0, -7.0], np.float32), [0, 0]),
        (np.array([1e-40, 0.0], np.float32), [0, 0]),
    ],
)
def test_values_are_scaled_by_their_range(values: np.ndarray, expected: list[int]) -> None:
    assert eight_bit(values).tolist() == expected


def test_ten_bits_in_sixteen_are_scaled() -> None:
    assert eight_bit(np.array([0, 512, 1023, 2000], np.uint16), 10).tolist() == [0, 128, 255, 255]


def test_an_image_without_finite_values_is_a_failure() -> None:
    body = encoded(np.full((8, 8), np.nan, np.float32), "TIFF")
    with pytest.raises(ImageError, match="decode: no finite pixel value"):
        stored(body)
    with pytest.raises(PixelError, match="image_decode: no finite pixel value"):
        embedded(body)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize(
    ("encode_format", "height", "side"), [("jpg", 65_501, "65,500"), ("webp", 16_384, "16,383"), ("jpg", 65_500, "")]
)
def test_an_image_that_its_format_cannot_store_is_named(encode_format: str, height: int, side: str, mode: str) -> None:
    body = encoded(np.zeros((height, 2), np.uint8), "PNG")
    changes = {"encode_format": encode_format, "resize_mode": "no", "decode_mode": mode}
    if not side:
        assert stored(body, **changes).height == height
        return
    with pytest.raises(ImageError, match=f"encode: cannot store 2 x {height} as .* {side} pixels a side") as error:
        stored(body, **changes)
    assert error.value.outcome == "encode"
