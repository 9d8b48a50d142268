"""Bytes -> checked, resized, encoded image, by img2dataset's own resizer. The only file that imports img2dataset."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from typing import Any

from .config import DownloadSettings
from .fetch import FetchError

# read when img2dataset brings in albumentations and OpenCV
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))  # OpenCV's own default lets one image take 4 GB

from img2dataset import resizer as upstream

# upstream's version swaps the process's stdout and stderr for each image, which threads cannot share
upstream.SuppressStdoutStderr = contextlib.nullcontext

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*")


@dataclass(frozen=True)
class ResizedImage:
    """An encoded image with its sizes in pixels."""

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int


def is_image(body: bytes) -> bool:
    """Whether the first bytes are those of JPEG, PNG, GIF, BMP, TIFF, WebP or AVIF: no other may reach a decoder."""
    if body.startswith(_SIGNATURES):
        return True
    return (body[:4] == b"RIFF" and body[8:12] == b"WEBP") or body[4:12] in (b"ftypavif", b"ftypavis")


class ImageResizer:
    """Resizes and encodes images as img2dataset does, byte for byte. Safe to share between threads."""

    def __init__(self, settings: DownloadSettings) -> None:
        self._resize: Any = upstream.Resizer(
            image_size=settings.image_size,
            resize_mode=settings.resize_mode,
            resize_only_if_bigger=settings.resize_only_if_bigger,
            encode_format=settings.encode_format,
            encode_quality=settings.encode_quality,
            min_image_size=settings.min_image_size,
            max_aspect_ratio=settings.max_aspect_ratio or float("inf"),
        )

    def __call__(self, body: bytes) -> ResizedImage:
        """Check, decode, resize and encode the body of a response.

        Raises:
            FetchError: the outcome is `not_image`, `filtered` or `decode`.
        """
        if not is_image(body):
            raise FetchError("not_image", f"first bytes {body[:8]!r}")
        data, width, height, original_width, original_height, error = self._resize(io.BytesIO(body))
        if error is not None:
            filtered = error in ("image too small", "aspect ratio too large")
            raise FetchError("filtered" if filtered else "decode", str(error)[:200])
        return ResizedImage(data, width, height, original_width, original_height)
