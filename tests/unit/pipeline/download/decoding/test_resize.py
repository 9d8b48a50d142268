"""Image resizer: accepted bytes, filters, formats, and the difference between `exact` and `fast`."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, features

from priorkit.pipeline.download.decoding import header
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


@functools.cache
def photograph(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Pixels `[H, W, 3]` with the spectrum of photographs, for reading only."""
    random = np.random.default_rng(seed)
    square = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2
    square[0, 0] = 1
    white = random.standard_normal((3, height, width))
    planes = np.fft.irfft2(np.fft.rfft2(white) / square**0.7, (height, width))
    planes = (planes - planes.mean((1, 2), keepdims=True)) / planes.std((1, 2), keepdims=True)
    light = 128 + 45 * planes[0]
    pixels = np.stack([light + 12 * planes[1], light, light + 12 * planes[2]], -1).clip(0, 255).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


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


def tagged(kind: str, orientation: int, pixels: np.ndarray = PIXELS) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, kind, exif=exif)
    return file.getvalue()


def animated(kind: str) -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "blue")]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=100)
    return file.getvalue()


def original(**changes: Any) -> ImageResizer:
    return ImageResizer(DownloadSettings.model_validate({"encode_format": "original", "image_size": 64, **changes}))


UNUSUAL = {
    "transparent": encoded("PNG", np.dstack([PIXELS, np.full((40, 60), 7, np.uint8)])),
    "16 bits": encoded("PNG", np.full((40, 60), 40_000, np.uint16)),
    "animated GIF": animated("GIF"),
    "animated WebP": animated("WEBP"),
    "grey": encoded("JPEG", PIXELS[..., 0]),
    "bytes after the end": encoded("JPEG") + b"more",
}


@pytest.mark.parametrize("body", [*map(encoded, KINDS), *UNUSUAL.values()], ids=[*KINDS, *UNUSUAL])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_an_image_that_need_not_change_keeps_its_bytes(body: bytes, mode: str) -> None:
    for changes in ({}, {"image_size": 40}, {"resize_mode": "no"}, {"resize_mode": "border", "image_size": 60}):
        assert original(decode_mode=mode, **changes)(body) == ResizedImage(body, 60, 40, 60, 40)


@pytest.mark.parametrize(("reencode_format", "kind"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
@pytest.mark.parametrize("source", ["PNG", "JPEG"])
def test_an_image_that_must_be_resized_is_encoded_as_the_settings_state(
    reencode_format: str, kind: str, source: str
) -> None:
    changes = {"image_size": 20, "encode_quality": 9}
    image = original(reencode_format=reencode_format, **changes)(encoded(source))
    settings = DownloadSettings.model_validate({"encode_format": reencode_format, **changes})
    assert image == ImageResizer(settings)(encoded(source))
    assert Image.open(io.BytesIO(image.data)).format == kind


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_the_size_of_kept_bytes_is_that_of_the_upright_image(kind: str, orientation: int) -> None:
    body = tagged(kind, orientation)
    width, height = (40, 60) if orientation in (6, 8) else (60, 40)
    assert original()(body) == ResizedImage(body, width, height, width, height)
    assert original(exif_orientation="ignore")(body) == ResizedImage(body, 60, 40, 60, 40)


@pytest.mark.parametrize(
    ("body", "changes", "outcome"),
    [
        (encoded("PNG"), {"min_image_size": 41}, "filtered"),
        (encoded("PNG"), {"max_aspect_ratio": 1.4}, "filtered"),
        (encoded("PNG"), {"max_image_area": 2399}, "filtered"),
        (encoded("PNG"), {"max_pixels": 2399}, "too_many_pixels"),
        (encoded("PNG")[:60], {}, "decode"),
        (encoded("JPEG")[:-200], {}, "decode"),
        (b"<html>", {}, "not_image"),
    ],
)
def test_bad_images_are_not_kept(body: bytes, changes: dict[str, Any], outcome: str) -> None:
    with pytest.raises(ImageError) as error:
        original(**changes)(body)
    assert error.value.outcome == outcome


def test_an_image_whose_header_pillow_cannot_read_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise `embed`, which reads images with Pillow, could not read it."""
    monkeypatch.setattr(header, "_FORMATS", ("JPEG",))
    assert original()(encoded("PNG")).data.startswith(b"\xff\xd8\xff")
    assert original()(encoded("JPEG")).data == encoded("JPEG")


FACES = [[0.1, 0.2, 0.4, 0.9], [0.6, 0.0, 1.0, 0.25]]


def png(pixels: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])


def blurred(pixels: np.ndarray, boxes: list[list[float]]) -> np.ndarray:
    """Pixels as img2dataset's own blurrer returns them."""
    from img2dataset.blurrer import BoundingBoxBlurrer

    result: np.ndarray = BoundingBoxBlurrer()(pixels, boxes)
    return result


PNG: dict[str, Any] = {"encode_format": "png", "encode_quality": 1}


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("boxes", [FACES, FACES[:1], [[-0.1, 0.4, 1.2, 1.1]]])
def test_boxes_are_blurred_as_img2dataset_blurs_them(boxes: list[list[float]], grey: bool) -> None:
    pixels = photograph(300, 200)
    pixels = pixels[..., 0] if grey else pixels
    body, bgr = encoded("PNG", pixels), np.ascontiguousarray(pixels[..., ::-1]) if not grey else pixels
    small = cv2.resize(bgr, (96, 64), interpolation=cv2.INTER_AREA)
    for changes, expected in (
        ({"resize_mode": "no"}, blurred(bgr, boxes)),
        ({"image_size": 64}, blurred(small, boxes)),
        ({"image_size": 64, "resize_mode": "center_crop"}, blurred(small, boxes)[:, 16:80]),
    ):
        image = ImageResizer(DownloadSettings.model_validate({**PNG, **changes}))(body, boxes)
        assert image.data == png(expected)
        assert ImageResizer(DownloadSettings.model_validate({**PNG, **changes}))(body).data != image.data


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_boxes_are_relative_to_the_pixels_in_the_file(orientation: int) -> None:
    """The box hides the same part of the image, wherever the rotation puts it."""
    pixels = np.random.default_rng(1).integers(0, 255, (200, 400, 3), dtype=np.uint8)
    body, box = tagged("PNG", orientation, pixels), [[0.1, 0.2, 0.4, 0.9]]
    changes = {"resize_mode": "no", "encode_format": "png", "encode_quality": 1}
    plain, hidden = (ImageResizer(DownloadSettings(**changes))(body, boxes).data for boxes in ([], box))
    before, after = (np.asarray(Image.open(io.BytesIO(data)), np.int16) for data in (plain, hidden))
    changed = np.abs(after - before).max(-1) > 8
    if orientation > 1:
        changed = np.rot90(changed, {3: 2, 6: 1, 8: 3}[orientation])
    inside = changed[40:180, 40:160]
    assert changed.shape == (200, 400)
    assert inside.mean() > 0.9
    assert changed[:, 250:].sum() == 0


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("resize_mode", ["keep_ratio", "border"])
def test_fast_blurs_the_same_boxes(mode: str, resize_mode: str) -> None:
    body = encoded("JPEG", photograph(800, 500))
    settings = DownloadSettings.model_validate(
        {
            "decode_mode": mode,
            "resize_mode": resize_mode,
            "image_size": 100,
            "encode_format": "png",
            "encode_quality": 1,
        }
    )
    plain, hidden = ImageResizer(settings)(body), ImageResizer(settings)(body, FACES)
    assert ssim(plain.data, hidden.data) < 0.95
    exact = ImageResizer(settings.model_copy(update={"decode_mode": "exact"}))(body, FACES)
    assert ssim(exact.data, hidden.data) > 0.95


def test_an_image_with_boxes_is_encoded_and_one_with_none_keeps_its_bytes() -> None:
    body = encoded("PNG")
    assert original(reencode_format="png", encode_quality=1)(body, FACES).data == png(blurred(PIXELS[..., ::-1], FACES))
    assert original()(body, []).data == body


INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}  # fmt: skip


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_the_interpolation_is_that_of_the_settings(name: str) -> None:
    pixels, bgr = photograph(90, 60), np.ascontiguousarray(photograph(90, 60)[..., ::-1])
    changes = {"upscale_interpolation": name, "downscale_interpolation": name, "resize_only_if_bigger": False}
    for size, target in ((40, (60, 40)), (80, (120, 80))):
        settings = DownloadSettings.model_validate({**PNG, **changes, "image_size": size})
        expected = cv2.resize(bgr, target, interpolation=INTERPOLATIONS[name])
        assert ImageResizer(settings)(encoded("PNG", pixels)).data == png(expected)


def test_fast_uses_the_interpolation_too() -> None:
    body = encoded("JPEG", photograph(800, 500))
    settings = [
        DownloadSettings.model_validate({"decode_mode": "fast", "image_size": 100, "downscale_interpolation": name})
        for name in INTERPOLATIONS
    ]
    images = {one.downscale_interpolation: ImageResizer(one)(body).data for one in settings}
    assert images["area"] == images["linear"]
    assert len(set(images.values())) == len(INTERPOLATIONS) - 1


def test_exif_is_extracted_on_request() -> None:
    body = tagged("JPEG", 6)
    for changes in ({}, {"decode_mode": "fast", "image_size": 4}, {"encode_format": "original"}):
        assert ImageResizer(DownloadSettings.model_validate(changes))(body).exif is None
        exif = ImageResizer(DownloadSettings.model_validate({**changes, "extract_exif": True}))(body).exif
        assert exif is not None
        assert json.loads(exif)["Image Orientation"] == "Rotated 90 CW"
