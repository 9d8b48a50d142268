"""Image resizer: checks, decodes, resizes and encodes images, using img2dataset's resizer.

Only this module and `img2dataset_engine/process.py` may import img2dataset.
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

# img2dataset uses OpenCV and albumentations, which read these variables on import
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))  # OpenCV's default lets one image take 4 GB

import cv2
import numpy as np
from PIL import Image

from ...images.kinds import JPEG, is_avif, is_image
from ...images.upright import avif_bits, eight_bit, orientation, turn
from ..outcomes import ImageError, ResizedImage
from ..settings import DownloadSettings

Image.MAX_IMAGE_PIXELS = None  # Pillow only reads headers here, and `max_pixels` limits the sizes in headers

_HEADERS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF")
"""Image formats that Pillow may detect when it reads an image header, under Pillow's names."""
_FILTERED = frozenset({"image too small", "image area too large", "aspect ratio too large"})
"""Error messages that img2dataset's resizer returns when its filters reject an image."""
_UNDECODABLE = "Image decoding error"
"""Error message that img2dataset's resizer returns when OpenCV cannot decode an image."""
_UNENCODABLE = "cannot store"
"""First words of the error message that `_Codec.imencode` raises when OpenCV cannot encode an image."""
_LONGEST_SIDES = {"jpg": 65_500, "webp": 16_383}
"""Maximum width and height in pixels of an image in each output format. PNG has a far higher limit."""
_MARGIN = 1.25
"""Minimum size to which the JPEG decoder may reduce an image, as a multiple of the size after resizing.

The minimum applies to width and height separately: with 1.25, the decoded image is at least 25% wider and 25% higher
than the resized image. With a smaller value, the resized image would be blurred.
"""
_REDUCED_COLOUR_FLAGS = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_REDUCED_GREY_FLAGS = {
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8
}  # fmt: skip


def _load_resizer() -> Any:
    """Import and return img2dataset's `resizer` module without running the package's `__init__.py`.

    That file imports torch, Ray and W&B, which takes seconds. The returned module uses `_codec` in place of `cv2`, so
    that it receives pixels that are already decoded.
    """
    package = importlib.util.find_spec("img2dataset")
    assert package is not None
    sys.modules.setdefault("img2dataset", importlib.util.module_from_spec(package))
    from img2dataset import resizer

    # img2dataset redirects stdout and stderr for each image; a decoder process has already done so once
    resizer.SuppressStdoutStderr = contextlib.nullcontext
    resizer.cv2 = _codec
    return resizer


class _Codec:
    """Stand-in for the `cv2` module that img2dataset's resizer uses.

    `imdecode` does not decode: it returns the pixels that were stored in `pixels` before the call. If encoding fails,
    `imencode` raises an error that gives the reason. All other attributes are those of `cv2`.
    """

    def __init__(self) -> None:
        self.pixels: np.ndarray | None = None
        """Pixels that the next call of `imdecode` returns."""

    def __getattr__(self, name: str) -> Any:
        return getattr(cv2, name)

    def imdecode(self, buffer: np.ndarray, flags: int) -> np.ndarray | None:
        """Return the pixels stored in `pixels`, and reset `pixels` to None.

        Both arguments are ignored, because the image has already been decoded.
        """
        pixels, self.pixels = self.pixels, None
        return pixels

    def imencode(self, extension: str, pixels: np.ndarray, params: Sequence[int] = ()) -> tuple[bool, np.ndarray]:
        """Encode pixels like OpenCV's `imencode`, but raise an error with the reason if encoding fails.

        Raises:
            ValueError: OpenCV cannot encode the image, for example because it is too large for the format.
        """
        success, data = cv2.imencode(extension, pixels, params=params)
        if not success:
            raise ValueError(_encoding_failure(extension[1:], pixels.shape[1], pixels.shape[0]))
        return success, data


_codec = _Codec()
_upstream = _load_resizer()


class ImageResizer:
    """Callable that checks, decodes, resizes and encodes one image.

    With `decode_mode=exact`, the output is byte-identical to img2dataset's, except for images that are rotated or
    converted to 8 bits per channel.
    """

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
        """Check, decode, resize and encode the image in a response body.

        Raises:
            ImageError: no image can be produced from the body. The outcome can be any of `IMAGE_OUTCOMES`.
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
        """Return True if a `width` x `height` pixel image passes the size and aspect ratio filters in the settings.

        Also return False for 0 x 0, which stands for an unknown size. If the result is False, the caller passes the
        image to img2dataset's resizer, which applies the same filters and reports the reason for a rejection.

        Args:
            width: width of the upright image in pixels.
            height: height of the upright image in pixels.
        """
        shorter, longer = sorted((width, height))
        too_small = shorter < max(1, self._settings.min_image_size)
        return not too_small and width * height <= self._max_area and longer / shorter <= self._max_ratio

    def _target(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height to which an image is resized, before cropping or padding.

        If the resize mode is `no`, return the size unchanged.

        Args:
            width: width of the upright image in pixels.
            height: height of the upright image in pixels.
        """
        mode = self._settings.resize_mode
        if mode == "no":
            return width, height
        side = (min if mode in ("keep_ratio", "center_crop") else max)(width, height)
        scale = self._settings.image_size / side
        return max(1, round(width * scale)), max(1, round(height * scale))

    def _resize_reduced(self, body: bytes, header: _Header, target: tuple[int, int], reduction: int) -> ResizedImage:
        """Decode a JPEG at a reduced size, then resize and encode it like img2dataset.

        Args:
            body: JPEG file.
            header: size, mode and orientation of the image.
            target: width and height after resizing, before cropping or padding.
            reduction: factor by which the decoder reduces both sides: 2, 4 or 8.

        Raises:
            ImageError: the image cannot be decoded or encoded.
        """
        flags = (_REDUCED_GREY_FLAGS if header.mode == "L" else _REDUCED_COLOUR_FLAGS)[reduction]
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
        try:
            pixels = cv2.imdecode(np.frombuffer(body, np.uint8), flags)
            if pixels is None:
                raise ImageError("decode", _UNDECODABLE)
            pixels = turn(pixels, header.orientation)
            # on the reduced image, linear interpolation takes a third of the time of area interpolation, and its result
            # is equally close to an area resize of the full image
            pixels = self._fit(cv2.resize(pixels, target, interpolation=cv2.INTER_LINEAR))
            encoding = self._exact.encode_params
            data = _codec.imencode(f".{self._settings.encode_format}", pixels, params=encoding)[1].tobytes()
        except (cv2.error, MemoryError, ValueError) as error:
            raise ImageError(_outcome(str(error)), str(error)[:200]) from None
        return ResizedImage(data, pixels.shape[1], pixels.shape[0], *header.upright_size)

    def _fit(self, pixels: np.ndarray) -> np.ndarray:
        """Crop or pad resized pixels to a square if the resize mode is `center_crop` or `border`.

        Padding is white. In the other modes, return the pixels unchanged.

        Args:
            pixels: grayscale pixels `[H, W]` (height, width) or BGR pixels `[H, W, 3]`, resized to the size that
                `_target` returns.
        """
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
    """Properties of an image file, read from its header.

    `width` and `height` are in pixels, before rotation. `mode` is Pillow's name for the pixel format, such as `RGB`.
    `orientation` is the EXIF orientation to apply after decoding, from 1 (upright) to 8.
    """

    width: int = 0
    height: int = 0
    mode: str = ""
    orientation: int = 1

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height after the orientation is applied."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def _read_header(body: bytes, max_pixels: int) -> _Header:
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
        with Image.open(io.BytesIO(body), formats=_HEADERS) as image:
            header = _Header(image.width, image.height, image.mode)
            if image.width * image.height <= max_pixels:
                header.orientation = orientation(image, body)
            return header
    except Exception:  # Pillow raises many exception types, including SyntaxError and struct.error
        return _Header()


def _decode(body: bytes, orientation: int) -> np.ndarray:
    """Decode an image to upright 8-bit pixels.

    If the image is already upright with 8 bits per channel, OpenCV's pixels are returned unchanged, as in img2dataset.

    Args:
        body: image file.
        orientation: EXIF orientation (1 to 8) to apply.

    Returns:
        Grayscale pixels `[H, W]` (height, width), or pixels `[H, W, C]` whose C channels are in OpenCV's order, BGR or
        BGRA.

    Raises:
        ImageError: the image cannot be decoded. The outcome is `decode` or `too_many_pixels`.
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
    """Return the factor by which both sides of a JPEG are reduced when it is decoded: 8, 4, 2, or 1 for full size.

    The result is the largest factor for which each reduced side is at least `_MARGIN` times its target side.

    Args:
        size: width and height of the upright image.
        target: width and height after resizing.
    """
    for reduction in (8, 4, 2):
        if all(side >= target_side * _MARGIN * reduction for side, target_side in zip(size, target, strict=True)):
            return reduction
    return 1


def _encoding_failure(encode_format: str, width: int, height: int) -> str:
    """Return an error message that says why OpenCV could not encode a `width` x `height` pixel image."""
    side = _LONGEST_SIDES.get(encode_format)
    if side is None or max(width, height) <= side:
        return f"{_UNENCODABLE} {width} x {height} as {encode_format}"
    return (
        f"{_UNENCODABLE} {width} x {height} as {encode_format}, which holds {side:,} pixels a side; "
        "download.resize_mode=keep_ratio_largest or encode_format=png takes it"
    )


def _outcome(error: str) -> str:
    """Map an error message from img2dataset's resizer or from OpenCV to an outcome in `IMAGE_OUTCOMES`.

    The result is `filtered`, `encode` or `too_many_pixels` for the messages that indicate one of these causes. For all
    other messages, it is `decode`.
    """
    if error in _FILTERED:
        return "filtered"
    if error.startswith(_UNENCODABLE):
        return "encode"
    return "too_many_pixels" if "CV_IO_MAX_IMAGE" in error else "decode"
