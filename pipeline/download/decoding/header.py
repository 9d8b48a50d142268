"""Properties of an image that are read from the header of its file, before the image is decoded."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from ...images.upright import orientation

Image.MAX_IMAGE_PIXELS = None  # Pillow only reads headers here, and `max_pixels` limits the sizes in headers

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF")
"""Image formats that Pillow may detect when it reads an image header, under Pillow's names."""


@dataclass
class ImageHeader:
    """Properties of an image file, read from its header.

    `width` and `height` are in pixels, before rotation; both are 0 if Pillow cannot read the header. `mode` is Pillow's
    name for the pixel format, such as `RGB`. `orientation` is the EXIF orientation to apply after decoding, from 1
    (upright) to 8.
    """

    width: int = 0
    height: int = 0
    mode: str = ""
    orientation: int = 1

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height after the orientation is applied."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(body: bytes, max_pixels: int) -> ImageHeader:
    """Read the size, mode and orientation of an image with Pillow.

    If Pillow cannot read the header, return a header with a size of 0 x 0. The setting `max_pixels` then has no effect,
    but OpenCV still applies its own size limit when it decodes the image.

    If the image has more than `max_pixels` pixels, return orientation 1 without reading the actual orientation. Reading
    it can require decoding the whole image.

    Args:
        body: image file.
        max_pixels: maximum number of pixels (width times height) of an image whose orientation is read.
    """
    try:
        with Image.open(io.BytesIO(body), formats=_FORMATS) as image:
            header = ImageHeader(image.width, image.height, image.mode)
            if image.width * image.height <= max_pixels:
                header.orientation = orientation(image, body)
            return header
    except Exception:  # Pillow raises many exception types, including SyntaxError and struct.error
        return ImageHeader()
