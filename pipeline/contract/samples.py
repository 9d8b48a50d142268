"""Samples, each with an image and its caption, read from any kind of input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})
"""File extensions of images, in lower case."""
_NAMED_EXTENSIONS = 5
"""Maximum number of a sample's file extensions that a message lists."""


class Place(NamedTuple):
    """Position of a sample in its shard, which identifies the sample even if several samples have the same key."""

    part: int = 0
    """Index of the input shard that contains the sample, if several input shards are joined into one; otherwise 0."""
    position: int = 0
    """Index of the sample in the joined shard."""


FIRST = Place()
"""Position of the first sample."""


@dataclass(frozen=True)
class Sample:
    """An image and its caption, either of which may be missing."""

    key: str
    image: bytes | None
    caption: bytes | None
    """Caption as raw bytes, which should be UTF-8."""
    error: str | None = None
    """Reason why the sample could not be read, in the form `outcome: details`. The manifest counts rows by outcome."""
    instead: str = field(default="", compare=False)
    """List of the files that the sample contains, for messages about a missing image or caption."""
    place: Place = field(default=FIRST, compare=False)


def encodable(name: str) -> str:
    """Return a file name that can be encoded as UTF-8, with each lone surrogate replaced by an escape sequence.

    Python decodes file name bytes that are not valid UTF-8 to lone surrogates.
    """
    return name.encode(errors="backslashreplace").decode()


def name_extensions(extensions: Iterable[str]) -> str:
    """Return text for messages that lists a sample's file extensions and the extensions it should have."""
    names = [f".{extension}" for extension in extensions]
    more = ", ..." if len(names) > _NAMED_EXTENSIONS else ""
    present = f"the sample has {', '.join(names[:_NAMED_EXTENSIONS])}{more}"
    return f"{present}; its image would be a .jpg, .png or the like, its caption a .txt"
