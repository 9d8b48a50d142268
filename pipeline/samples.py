"""One image with its caption, from whatever input."""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})


@dataclass(frozen=True)
class Sample:
    """One image with its caption, either of which may be missing."""

    key: str
    image: bytes | None
    caption: bytes | None
    """UTF-8 text, not yet decoded."""
    error: str | None = None
    """Why it could not be read: an outcome to count, and after a colon what happened."""
