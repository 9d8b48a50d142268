"""Image resizer: accepted bytes, filters, formats, and the difference between `exact` and `fast`."""

from __future__ import annotations

import dataclasses
import io
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from priorkit.pipeline.download.decoding.resize import ImageResizer, is_image
from priorkit.pipeline.download.outcomes import ImageError, ResizedImage
from priorkit.pipeline.download.settings import DownloadSettings

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
KINDS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"] + (["AVIF"] if features.check("avif") else [])


def encoded(kind: str, pixels: np.ndarray = PIXELS) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_known_formats_are_images(kind: str) -> None:
    assert is_image(encoded(kind))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xd8",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<?xml version='1.0'?><svg/>",
        b"<!DOCTYPE svg [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><svg><text>&e;</text></svg>",
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
def test_other_bytes_are_refused_before_decoding(body: bytes) -> None:
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
def test_the_stored_format_is_that_of_the_settings(encode_format: str, name: str) -> None:
    settings = DownloadSettings(image_size=20, encode_format=encode_format, encode_quality=9)
    with Image.open(io.BytesIO(ImageResizer(settings)(encoded("PNG")).data)) as image:
        assert image.format == name


def test_small_images_are_not_resized() -> None:
    result = ImageResizer(DownloadSettings(image_size=256))(encoded("PNG"))
    assert (result.width, result.height) == (60, 40)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (DownloadSettings(min_image_size=41), "image too small"),
        (DownloadSettings(max_aspect_ratio=1.4), "aspect ratio too large"),
        (DownloadSettings(max_image_area=2399), "image area too large"),
    ],
)
def test_images_beyond_the_limits_are_filtered(settings: DownloadSettings, reason: str) -> None:
    with pytest.raises(ImageError, match=f"filtered: {reason}") as error:
        ImageResizer(settings)(encoded("PNG"))
    assert error.value.outcome == "filtered"


def test_images_at_the_limits_are_accepted() -> None:
    settings = DownloadSettings(min_image_size=40, max_aspect_ratio=1.5, max_image_area=2400, max_pixels=2400)
    assert ImageResizer(settings)(encoded("PNG")).width == 60


@pytest.mark.parametrize("body", [b"\xff\xd8\xff\xe0 nothing more", b"\x89PNG\r\n\x1a\n", b"BM", encoded("PNG")[:60]])
def test_bytes_that_do_not_decode_are_counted(body: bytes) -> None:
    with pytest.raises(ImageError) as error:
        ImageResizer(DownloadSettings())(body)
    assert error.value.outcome == "decode"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_more_pixels_than_allowed_are_not_decoded(kind: str, mode: str) -> None:
    settings = DownloadSettings.model_validate({"max_pixels": 2399, "decode_mode": mode})
    with pytest.raises(ImageError, match="too_many_pixels: 60 x 40") as error:
        ImageResizer(settings)(encoded(kind))
    assert error.value.outcome == "too_many_pixels"


def test_an_image_that_claims_too_many_pixels_is_refused() -> None:
    header = bytearray(encoded("PNG"))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageError) as error:
        ImageResizer(DownloadSettings())(bytes(header))
    assert error.value.outcome == "too_many_pixels"


def photograph(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Pixels `[H, W, 3]` with the spectrum of photographs."""
    random = np.random.default_rng(seed)
    square = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2
    square[0, 0] = 1
    white = random.standard_normal((3, height, width))
    planes = np.fft.irfft2(np.fft.rfft2(white) / square**0.7, (height, width))
    planes = (planes - planes.mean((1, 2), keepdims=True)) / planes.std((1, 2), keepdims=True)
    light = 128 + 45 * planes[0]
    return np.stack([light + 12 * planes[1], light, light + 12 * planes[2]], -1).clip(0, 255).astype(np.uint8)


def ssim(first: bytes, second: bytes) -> float:
    """Mean structural similarity of the luminance of two images, over windows of 8x8 (Wang et al. 2004)."""
    a, b = (np.asarray(Image.open(io.BytesIO(data)).convert("L"), np.float64) for data in (first, second))
    a, b = (np.lib.stride_tricks.sliding_window_view(image, (8, 8)) for image in (a, b))
    mean_a, mean_b = a.mean((-1, -2)), b.mean((-1, -2))
    covariance = (a * b).mean((-1, -2)) - mean_a * mean_b
    c1, c2 = 2.55**2, 7.65**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((similarity / ((mean_a**2 + mean_b**2 + c1) * (a.var((-1, -2)) + b.var((-1, -2)) + c2))).mean())


def both(body: bytes, **changes: Any) -> tuple[ResizedImage, ResizedImage]:
    """Images of a body with `exact` and with `fast`."""
    modes = [DownloadSettings.model_validate({"decode_mode": mode, **changes}) for mode in ("exact", "fast")]
    exact, fast = (ImageResizer(settings)(body) for settings in modes)
    return exact, fast


@pytest.mark.parametrize("resize_mode", ["keep_ratio", "center_crop", "border", "keep_ratio_largest"])
def test_fast_images_resemble_exact_ones(resize_mode: str) -> None:
    alike = []
    shapes = [(700, 500), (501, 777), (1201, 600), (333, 1999), (640, 640), (1500, 1100), (300, 1900)]
    for seed, (width, height) in enumerate(shapes):
        body = encoded("JPEG", photograph(width, height, seed))
        exact, fast = both(body, image_size=96, resize_mode=resize_mode)
        assert dataclasses.replace(fast, data=b"") == dataclasses.replace(exact, data=b"")
        assert (fast.original_width, fast.original_height) == (width, height)
        assert fast.data != exact.data
        alike.append(ssim(exact.data, fast.data))
    assert np.mean(alike) >= 0.97
    assert min(alike) > 0.9


def test_fast_keeps_grey_cmyk_and_orientation() -> None:
    """Grey stays grey, CMYK is decoded, and a rotated photograph is stored upright, as with `exact`."""
    pixels = photograph(800, 500)
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("L", "CMYK", "RGB"):
        file = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(file, "JPEG", exif=exif, progressive=mode == "RGB")
        exact, fast = both(file.getvalue(), image_size=100)
        assert exact.data != fast.data
        opened = [Image.open(io.BytesIO(one.data)) for one in (exact, fast)]
        assert opened[0].size == opened[1].size == (100, 160)
        assert opened[0].mode == opened[1].mode == ("L" if mode == "L" else "RGB")
        assert ssim(exact.data, fast.data) > 0.95


@pytest.mark.parametrize(
    ("kind", "size", "changes"),
    [
        ("PNG", (800, 500), {}),
        ("WEBP", (800, 500), {}),
        ("JPEG", (300, 249), {}),
        ("JPEG", (240, 200), {"resize_mode": "border"}),
        ("JPEG", (800, 500), {"resize_mode": "no"}),
        ("JPEG", (80, 50), {"resize_only_if_bigger": False}),
    ],
)
def test_fast_equals_exact_if_no_side_can_be_halved(kind: str, size: tuple[int, int], changes: dict[str, Any]) -> None:
    exact, fast = both(encoded(kind, photograph(*size)), image_size=100, **changes)
    assert exact == fast


@pytest.mark.parametrize("changes", [{"min_image_size": 501}, {"max_aspect_ratio": 1.59}, {"max_image_area": 399_999}])
def test_fast_filters_by_the_true_size(changes: dict[str, Any]) -> None:
    body = encoded("JPEG", photograph(800, 500))
    with pytest.raises(ImageError, match="filtered"):
        ImageResizer(DownloadSettings.model_validate({"decode_mode": "fast", "image_size": 100, **changes}))(body)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_truncated_photograph_is_not_decoded(kept: float, mode: str) -> None:
    body = encoded("JPEG", photograph(800, 500))
    with pytest.raises(ImageError, match="decode: Image decoding error"):
        ImageResizer(DownloadSettings.model_validate({"decode_mode": mode}))(body[: int(kept * len(body))])
