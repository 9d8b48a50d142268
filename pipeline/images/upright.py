"""Functions that convert images to the form in which viewers show them.

Images are rotated according to their EXIF orientation, and converted to 8 bits per channel.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

# this warning is frequent for images from the web, and `orientation` handles damaged EXIF
warnings.filterwarnings("ignore", message="Corrupt EXIF data")

_ORIENTATION = 0x0112
"""EXIF tag for the orientation."""
_PNG_MARKS = (b"eXIf", b"Raw profile type", b"tiff:Orientation")
"""Byte strings of which every PNG with an EXIF orientation contains at least one.

`orientation` searches for them before it asks Pillow, which decodes the whole PNG to read the EXIF.
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
"""Pillow modes with more than 8 bits per channel."""


def orientation(image: Image.Image, body: bytes) -> int:
    """Return the EXIF orientation (1 to 8) that still has to be applied to a decoded image.

    The result is 1 for damaged EXIF, and for TIFF, since Pillow and OpenCV apply a TIFF's orientation during decoding.

    Args:
        image: image opened by Pillow.
        body: bytes of the image file.
    """
    if image.format == "TIFF" or (image.format == "PNG" and not any(mark in body for mark in _PNG_MARKS)):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises many exception types; viewers ignore it
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def turn_image(image: Image.Image, orientation: int) -> Image.Image:
    """Rotate or mirror an image according to an EXIF orientation. An upright image is returned unchanged."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate or mirror pixels `[H, W]` or `[H, W, C]` according to an EXIF orientation."""
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
    - uint16 values keep the upper 8 of their `bits` bits, even if the image uses only part of the range.
    - Other dtypes have no defined range, so the smallest and largest finite values in the image decide. If all values
      are floats within 0..1, they are multiplied by 255. Otherwise, values that are all within 0..255 are unchanged,
      and values that are all within 0..65535 are divided by 256. Values in any other range are scaled linearly, so that
      the smallest becomes 0 and the largest 255.
    - NaN and -inf become 0, and +inf becomes 255.

    Args:
        values: pixel values.
        bits: number of significant bits of uint16 values, such as 10 for AVIF with 10 bits per channel.

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
        scaled += 0.5  # round to nearest, so that 8-bit values divided by 255 are restored exactly
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
    """Convert a greyscale image with more than 8 bits per pixel to 8 bits. Other images are returned unchanged.

    Pillow's own conversion clips values instead of scaling them: most 16-bit greyscale images become white, and floats
    within 0..1 become black.
    """
    if image.mode not in _WIDE_MODES:
        return image
    return Image.fromarray(eight_bit(np.asarray(image)))


def avif_bits(body: bytes) -> int:
    """Return the bits per channel that an AVIF file declares in its header: 8, 10 or 12."""
    start = body.find(b"av1C")  # AV1 codec configuration box: version, profile, then the flags
    flags = body[start + 6] if 0 <= start < len(body) - 6 else 0
    return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10


def opened_rgb(body: bytes) -> Image.Image:
    """Decode an image to upright 8-bit RGB.

    Raises:
        Exception: the image is damaged. Pillow may raise any exception type.
    """
    with Image.open(io.BytesIO(body)) as image:
        return turn_image(eight_bit_image(image), orientation(image, body)).convert("RGB")
