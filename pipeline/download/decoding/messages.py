"""Messages between the fetching process and its decoder processes.

Messages contain raw bytes and JSON, never pickles. If a malicious image takes over a decoder process, that process can
send a false answer, but it cannot run code in the fetching process.
"""

from __future__ import annotations

import json
import struct

from ..outcomes import IMAGE_OUTCOMES, ImageError, ResizedImage

LENGTH = struct.Struct(">Q")
"""Header of each message in both directions: the number of bytes that follow."""
READY = b""
"""First message of a decoder process, sent once the process is ready to decode."""


def pack(answer: ResizedImage | ImageError) -> bytes:
    """Serialize an answer.

    An image becomes a line of JSON with the sizes, followed by the encoded image data. An error becomes a JSON array of
    its outcome and its detail.
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
    match json.loads(head):
        case [str(outcome), str(detail)] if outcome in IMAGE_OUTCOMES:
            return ImageError(outcome, detail)
        case [int(width), int(height), int(original_width), int(original_height)]:
            return ResizedImage(data, width, height, original_width, original_height)
    raise ValueError(f"no answer of a decoding process: {head[:80]!r}")
