"""Decoding and normalising compared with open_clip's transform, and malicious images."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from priorkit.pipeline.clip.pixels import PixelError, Pixels

SIZE = 32


def transform(**settings: Any) -> Any:
    return open_clip.image_transform(SIZE, is_train=False, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), **settings)


def pixels(preprocess: Any = None, dtype: torch.dtype = torch.float32) -> Pixels:
    return Pixels(preprocess or transform(), SIZE, torch.device("cpu"), dtype)


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (50, 40), **options: Any) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values, "RGBA").convert(mode).save(file, kind, **options)
    return file.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A one-bit PNG that states a size and holds no pixels: the size alone is the reason to refuse it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


ORDINARY = {
    "jpeg": encoded("JPEG"),
    "grey jpeg": encoded("JPEG", "L"),
    "cmyk jpeg": encoded("JPEG", "CMYK"),
    "png": encoded("PNG"),
    "png with alpha": encoded("PNG", "RGBA"),
    "palette": encoded("PNG", "P"),
    "palette with alpha": encoded("PNG", "P", transparency=3),
    "one bit": encoded("PNG", "1"),
    "webp": encoded("WEBP"),
    "gif": encoded("GIF", "P"),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    "one pixel": encoded("PNG", size=(1, 1)),
    "wide": encoded("PNG", size=(500, 20)),
}


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_pixels_are_bit_identical_to_open_clips_transform(name: str, resize_mode: str) -> None:
    preprocess = transform(resize_mode=resize_mode)
    expected = preprocess(Image.open(io.BytesIO(ORDINARY[name])))
    made = pixels(preprocess)
    decoded = made.decode(ORDINARY[name])
    assert (decoded.dtype, decoded.shape) == (torch.uint8, (SIZE, SIZE, 3))
    assert torch.equal(made.batch([decoded])[0], expected)


def test_a_batch_has_the_dtype_of_the_tower_and_keeps_the_order() -> None:
    made = pixels(dtype=torch.bfloat16)
    images = [made.decode(ORDINARY[name]) for name in ("jpeg", "png", "one pixel")]
    batch = made.batch(images)
    assert (batch.dtype, batch.shape) == (torch.bfloat16, (3, 3, SIZE, SIZE))
    for image, row in zip(images, batch, strict=True):
        assert torch.equal(made.batch([image])[0], row)


def test_a_transform_with_other_last_steps_is_not_split() -> None:
    def preprocess(image: Image.Image) -> torch.Tensor:
        return torch.full((3, SIZE, SIZE), float(image.size[0]))

    made = pixels(preprocess)
    assert made.batch([made.decode(ORDINARY["jpeg"])]).unique().tolist() == [50.0]


def test_16_bit_images_keep_their_upper_8_bits() -> None:
    values = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) * 60
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    decoded = pixels().decode(file.getvalue())
    assert torch.equal(decoded[..., 0], torch.from_numpy((values >> 8).astype(np.uint8)))


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert pixels().decode(file.getvalue())[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "image_decode"),
        (b"<svg/>", "image_decode"),
        (ORDINARY["jpeg"][:-400], "image_decode"),
        (ORDINARY["png"][:100], "image_decode"),
        (png_of_size(20_000, 20_000), "image_too_large"),
        (png_of_size(10_000, 9_000), "image_too_large"),
        (png_of_size(1, 100_000), "image_too_thin"),
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "bomb", "too large", "too thin"],
)
def test_bad_and_huge_images_are_pixel_errors(data: bytes, reason: str) -> None:
    with pytest.raises(PixelError, match=f"^({reason}): "):
        pixels().decode(data)
