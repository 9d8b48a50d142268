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
from dataclasses import replace
from typing import Any

# img2dataset uses OpenCV and albumentations, which read these variables on import
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))  # OpenCV's default lets one image take 4 GB

import cv2
import numpy as np

from ...images.kinds import JPEG, is_avif, is_image
from ...images.upright import avif_bits, eight_bit, turn
from ..outcomes import ImageError, ResizedImage
from ..settings import DownloadSettings
from .boxes import Boxes, turn_boxes
from .exif import read_exif
from .geometry import fit, must_resize, reduction, target_size
from .header import ImageHeader, read_header

_FILTERED = frozenset({"image too small", "image area too large", "aspect ratio too large"})
"""Error messages that img2dataset's resizer returns when its filters reject an image."""
_UNDECODABLE = "Image decoding error"
"""Error message that img2dataset's resizer returns when OpenCV cannot decode an image."""
_UNENCODABLE = "cannot store"
"""First words of the error message that `_Codec.imencode` raises when OpenCV cannot encode an image."""
_LONGEST_SIDES = {"jpg": 65_500, "webp": 16_383}
"""Maximum width and height in pixels of an image in each output format. PNG has a far higher limit."""
_REDUCED_COLOUR_FLAGS = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_REDUCED_GREY_FLAGS = {
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8
}  # fmt: skip


def _load_resizer() -> tuple[Any, Any]:
    """Import and return img2dataset's modules `resizer` and `blurrer` without running the package's `__init__.py`.

    That file imports torch, Ray and W&B, which takes seconds. The returned `resizer` uses `_codec` in place of `cv2`,
    so that it receives pixels that are already decoded.
    """
    package = importlib.util.find_spec("img2dataset")
    assert package is not None
    sys.modules.setdefault("img2dataset", importlib.util.module_from_spec(package))
    from img2dataset import blurrer, resizer

    # img2dataset redirects stdout and stderr for each image; a decoder process has already done so once
    resizer.SuppressStdoutStderr = contextlib.nullcontext
    resizer.cv2 = _codec
    return resizer, blurrer


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
_upstream, _upstream_blurrer = _load_resizer()


class ImageResizer:
    """Callable that checks, decodes, resizes, blurs and encodes one image.

    With `decode_mode=exact`, the output is byte-identical to img2dataset's, except for images that are rotated or
    converted to 8 bits per channel.
    """

    def __init__(self, settings: DownloadSettings) -> None:
        self._settings = settings
        self._max_area = settings.max_image_area or float("inf")
        self._max_ratio = settings.max_aspect_ratio or float("inf")
        self._blur: Any = _upstream_blurrer.BoundingBoxBlurrer()
        self._exact: Any = _upstream.Resizer(
            image_size=settings.image_size,
            resize_mode=settings.resize_mode,
            resize_only_if_bigger=settings.resize_only_if_bigger,
            upscale_interpolation=settings.upscale_interpolation,
            downscale_interpolation=settings.downscale_interpolation,
            encode_format=settings.encoder,
            encode_quality=settings.encode_quality,
            min_image_size=settings.min_image_size,
            max_image_area=self._max_area,
            max_aspect_ratio=self._max_ratio,
            blurrer=self._blur,
        )

    def __call__(self, body: bytes, boxes: Boxes = ()) -> ResizedImage:
        """Check, decode, resize, blur and encode the image in a response body.

        With `encode_format=original`, an image that needs no resizing or blurring is not encoded: its bytes are the
        response body.

        Args:
            body: response body.
            boxes: boxes to blur.

        Raises:
            ImageError: no image can be produced from the body. The outcome can be any of `IMAGE_OUTCOMES`.
        """
        image = self._resize(body, boxes)
        return replace(image, exif=read_exif(body)) if self._settings.extract_exif else image

    def _resize(self, body: bytes, boxes: Boxes) -> ResizedImage:
        """Do what `__call__` does, except for reading the EXIF tags."""
        if not is_image(body):
            raise ImageError("not_image", f"first bytes {body[:8]!r}")
        header = read_header(body, self._settings.max_pixels)
        if self._settings.exif_orientation == "ignore":
            header.orientation = 1
        width, height = header.upright_size
        if width * height > self._settings.max_pixels:
            raise ImageError("too_many_pixels", f"{width} x {height}")
        boxes = turn_boxes(boxes, header.orientation)
        if self._settings.decode_mode == "fast" and body.startswith(JPEG) and self._passes_filters(width, height):
            target = target_size(self._settings, width, height)
            factor = reduction((width, height), target)
            if factor > 1:
                return self._resize_reduced(body, header, target, factor, boxes)
        pixels = _decode(body, header.orientation)
        if self._keeps_bytes(header, pixels, boxes):
            return ResizedImage(body, pixels.shape[1], pixels.shape[0], pixels.shape[1], pixels.shape[0])
        _codec.pixels = pixels
        del pixels  # img2dataset drops them after resizing, to save memory
        data, new_width, new_height, width, height, error = self._exact(io.BytesIO(), boxes or None)
        if error is not None:
            raise ImageError(_outcome(error), error[:200])
        return ResizedImage(data, new_width, new_height, width, height)

    def _keeps_bytes(self, header: ImageHeader, pixels: np.ndarray, boxes: Boxes) -> bool:
        """Return True if an image is stored as it came, with `encode_format=original`.

        It must pass the filters and need no resizing or blurring. Pillow must be able to read its header, because the
        `embed` stage reads images with Pillow.

        Args:
            header: properties of the image file.
            pixels: decoded pixels `[H, W]` or `[H, W, C]` of the upright image.
            boxes: boxes to blur.
        """
        height, width = pixels.shape[:2]
        is_readable = header.width > 0
        if self._settings.encode_format != "original" or boxes or not is_readable:
            return False
        return self._passes_filters(width, height) and not must_resize(self._settings, width, height)

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

    def _resize_reduced(
        self, body: bytes, header: ImageHeader, target: tuple[int, int], factor: int, boxes: Boxes
    ) -> ResizedImage:
        """Decode a JPEG at a reduced size, then resize and encode it like img2dataset.

        Args:
            body: JPEG file.
            header: size, mode and orientation of the image.
            target: width and height after resizing, before cropping or padding.
            factor: factor by which the decoder reduces both sides: 2, 4 or 8.
            boxes: boxes to blur, relative to the upright image.

        Raises:
            ImageError: the image cannot be decoded or encoded.
        """
        flags = (_REDUCED_GREY_FLAGS if header.mode == "L" else _REDUCED_COLOUR_FLAGS)[factor]
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
        try:
            pixels = cv2.imdecode(np.frombuffer(body, np.uint8), flags)
            if pixels is None:
                raise ImageError("decode", _UNDECODABLE)
            pixels = turn(pixels, header.orientation)
            pixels = cv2.resize(pixels, target, interpolation=self._reduced_interpolation())
            pixels = fit(self._settings, self._blur(pixels, boxes))
            encoding = self._exact.encode_params
            data = _codec.imencode(f".{self._settings.encoder}", pixels, params=encoding)[1].tobytes()
        except (cv2.error, MemoryError, ValueError) as error:
            raise ImageError(_outcome(str(error)), str(error)[:200]) from None
        return ResizedImage(data, pixels.shape[1], pixels.shape[0], *header.upright_size)

    def _reduced_interpolation(self) -> int:
        """Return OpenCV's constant for the interpolation of an image that was decoded at a reduced size."""
        name = self._settings.downscale_interpolation
        # on the reduced image, linear interpolation takes a third of the time of area interpolation, and its result is
        # equally close to an area resize of the full image
        constant: int = _upstream.inter_str_to_cv2("linear" if name == "area" else name)
        return constant


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
