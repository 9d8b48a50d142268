"""Detection of supported image formats from the first bytes of a file."""

from __future__ import annotations

SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*")
"""First bytes of JPEG, PNG, GIF, BMP and TIFF files. GIF and TIFF each have two variants."""
JPEG = SIGNATURES[0]


def is_image(body: bytes) -> bool:
    """Return True if the first bytes of a file are those of a JPEG, PNG, GIF, BMP, TIFF, WebP or AVIF image.

    Files in other formats are never passed to a decoder.
    """
    if body.startswith(SIGNATURES):
        return True
    return (body[:4] == b"RIFF" and body[8:12] == b"WEBP") or is_avif(body)


def is_avif(body: bytes) -> bool:
    """Return True if the first bytes of a file are those of an AVIF image."""
    return body[4:12] in (b"ftypavif", b"ftypavis")
