"""An image with its caption, from any kind of input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})
"""Extensions of image files, in lower case."""
_NAMED_EXTENSIONS = 5
"""Number of a sample's extensions that a message names."""


class Place(NamedTuple):
    """Position of a sample in its input; it identifies the sample, since keys may repeat."""

    part: int = 0
    """Index of the input shard, if several are joined into one."""
    position: int = 0
    """Index of the sample in the joined shard."""


FIRST = Place()
"""Place of the first sample."""


@dataclass(frozen=True)
class Sample:
    """An image with its caption; either may be missing."""

    key: str
    image: bytes | None
    caption: bytes | None
    """UTF-8 text, not yet decoded."""
    error: str | None = None
    """Reason why the sample could not be read: the outcome to count, a colon and the details."""
    instead: str = field(default="", compare=False)
    """Description of the files that exist, for the message about a missing image or caption."""
    place: Place = field(default=FIRST, compare=False)


def encodable(name: str) -> str:
    """Return a file name as valid UTF-8: Python decodes other bytes in file names to lone surrogates."""
    return name.encode(errors="backslashreplace").decode()


def name_extensions(extensions: Iterable[str]) -> str:
    """Return a description of the extensions that a sample has and should have, for messages."""
    names = [f".{extension}" for extension in extensions]
    more = ", ..." if len(names) > _NAMED_EXTENSIONS else ""
    present = f"the sample has {', '.join(names[:_NAMED_EXTENSIONS])}{more}"
    return f"{present}; its image would be a .jpg, .png or the like, its caption a .txt"
