"""Messages between the fetching process and its decoder processes.

Messages contain raw bytes and JSON, never pickles. If a malicious image takes over a decoder process, that process can
send a false answer, but it cannot run code in the fetching process.
"""

from __future__ import annotations

import json
import struct

from ...images.kinds import is_image
from ...json_text import parse_json
from ..outcomes import IMAGE_OUTCOMES, ImageError, ResizedImage
from .boxes import Boxes

LENGTH = struct.Struct(">Q")
"""Format of the header that precedes each message: the length of the message in bytes, excluding the header."""
READY = b""
"""Empty message that a decoder process sends once it is ready to decode."""


def pack_request(body: bytes, boxes: Boxes) -> tuple[bytes, bytes]:
    """Serialize a request to a decoder process, in two parts, so that a large body is not copied.

    The parts are a line of JSON with the boxes to blur, and the response body.
    """
    return json.dumps(boxes).encode() + b"\n", body


def unpack_request(message: bytes) -> tuple[bytes, Boxes]:
    """Deserialize a request that `pack_request` serialized, into the response body and the boxes to blur."""
    head, _, body = message.partition(b"\n")
    return body, parse_json(head)


def pack(answer: ResizedImage | ImageError) -> bytes:
    """Serialize the answer of a decoder process, which is an image or an error.

    An image becomes a line of JSON (width, height, original width, original height and, if they were extracted, the
    EXIF tags), followed by the image file. An error becomes a JSON array of two strings, the outcome and the detail.
    """
    if isinstance(answer, ImageError):
        return json.dumps([answer.outcome, answer.detail]).encode()
    head = [answer.width, answer.height, answer.original_width, answer.original_height]
    return json.dumps(head if answer.exif is None else [*head, answer.exif]).encode() + b"\n" + answer.data


def unpack(message: bytes) -> ResizedImage | ImageError:
    """Deserialize an answer that `pack` serialized.

    Raises:
        ValueError: the message contains no valid answer.
    """
    head, _, data = message.partition(b"\n")
    match parse_json(head):
        case [str(outcome), str(detail)] if outcome in IMAGE_OUTCOMES:
            return ImageError(outcome, detail)
        case [int(width), int(height), int(original_width), int(original_height)] if is_image(data):
            return ResizedImage(data, width, height, original_width, original_height)
        case [int(width), int(height), int(original_width), int(original_height), str(exif)] if is_image(data):
            exif.encode("ascii")  # raises UnicodeEncodeError, a ValueError, for text that cannot be stored
            return ResizedImage(data, width, height, original_width, original_height, exif)
    raise ValueError(f"no answer of a decoding process: {head[:80]!r}")
