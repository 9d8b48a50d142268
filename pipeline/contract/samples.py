"""Image-caption samples, in a form that is common to all kinds of input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})
"""File extensions of images, in lower case."""
_NAMED_EXTENSIONS = 5
"""Maximum number of file extensions that a message lists for a sample."""


class Place(NamedTuple):
    """Position of a sample in the input of an embedding shard.

    It identifies the sample even if several samples have the same key.
    """

    part: int = 0
    """Index of the input shard that contains the sample, if several input shards are merged into one embedding shard;
    otherwise 0."""
    position: int = 0
    """Index of the sample in the embedding shard's input, counted across all of its input shards. Samples that cannot
    be read or embedded are also counted."""


FIRST = Place()
"""Position of a shard's first sample; the default value of `Sample.place`."""


@dataclass(frozen=True)
class Sample:
    """An image and its caption, as read from the input. Either of them may be missing.

    If the sample could not be read, `error` is set.
    """

    key: str
    image: bytes | None
    caption: bytes | None
    """Raw bytes of the caption, which should be UTF-8; None if there is no caption."""
    error: str | None = None
    """Reason why the sample could not be read; None if it could be read. The form is `outcome: details`, where the
    outcome is a name such as `damaged_shard`. The manifest counts the rows with each outcome."""
    instead: str = field(default="", compare=False)
    """Phrase that lists the sample's file extensions, for error messages about a missing image or caption."""
    place: Place = field(default=FIRST, compare=False)


def encodable(name: str) -> str:
    """Replace each lone surrogate in a file name with an escape sequence, so that the name can be encoded as UTF-8.

    Python decodes file name bytes that are not valid UTF-8 to lone surrogates.
    """
    return name.encode(errors="backslashreplace").decode()


def name_extensions(extensions: Iterable[str]) -> str:
    """Return a phrase for error messages about a sample that lacks its image or caption.

    The phrase lists the file extensions that the sample has, and those that images and captions should have.

    Args:
        extensions: file extensions of the sample, without the leading dot.
    """
    names = [f".{extension}" for extension in extensions]
    more = ", ..." if len(names) > _NAMED_EXTENSIONS else ""
    present = f"the sample has {', '.join(names[:_NAMED_EXTENSIONS])}{more}"
    return f"{present}; its image would be a .jpg, .png or the like, its caption a .txt"
