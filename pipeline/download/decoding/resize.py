"""Bytes -> checked, resized, encoded image, by img2dataset's own resizer. The only file that imports img2dataset."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# read when OpenCV and albumentations, which img2dataset resizes with, are imported
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))  # OpenCV's own default lets one image take 4 GB

import cv2
import numpy as np
from PIL import Image

from ...images.kinds import JPEG, is_avif, is_image
from ...images.upright import avif_bits, eight_bit, orientation, turn
from ..outcomes import ImageError, ResizedImage
from ..settings import DownloadSettings

Image.MAX_IMAGE_PIXELS = None  # only headers are read with Pillow here, and `max_pixels` bounds what they may say

_HEADERS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF")
"""Pillow's names of what may be read."""
_FILTERED = frozenset({"image too small", "image area too large", "aspect ratio too large"})
"""What img2dataset's resizer says of images that its filters leave out."""
_UNDECODABLE = "Image decoding error"
"""img2dataset's message for bytes that OpenCV cannot decode."""
_UNENCODABLE = "cannot store"
"""The start of our message for pixels that OpenCV cannot encode."""
_LONGEST_SIDES = {"jpg": 65_500, "webp": 16_383}
"""Pixels on one side that the encoders of a format accept; PNG holds more than `max_pixels` lets through."""
_MARGIN = 1.25
"""Pixels that a JPEG's decoder leaves for one of the target: nearer to it, what is resized from them is blurred."""
_REDUCED_COLOUR = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_REDUCED_GREY = {
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8
}  # fmt: skip


def _load_resizer() -> Any:
    """img2dataset's module `resizer`. The package itself would import torch, Ray and W&B, which takes seconds."""
    package = importlib.util.find_spec("img2dataset")
    assert package is not None
    sys.modules.setdefault("img2dataset", importlib.util.module_from_spec(package))
    from img2dataset import resizer

    # its own one swaps the process's stdout and stderr for each image, which a decoding process does once
    resizer.SuppressStdoutStderr = contextlib.nullcontext
    resizer.cv2 = _codec
    return resizer


class _Codec:
    """OpenCV for img2dataset's resizer, which decodes pixels that exist already, and names what it cannot encode."""

    def __init__(self) -> None:
        self.pixels: np.ndarray | None = None
        """What the next `imdecode` returns."""

    def __getattr__(self, name: str) -> Any:
        return getattr(cv2, name)

    def imdecode(self, buffer: np.ndarray, flags: int) -> np.ndarray | None:
        """Return the pixels that wait, once."""
        pixels, self.pixels = self.pixels, None
        return pixels

    def imencode(self, extension: str, pixels: np.ndarray, params: Sequence[int] = ()) -> tuple[bool, np.ndarray]:
        """Encode as OpenCV does.

        Raises:
            ValueError: the format holds no image of this size.
        """
        done, data = cv2.imencode(extension, pixels, params=params)
        if not done:
            raise ValueError(_encoding_failure(extension[1:], pixels.shape[1], pixels.shape[0]))
        return done, data


_codec = _Codec()
_upstream = _load_resizer()


class ImageResizer:
    """Resizes and encodes images: as img2dataset does, byte for byte, if `decode_mode` is `exact`."""

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
            ImageError: the outcome is `not_image`, `too_many_pixels`, `filtered`, `decode` or `encode`.
        """
        if not is_image(body):
            raise ImageError("not_image", f"first bytes {body[:8]!r}")
        header = _read_header(body, self._settings.max_pixels)
        if self._settings.exif_orientation == "ignore":
            header.orientation = 1
        width, height = header.upright_size
        if width * height > self._settings.max_pixels:
            raise ImageError("too_many_pixels", f"{width} x {height}")
        if self._settings.decode_mode == "fast" and body.startswith(JPEG) and self._keeps(width, height):
            target = self._target(width, height)
            reduction = _reduction((width, height), target)
            if reduction > 1:
                return self._resize_reduced(body, header, target, reduction)
        _codec.pixels = _decode(body, header.orientation)
        data, new_width, new_height, width, height, error = self._exact(io.BytesIO())
        if error is not None:
            raise ImageError(_outcome(error), error[:200])
        return ResizedImage(data, new_width, new_height, width, height)

    def _keeps(self, width: int, height: int) -> bool:
        """Whether the filters pass an image of this size. What they leave out is left to the resizer to name."""
        shorter, longer = sorted((width, height))
        small = shorter < max(1, self._settings.min_image_size)
        return not small and width * height <= self._max_area and longer / shorter <= self._max_ratio

    def _target(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an image is resized to, before it is cropped or padded."""
        mode = self._settings.resize_mode
        if mode == "no":
            return width, height
        side = (min if mode in ("keep_ratio", "center_crop") else max)(width, height)
        scale = self._settings.image_size / side
        return max(1, round(width * scale)), max(1, round(height * scale))

    def _resize_reduced(self, body: bytes, header: _Header, target: tuple[int, int], reduction: int) -> ResizedImage:
        """Do as the resizer does, from pixels that the JPEG decoder has scaled down already."""
        flags = (_REDUCED_GREY if header.mode == "L" else _REDUCED_COLOUR)[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            pixels = cv2.imdecode(np.frombuffer(body, np.uint8), flags)
            if pixels is None:
                raise ImageError("decode", _UNDECODABLE)
            pixels = turn(pixels, header.orientation)
            # as near to the area resize of all pixels as that of the few that are left would be, at a third of its time
            pixels = self._fit(cv2.resize(pixels, target, interpolation=cv2.INTER_LINEAR))
            encoding = self._exact.encode_params
            data = _codec.imencode(f".{self._settings.encode_format}", pixels, params=encoding)[1].tobytes()
        except (cv2.error, MemoryError, ValueError) as error:
            raise ImageError(_outcome(str(error)), str(error)[:200]) from None
        return ResizedImage(data, pixels.shape[1], pixels.shape[0], *header.upright_size)

    def _fit(self, pixels: np.ndarray) -> np.ndarray:
        """Crop or pad resized pixels `[H, W]` or `[H, W, 3]` to a square, in the modes that do."""
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
    """Sizes as stored, Pillow's mode, and the orientation that is to be applied."""

    width: int = 0
    height: int = 0
    mode: str = ""
    orientation: int = 1

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height after the turn."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def _read_header(body: bytes, max_pixels: int) -> _Header:
    """The header; no pixels where Pillow cannot tell, since OpenCV then has a bound of its own.

    Above `max_pixels` the orientation is not read, since Pillow decodes some images to find it.
    """
    try:
        with Image.open(io.BytesIO(body), formats=_HEADERS) as image:
            header = _Header(image.width, image.height, image.mode)
            if image.width * image.height <= max_pixels:
                header.orientation = orientation(image, body)
            return header
    except Exception:  # Pillow raises many kinds, among them SyntaxError and struct.error
        return _Header()


def _decode(body: bytes, orientation: int) -> np.ndarray:
    """Decode to upright pixels of 8 bits, `[H, W]` grey, or `[H, W, C]` in OpenCV's order BGR or BGRA.

    Pixels of 8 bits that need no turn are OpenCV's, as in img2dataset.

    Raises:
        ImageError: `decode`, or `too_many_pixels`.
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
    """The largest of 8, 4 and 2 that a JPEG's sides may be divided by and stay well above the target; else 1."""
    for reduction in (8, 4, 2):
        if all(side >= wanted * _MARGIN * reduction for side, wanted in zip(size, target, strict=True)):
            return reduction
    return 1


def _encoding_failure(encode_format: str, width: int, height: int) -> str:
    """Why OpenCV could not encode an image."""
    side = _LONGEST_SIDES.get(encode_format)
    if side is None or max(width, height) <= side:
        return f"{_UNENCODABLE} {width} x {height} as {encode_format}"
    return (
        f"{_UNENCODABLE} {width} x {height} as {encode_format}, which holds {side:,} pixels a side; "
        "download.resize_mode=keep_ratio_largest or encode_format=png takes it"
    )


def _outcome(error: str) -> str:
    """The outcome for what the resizer or OpenCV says."""
    if error in _FILTERED:
        return "filtered"
    if error.startswith(_UNENCODABLE):
        return "encode"
    return "too_many_pixels" if "CV_IO_MAX_IMAGE" in error else "decode"
