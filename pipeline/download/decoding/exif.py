"""EXIF tags of image files as JSON, in the same form as img2dataset's."""

from __future__ import annotations

import io
import json
import logging

import exifread

logging.getLogger("exifread").setLevel(logging.CRITICAL)  # it warns about each file without EXIF


def read_exif(body: bytes) -> str | None:
    """Return the EXIF tags of an image file as the text of a JSON object, such as `{"Image Make": "Canon"}`.

    The text contains only ASCII characters. The object is empty if the file has no EXIF, or has a format whose EXIF the
    `exifread` package cannot read, such as PNG. Return None if reading the EXIF fails.

    Args:
        body: image file.
    """
    try:
        tags = exifread.process_file(io.BytesIO(body), details=False)
        return json.dumps({name: str(value).strip() for name, value in tags.items() if value is not None})
    except Exception:  # exifread raises many exception types for damaged EXIF
        return None
