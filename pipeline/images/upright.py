"""Conversion of images to the form that image viewers show: upright, with 8 bits per channel.

An image is made upright by rotating or mirroring it according to its EXIF orientation.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

# images from the web often cause this warning, and `orientation` already handles damaged EXIF
warnings.filterwarnings("ignore", message="Corrupt EXIF data")

_ORIENTATION = 0x0112
"""Number of the EXIF tag that contains the orientation."""
_PNG_MARKS = (b"eXIf", b"Raw profile type", b"tiff:Orientation")
"""Byte strings that may indicate an EXIF orientation in a PNG file.

Every PNG file with an EXIF orientation contains at least one of them. A file that contains none is treated as upright,
and its EXIF is not read, because Pillow would decode the whole file to find it.
"""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WIDE_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
"""Pillow modes with more than 8 bits per channel. All of them are greyscale."""


def orientation(image: Image.Image, body: bytes) -> int:
    """Return the EXIF orientation to apply to an image after decoding, from 1 (upright) to 8.

    Return 1 if the EXIF is missing or damaged. Also return 1 for a TIFF image, because Pillow and OpenCV apply its
    orientation during decoding.

    Args:
        image: image opened by Pillow.
        body: bytes of the image file.
    """
    if image.format == "TIFF" or (image.format == "PNG" and not any(mark in body for mark in _PNG_MARKS)):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises many exception types; image viewers ignore damaged EXIF
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def turn_image(image: Image.Image, orientation: int) -> Image.Image:
    """Rotate or mirror an image to apply an EXIF orientation. For orientation 1, return the image unchanged."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate or mirror an array of pixels to apply an EXIF orientation.

    Args:
        pixels: `[H, W]` or `[H, W, C]` array of height H and width W, with C channels.
        orientation: EXIF orientation, from 1 (upright) to 8.
    """
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def eight_bit(values: np.ndarray, bits: int = 16) -> np.ndarray:
    """Convert pixel values of any numeric dtype to uint8.

    - uint8 values are returned unchanged.
    - uint16 values keep only the upper 8 of their `bits` significant bits. They are not rescaled, even if the image
      uses only part of the range.
    - Other dtypes have no defined range, so the first of these rules that fits all finite values is applied:
      - Floats within 0..1 are multiplied by 255.
      - Values within 0..255 keep their scale, and fractions are dropped.
      - Values within 0..65535 are divided by 256.
      - Any other values are scaled linearly, so that the smallest value becomes 0 and the largest becomes 255.
    - NaN and -inf become 0, and +inf becomes 255.

    Args:
        values: pixel values, of any shape.
        bits: number of significant bits in uint16 values, such as 10 for AVIF images with 10 bits per channel.

    Raises:
        ValueError: no value is finite.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        values = np.minimum(values >> (bits - 8), 255)
        return values.astype(np.uint8)
    scaled = values.astype(np.float64 if values.dtype.itemsize > 4 else np.float32)
    finite = scaled[np.isfinite(scaled)]
    if not finite.size:
        raise ValueError("no finite pixel value")
    low, high = float(finite.min()), float(finite.max())
    del finite
    if low >= 0 and high <= 1 and values.dtype.kind == "f":
        scaled *= 255
        scaled += 0.5  # round to nearest, so that 8-bit values that were divided by 255 are restored exactly
    elif low >= 0 and high <= 255:
        pass
    elif low >= 0 and high <= 65535:
        scaled /= 256
    else:
        span = high / 2 - low / 2  # halve first, since the difference between two large floats may overflow
        scaled = (scaled / 2 - low / 2) / (span or 1.0) * 255
    np.nan_to_num(scaled, copy=False, nan=0, posinf=255, neginf=0)
    result: np.ndarray = scaled.clip(0, 255).astype(np.uint8)
    return result


def eight_bit_image(image: Image.Image) -> Image.Image:
    """Convert a greyscale image with more than 8 bits per pixel to 8 bits. Return any other image unchanged.

    Pillow's own conversion is not used, because it clips values instead of scaling them. Most 16-bit images would turn
    white, and images with floats within 0..1 would turn black.
    """
    if image.mode not in _WIDE_MODES:
        return image
    return Image.fromarray(eight_bit(np.asarray(image)))


def avif_bits(body: bytes) -> int:
    """Return the number of bits per channel of an AVIF image, according to the header of its file: 8, 10 or 12.

    Return 8 if the header does not contain this number.

    Args:
        body: bytes of the image file.
    """
    start = body.find(b"av1C")  # AV1 codec configuration box: version, profile, then the flags
    flags = body[start + 6] if 0 <= start < len(body) - 6 else 0
    return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10


def opened_rgb(body: bytes) -> Image.Image:
    """Decode an image file to an upright 8-bit RGB image.

    Raises:
        Exception: the image is damaged. Pillow raises many different exception types.
    """
    with Image.open(io.BytesIO(body)) as image:
        return turn_image(eight_bit_image(image), orientation(image, body)).convert("RGB")
