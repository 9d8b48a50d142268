"""Detection of supported image formats from the first bytes of a file."""

from __future__ import annotations

JPEG = b"\xff\xd8\xff"
"""First bytes of a JPEG file."""
_SIGNATURES = {
    JPEG: "jpg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"BM": "bmp",
    b"II*\x00": "tiff",
    b"MM\x00*": "tiff",
}
"""File extensions of the formats that are recognised by their first bytes alone, keyed by these bytes."""


def image_extension(body: bytes) -> str | None:
    """Return the file extension of an image in a supported format: jpg, png, gif, bmp, tiff, webp or avif.

    Return None if the first bytes are those of no supported format. Such files are never passed to a decoder.

    Args:
        body: bytes of the file. Only the first 12 are examined.
    """
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "webp"
    if is_avif(body):
        return "avif"
    return next((extension for start, extension in _SIGNATURES.items() if body.startswith(start)), None)


def is_image(body: bytes) -> bool:
    """Return True if the first bytes of a file are those of an image in a supported format."""
    return image_extension(body) is not None


def is_avif(body: bytes) -> bool:
    """Return True if the first bytes of a file are those of an AVIF image."""
    return body[4:12] in (b"ftypavif", b"ftypavis")
