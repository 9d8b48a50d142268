"""Image resizer: it checks, decodes, resizes and encodes a body with img2dataset's own resizer.

No other file imports img2dataset.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# OpenCV and albumentations, which img2dataset uses, read these variables as they are imported
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))  # with OpenCV's default, one image may take 4 GB

import cv2
import numpy as np
from PIL import Image

from ...images.kinds import JPEG, is_avif, is_image
from ...images.upright import avif_bits, eight_bit, orientation, turn
from ..outcomes import ImageError, ResizedImage
from ..settings import DownloadSettings

Image.MAX_IMAGE_PIXELS = None  # Pillow reads only headers here, and `max_pixels` limits the sizes that they state

_HEADERS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF")
"""Pillow's names of the formats whose headers are read."""
_FILTERED = frozenset({"image too small", "image area too large", "aspect ratio too large"})
"""Messages of img2dataset's resizer for images that its filters reject."""
_UNDECODABLE = "Image decoding error"
"""Message of img2dataset's resizer for bytes that OpenCV cannot decode."""
_UNENCODABLE = "cannot store"
"""Start of our message for pixels that OpenCV cannot encode."""
_LONGEST_SIDES = {"jpg": 65_500, "webp": 16_383}
"""Longest side in pixels that each format can store; PNG can store more than `max_pixels` allows."""
_MARGIN = 1.25
"""Least ratio of a reduced JPEG side to its target side; below it, the resized image is blurred."""
_REDUCED_COLOUR_FLAGS = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_REDUCED_GREY_FLAGS = {
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8
}  # fmt: skip


def _load_resizer() -> Any:
    """Import img2dataset's module `resizer` alone: its package imports torch, Ray and W&B, which takes seconds."""
    package = importlib.util.find_spec("img2dataset")
    assert package is not None
    sys.modules.setdefault("img2dataset", importlib.util.module_from_spec(package))
    from img2dataset import resizer

    # the original replaces stdout and stderr for each image; a decoder process does that once
    resizer.SuppressStdoutStderr = contextlib.nullcontext
    resizer.cv2 = _codec
    return resizer


class _Codec:
    """Replacement of OpenCV in img2dataset's resizer: it returns decoded pixels, and explains encoding failures."""

    def __init__(self) -> None:
        self.pixels: np.ndarray | None = None
        """Pixels that the next `imdecode` returns."""

    def __getattr__(self, name: str) -> Any:
        return getattr(cv2, name)

    def imdecode(self, buffer: np.ndarray, flags: int) -> np.ndarray | None:
        """Return the prepared pixels, once."""
        pixels, self.pixels = self.pixels, None
        return pixels

    def imencode(self, extension: str, pixels: np.ndarray, params: Sequence[int] = ()) -> tuple[bool, np.ndarray]:
        """Encode like OpenCV, but raise if the format cannot store the image.

        Raises:
            ValueError: the image is too large for the format.
        """
        success, data = cv2.imencode(extension, pixels, params=params)
        if not success:
            raise ValueError(_encoding_failure(extension[1:], pixels.shape[1], pixels.shape[0]))
        return success, data


_codec = _Codec()
_upstream = _load_resizer()


class ImageResizer:
    """Resizer and encoder of images. With `decode_mode` `exact`, its bytes are those of img2dataset."""

    def __init__(self, settings: DownloadSettings) -> None:
        self._settings = settings
        self._max_area = settings.max_image_area or float("inf")
        self._max_ratio = settings.max_aspect_ratio or float("inf")
        self._exact: Any = _upstream.Resizer(
            image_size=settings.image_size,
            resize_mode=settings.resize_mode,
            resize_only_if_bigger=settings.resize_only_if_bigger,
            encode_format=settings.encode_format,
            encode_quality=settings.encode_quality,
            min_image_size=settings.min_image_size,
            max_image_area=self._max_area,
            max_aspect_ratio=self._max_ratio,
        )

    def __call__(self, body: bytes) -> ResizedImage:
        """Check, decode, resize and encode the body of a response.

        Raises:
            ImageError: the body gives no image; any of `IMAGE_OUTCOMES`.
        """
        if not is_image(body):
            raise ImageError("not_image", f"first bytes {body[:8]!r}")
        header = _read_header(body, self._settings.max_pixels)
        if self._settings.exif_orientation == "ignore":
            header.orientation = 1
        width, height = header.upright_size
        if width * height > self._settings.max_pixels:
            raise ImageError("too_many_pixels", f"{width} x {height}")
        if self._settings.decode_mode == "fast" and body.startswith(JPEG) and self._passes_filters(width, height):
            target = self._target(width, height)
            reduction = _reduction((width, height), target)
            if reduction > 1:
                return self._resize_reduced(body, header, target, reduction)
        _codec.pixels = _decode(body, header.orientation)
        data, new_width, new_height, width, height, error = self._exact(io.BytesIO())
        if error is not None:
            raise ImageError(_outcome(error), error[:200])
        return ResizedImage(data, new_width, new_height, width, height)

    def _passes_filters(self, width: int, height: int) -> bool:
        """Return whether the filters accept an image of this size; img2dataset's resizer reports a rejection."""
        shorter, longer = sorted((width, height))
        too_small = shorter < max(1, self._settings.min_image_size)
        return not too_small and width * height <= self._max_area and longer / shorter <= self._max_ratio

    def _target(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of the resized image, before it is cropped or padded."""
        mode = self._settings.resize_mode
        if mode == "no":
            return width, height
        side = (min if mode in ("keep_ratio", "center_crop") else max)(width, height)
        scale = self._settings.image_size / side
        return max(1, round(width * scale)), max(1, round(height * scale))

    def _resize_reduced(self, body: bytes, header: _Header, target: tuple[int, int], reduction: int) -> ResizedImage:
        """Decode a JPEG at a reduced size, then resize and encode it like img2dataset."""
        flags = (_REDUCED_GREY_FLAGS if header.mode == "L" else _REDUCED_COLOUR_FLAGS)[reduction]
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
        try:
            pixels = cv2.imdecode(np.frombuffer(body, np.uint8), flags)
            if pixels is None:
                raise ImageError("decode", _UNDECODABLE)
            pixels = turn(pixels, header.orientation)
            # as close to an area resize of the full image as an area resize of the reduced one, in a third of the time
            pixels = self._fit(cv2.resize(pixels, target, interpolation=cv2.INTER_LINEAR))
            encoding = self._exact.encode_params
            data = _codec.imencode(f".{self._settings.encode_format}", pixels, params=encoding)[1].tobytes()
        except (cv2.error, MemoryError, ValueError) as error:
            raise ImageError(_outcome(str(error)), str(error)[:200]) from None
        return ResizedImage(data, pixels.shape[1], pixels.shape[0], *header.upright_size)

    def _fit(self, pixels: np.ndarray) -> np.ndarray:
        """Crop or pad resized pixels `[H, W]` or `[H, W, 3]` to a square, if the resize mode asks for one."""
        side = self._settings.image_size
        height, width = pixels.shape[:2]
        if self._settings.resize_mode == "center_crop":
            top, left = (height - side) // 2, (width - side) // 2
            return pixels[top : top + side, left : left + side]
        if self._settings.resize_mode == "border":
            top, left = (side - height) // 2, (side - width) // 2
            white = [255] * 3
            return cv2.copyMakeBorder(
                pixels, top, side - height - top, left, side - width - left, cv2.BORDER_CONSTANT, value=white
            )
        return pixels


@dataclass
class _Header:
    """Stored size in pixels, Pillow's mode, and the EXIF orientation to apply."""

    width: int = 0
    height: int = 0
    mode: str = ""
    orientation: int = 1

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height after the orientation is applied."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def _read_header(body: bytes, max_pixels: int) -> _Header:
    """Read the header with Pillow. If Pillow cannot read it, the size is 0 x 0, and OpenCV's own limit applies.

    Above `max_pixels` the orientation is not read, because Pillow decodes some images to find it.
    """
    try:
        with Image.open(io.BytesIO(body), formats=_HEADERS) as image:
            header = _Header(image.width, image.height, image.mode)
            if image.width * image.height <= max_pixels:
                header.orientation = orientation(image, body)
            return header
    except Exception:  # Pillow raises many types, among them SyntaxError and struct.error
        return _Header()


def _decode(body: bytes, orientation: int) -> np.ndarray:
    """Decode to upright pixels of 8 bits: `[H, W]` grey, or `[H, W, C]` in OpenCV's order BGR or BGRA.

    Upright images of 8 bits have OpenCV's pixels, as in img2dataset.

    Raises:
        ImageError: the outcome is `decode` or `too_many_pixels`.
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise ImageError("decode", _UNDECODABLE)
        if pixels.dtype != np.uint8:
            pixels = eight_bit(pixels, avif_bits(body) if is_avif(body) else 16)
        return turn(pixels, orientation) if orientation > 1 else pixels
    except (cv2.error, ValueError) as error:
        raise ImageError(_outcome(str(error)), str(error)[:200]) from None


def _reduction(size: tuple[int, int], target: tuple[int, int]) -> int:
    """Return the largest of 8, 4 and 2 that reduces the sides of a JPEG to well above the target; 1 if none does."""
    for reduction in (8, 4, 2):
        if all(side >= target_side * _MARGIN * reduction for side, target_side in zip(size, target, strict=True)):
            return reduction
    return 1


def _encoding_failure(encode_format: str, width: int, height: int) -> str:
    """Return the reason why OpenCV could not encode an image."""
    side = _LONGEST_SIDES.get(encode_format)
    if side is None or max(width, height) <= side:
        return f"{_UNENCODABLE} {width} x {height} as {encode_format}"
    return (
        f"{_UNENCODABLE} {width} x {height} as {encode_format}, which holds {side:,} pixels a side; "
        "download.resize_mode=keep_ratio_largest or encode_format=png takes it"
    )


def _outcome(error: str) -> str:
    """Return the outcome for an error message of the resizer or OpenCV."""
    if error in _FILTERED:
        return "filtered"
    if error.startswith(_UNENCODABLE):
        return "encode"
    return "too_many_pixels" if "CV_IO_MAX_IMAGE" in error else "decode"
