"""Messages between the fetching process and its decoder processes.

Messages contain raw bytes and JSON, never pickles. If a malicious image takes over a decoder process, that process can
send a false answer, but it cannot run code in the fetching process.
"""

from __future__ import annotations

import json
import struct

from ...json_text import parse_json
from ..outcomes import IMAGE_OUTCOMES, ImageError, ResizedImage

LENGTH = struct.Struct(">Q")
"""Format of the header that precedes each message: the length of the message in bytes, excluding the header."""
READY = b""
"""Empty message that a decoder process sends once it is ready to decode."""


def pack(answer: ResizedImage | ImageError) -> bytes:
    """Serialize the answer of a decoder process, which is an image or an error.

    An image becomes a line of JSON (width, height, original width and original height), followed by the encoded image.
    An error becomes a JSON array of two strings, the outcome and the detail.
    """
    if isinstance(answer, ImageError):
        return json.dumps([answer.outcome, answer.detail]).encode()
    sizes = [answer.width, answer.height, answer.original_width, answer.original_height]
    return json.dumps(sizes).encode() + b"\n" + answer.data


def unpack(message: bytes) -> ResizedImage | ImageError:
    """Deserialize an answer that `pack` serialized.

    Raises:
        ValueError: the message contains no valid answer.
    """
    head, _, data = message.partition(b"\n")
    match parse_json(head):
        case [str(outcome), str(detail)] if outcome in IMAGE_OUTCOMES:
            return ImageError(outcome, detail)
        case [int(width), int(height), int(original_width), int(original_height)]:
            return ResizedImage(data, width, height, original_width, original_height)
    raise ValueError(f"no answer of a decoding process: {head[:80]!r}")
