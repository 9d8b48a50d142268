"""What becomes of the body of a response, and how a decoding process is asked for it and tells it.

Messages are of bytes and JSON: a decoder that a hostile image has taken over can answer nonsense, and no more.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

LENGTH = struct.Struct(">Q")
"""In front of every message, either way: how many bytes follow."""
READY = b""
"""The first message of a decoding process, when it has imported all it needs."""
IMAGE_OUTCOMES = frozenset({"not_image", "too_many_pixels", "filtered", "decode", "encode"})
"""What may be wrong with a body that arrived; img2dataset's status for it is `failed_to_resize`."""


@dataclass(frozen=True)
class ResizedImage:
    """An encoded image with its sizes in pixels."""

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int


class ImageError(Exception):
    """A body that gave no image. `outcome` is one of `IMAGE_OUTCOMES`."""

    def __init__(self, outcome: str, detail: str = "") -> None:
        super().__init__(f"{outcome}: {detail}" if detail else outcome)
        self.outcome = outcome
        self.detail = detail


def pack(answer: ResizedImage | ImageError) -> bytes:
    """The message that tells an answer."""
    if isinstance(answer, ImageError):
        return json.dumps([answer.outcome, answer.detail]).encode()
    sizes = [answer.width, answer.height, answer.original_width, answer.original_height]
    return json.dumps(sizes).encode() + b"\n" + answer.data


def unpack(message: bytes) -> ResizedImage | ImageError:
    """The answer that a message tells.

    Raises:
        ValueError: it tells none.
    """
    head, _, data = message.partition(b"\n")
    match json.loads(head):
        case [str(outcome), str(detail)] if outcome in IMAGE_OUTCOMES:
            return ImageError(outcome, detail)
        case [int(width), int(height), int(original_width), int(original_height)]:
            return ResizedImage(data, width, height, original_width, original_height)
    raise ValueError(f"no answer of a decoding process: {head[:80]!r}")
