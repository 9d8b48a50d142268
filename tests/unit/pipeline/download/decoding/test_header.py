"""Headers of images: size, mode and orientation, before decoding."""

from __future__ import annotations

import io

from PIL import Image

from priorkit.pipeline.download.decoding.header import ImageHeader, read_header


def turned(orientation: int) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.new("L", (8, 6)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_a_header_has_the_size_in_the_file_and_the_upright_size() -> None:
    header = read_header(turned(6), 48)
    assert header == ImageHeader(8, 6, "L", 6)
    assert header.upright_size == (6, 8)
    assert read_header(turned(3), 48).upright_size == (8, 6)


def test_the_orientation_of_an_image_with_too_many_pixels_is_not_read() -> None:
    assert read_header(turned(6), 47) == ImageHeader(8, 6, "L", 1)


def test_a_damaged_header_has_no_size() -> None:
    assert read_header(b"\xff\xd8\xff nothing", 48) == ImageHeader(0, 0, "", 1)
