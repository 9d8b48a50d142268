"""Sizes of resized images, as img2dataset computes them."""

from __future__ import annotations

import cv2
import numpy as np

from ..settings import DownloadSettings

_MARGIN = 1.25
"""Minimum size to which the JPEG decoder may reduce an image, as a multiple of the size after resizing.

The minimum applies to width and height separately: with 1.25, the decoded image is at least 25% wider and 25% higher
than the resized image. With a smaller value, the resized image would be blurred.
"""


def must_resize(settings: DownloadSettings, width: int, height: int) -> bool:
    """Return True if a `width` x `height` pixel image must be resized, cropped or padded."""
    mode, side = settings.resize_mode, _decisive_side(settings, width, height)
    if mode == "no":
        return False
    if side == settings.image_size:  # img2dataset neither crops nor pads an image that is not bigger
        return mode in ("center_crop", "border") and width != height and not settings.resize_only_if_bigger
    return side > settings.image_size or not settings.resize_only_if_bigger


def target_size(settings: DownloadSettings, width: int, height: int) -> tuple[int, int]:
    """Return the width and height to which an image is resized, before cropping or padding.

    If the resize mode is `no`, return the size unchanged.

    Args:
        settings: download settings.
        width: width of the upright image in pixels.
        height: height of the upright image in pixels.
    """
    if settings.resize_mode == "no":
        return width, height
    scale = settings.image_size / _decisive_side(settings, width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _decisive_side(settings: DownloadSettings, width: int, height: int) -> int:
    """Return the side of an image that is resized to `image_size`: the shorter or the longer side."""
    return (min if settings.resize_mode in ("keep_ratio", "center_crop") else max)(width, height)


def fit(settings: DownloadSettings, pixels: np.ndarray) -> np.ndarray:
    """Crop or pad resized pixels to a square if the resize mode is `center_crop` or `border`.

    Padding is white. In the other modes, return the pixels unchanged.

    Args:
        settings: download settings.
        pixels: grayscale pixels `[H, W]` (height, width) or BGR pixels `[H, W, 3]`, resized to the size that
            `target_size` returns.
    """
    side = settings.image_size
    height, width = pixels.shape[:2]
    if settings.resize_mode == "center_crop":
        top, left = (height - side) // 2, (width - side) // 2
        return pixels[top : top + side, left : left + side]
    if settings.resize_mode == "border":
        top, left = (side - height) // 2, (side - width) // 2
        white = [255] * 3
        return cv2.copyMakeBorder(
            pixels, top, side - height - top, left, side - width - left, cv2.BORDER_CONSTANT, value=white
        )
    return pixels


def reduction(size: tuple[int, int], target: tuple[int, int]) -> int:
    """Return the factor by which both sides of a JPEG are reduced when it is decoded: 8, 4, 2, or 1 for full size.

    The result is the largest factor for which each reduced side is at least `_MARGIN` times its target side.

    Args:
        size: width and height of the upright image.
        target: width and height after resizing.
    """
    for factor in (8, 4, 2):
        if all(side >= target_side * _MARGIN * factor for side, target_side in zip(size, target, strict=True)):
            return factor
    return 1
