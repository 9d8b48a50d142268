"""Image formats by their first bytes."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from priorkit.pipeline.contract.samples import IMAGE_EXTENSIONS
from priorkit.pipeline.images.kinds import image_extension, is_avif, is_image

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff", "WEBP": "webp"}


@pytest.mark.parametrize("kind", EXTENSIONS)
def test_images_are_recognised_by_their_first_bytes(kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, kind)
    assert is_image(file.getvalue())
    assert not is_image(b"\n" + file.getvalue())
    assert not is_avif(file.getvalue())
    assert image_extension(file.getvalue()) == EXTENSIONS[kind]
    assert image_extension(file.getvalue()) in IMAGE_EXTENSIONS


@pytest.mark.parametrize("brand", [b"ftypavif", b"ftypavis"])
def test_avif_is_recognised_by_its_brand(brand: bytes) -> None:
    body = b"\0\0\0\x20" + brand + b"\0\0\0\0"
    assert is_avif(body)
    assert is_image(body)
    assert image_extension(body) == "avif"
    assert not is_avif(body[1:])


@pytest.mark.parametrize("body", [b"", b"<svg/>", b"RIFF\0\0\0\0WAVE", b"\0\0\0\x20ftypheic", b"%!PS-Adobe", b"GIF88a"])
def test_other_files_are_no_images(body: bytes) -> None:
    assert not is_image(body)
    assert image_extension(body) is None
