"""One image with its caption, from whatever input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})
_NAMED_EXTENSIONS = 5
"""Extensions of a sample that a failure names at most."""


class Place(NamedTuple):
    """Where a sample stands in its input, since keys need not be unique."""

    part: int = 0
    """Number of its shard among those that are joined to one."""
    position: int = 0
    """Number of the sample in the shard that is embedded."""


FIRST = Place()


@dataclass(frozen=True)
class Sample:
    """One image with its caption, either of which may be missing."""

    key: str
    image: bytes | None
    caption: bytes | None
    """UTF-8 text, not yet decoded."""
    error: str | None = None
    """Why it could not be read: an outcome to count, and after a colon what happened."""
    instead: str = field(default="", compare=False)
    """What there is where the image or caption is missing, for the message of the failure."""
    place: Place = field(default=FIRST, compare=False)


def encodable(name: str) -> str:
    """Return a name as UTF-8 can hold it: Python keeps what is no UTF-8 in names of files as lone surrogates."""
    return name.encode(errors="backslashreplace").decode()


def name_extensions(extensions: Iterable[str]) -> str:
    """Return the extensions that a sample's files have and should have, as a failure names them."""
    names = [f".{extension}" for extension in extensions]
    more = ", ..." if len(names) > _NAMED_EXTENSIONS else ""
    there = f"the sample has {', '.join(names[:_NAMED_EXTENSIONS])}{more}"
    return f"{there}; its image would be a .jpg, .png or the like, its caption a .txt"
