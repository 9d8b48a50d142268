"""Image-caption samples, in a form that is common to all kinds of input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from ..json_text import parse_json

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})
"""File extensions of images, in lower case."""
CAPTION_EXTENSION = "txt"
"""Default file extension of captions."""
_CAPTION_ENDINGS = frozenset({CAPTION_EXTENSION, "text", "caption", "cap"})
"""Last parts of file extensions that probably belong to captions, for proposals in messages."""
_NAMED_EXTENSIONS = 5
"""Maximum number of file extensions or JSON keys that a message lists for a sample."""

Content = TypeVar("Content")


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
    row: int = 0
    """Index of the caption's row among the table rows with the sample's key, if each caption has a row of its own;
    otherwise 0."""


FIRST = Place()
"""Position of a shard's first sample; the default value of `Sample.place`."""


@dataclass(frozen=True)
class Sample:
    """An image and its captions, as read from the input. Either of them may be missing.

    If the sample could not be read, `error` is set.
    """

    key: str
    image: bytes | None
    caption: bytes | None
    """Raw bytes of the first caption, which should be UTF-8; None if there is no caption."""
    error: str | None = None
    """Reason why the sample could not be read; None if it could be read. The form is `outcome: details`, where the
    outcome is a name such as `damaged_shard`. The manifest counts the rows with each outcome."""
    instead: str = field(default="", compare=False)
    """Phrase that lists the sample's file extensions, for error messages about a missing image or caption."""
    place: Place = field(default=FIRST, compare=False)
    other_captions: tuple[bytes, ...] = ()
    """Raw bytes of the captions after the first. Each of them becomes an embedded row of its own."""
    caption_rows: tuple[int, ...] = field(default=(), compare=False)
    """`Place.row` of each caption, the first one included; empty if it is 0 for all captions."""

    @property
    def captions(self) -> tuple[bytes, ...]:
        """All captions of the sample."""
        return () if self.caption is None else (self.caption, *self.other_captions)


@dataclass(frozen=True)
class SampleFiles:
    """Rules that identify the image and the captions among the files of a sample."""

    image_extensions: tuple[str, ...] = ()
    """File extensions of images in lower case, most preferred first; empty for `IMAGE_EXTENSIONS`."""
    caption_extension: str = CAPTION_EXTENSION
    """File extension of captions, in lower case."""
    caption_key: str | None = None
    """Key of the caption in the caption file, which is a JSON file; None if the caption file is plain text. Dots
    separate the keys of nested objects."""

    def split(self, name: str) -> tuple[str, str]:
        """Split a file name into the key of its sample and its extension, which may contain dots if it is known."""
        lower = name.lower()
        for extension in sorted((*self.image_extensions, self.caption_extension), key=len, reverse=True):
            if lower.endswith(f".{extension}"):
                return name[: -len(extension) - 1], name[-len(extension) :]
        stem, _, extension = name.rpartition(".")
        return stem, extension

    def is_image(self, extension: str) -> bool:
        """Return True if files with this extension are images."""
        return extension.lower() in (self.image_extensions or IMAGE_EXTENSIONS)

    def image_of(self, members: Mapping[str, Content]) -> Content | None:
        """Return the image among the files of a sample, which are keyed by extension; None if there is none."""
        if not self.image_extensions:
            return next((content for extension, content in members.items() if extension in IMAGE_EXTENSIONS), None)
        return next((members[extension] for extension in self.image_extensions if extension in members), None)

    def sample(self, key: str, members: Mapping[str, bytes | None]) -> Sample:
        """Create a sample from the contents of its files, keyed by extension. The content of a link is None."""
        names = [name if content is not None else f"{name} (a link)" for name, content in members.items()]
        captions, problem = self.read_captions(members.get(self.caption_extension))
        keys = () if captions or self.caption_key else _json_keys(members.get("json"))
        return Sample(
            key,
            self.image_of(members),
            captions[0] if captions else None,
            instead=name_extensions(names, self, keys) + (f"; {problem}" if problem else ""),
            other_captions=captions[1:],
        )

    def read_captions(self, content: bytes | None) -> tuple[tuple[bytes, ...], str]:
        """Return the captions in a caption file, and the reason if it has none although it exists.

        Args:
            content: content of the file; None if the sample has no such file.
        """
        if content is None or self.caption_key is None:
            return (() if content is None else (content,)), ""
        try:
            value = parse_json(content)
        except ValueError as error:
            return (), f"its .{self.caption_extension} is not JSON ({error})"
        found = [each for each in _values_at(value, self.caption_key) if each is not None]
        if strange := [each for each in found if not isinstance(each, str)]:
            return (), f"its .{self.caption_extension} has {strange[0]!r:.40} at {self.caption_key!r}, not text"
        if not found:
            keys = _shown(_json_keys(content)) or "none"
            return (), f"its .{self.caption_extension} has no caption at {self.caption_key!r}; its keys are {keys}"
        return tuple(each.encode(errors="surrogatepass") for each in found), ""


DEFAULT_FILES = SampleFiles()
"""Rules that identify the files of a sample if no setting changes them."""


def _values_at(value: Any, key: str) -> list[Any]:
    """Return the values at a key of a JSON value. Lists on the way, and a list at the key, contribute all their items.

    Args:
        value: parsed JSON.
        key: keys of nested objects, separated by dots. A key that itself contains dots is found too.
    """
    if isinstance(value, list):
        return [found for item in value for found in _values_at(item, key)]
    if not key:
        return [value]
    if not isinstance(value, dict):
        return []
    if key in value:
        return _values_at(value[key], "")
    outer, _, inner = key.partition(".")
    return _values_at(value[outer], inner) if inner and outer in value else []


def _json_keys(content: bytes | None) -> tuple[str, ...]:
    """Return the keys of a JSON object, for messages; nothing if the content is not a JSON object."""
    try:
        value = parse_json(content or b"")
    except ValueError:
        return ()
    return tuple(value) if isinstance(value, dict) else ()


def encodable(name: str) -> str:
    """Replace each lone surrogate in a file name with an escape sequence, so that the name can be encoded as UTF-8.

    Python decodes file name bytes that are not valid UTF-8 to lone surrogates.
    """
    return name.encode(errors="backslashreplace").decode()


def name_extensions(
    extensions: Iterable[str], files: SampleFiles = DEFAULT_FILES, json_keys: Iterable[str] = ()
) -> str:
    """Return a phrase for error messages about a sample that lacks its image or caption.

    The phrase lists the file extensions that the sample has, and those that images and captions should have. If the
    sample's files suggest settings with which the sample could be read, it also proposes them.

    Args:
        extensions: file extensions of the sample, without the leading dot.
        files: rules that identify the image and the captions.
        json_keys: keys of the sample's `.json` file, in which its caption may be.
    """
    extensions = list(extensions)
    present = f"the sample has {_shown([f'.{extension}' for extension in extensions])}"
    image = " or ".join(f".{extension}" for extension in files.image_extensions) or ".jpg, .png or the like"
    phrase = f"{present}; its image would be a {image}, its caption a .{files.caption_extension}"
    if files == DEFAULT_FILES:
        phrase += "".join(f"; {proposal}" for proposal in _proposals(extensions, list(json_keys)))
    return phrase


def _proposals(extensions: list[str], json_keys: list[str]) -> list[str]:
    """Return proposals of settings with which a sample could be read that the default rules do not fit."""
    nested = [extension for extension in extensions if "." in extension and "(" not in extension]
    images = [name for name in nested if name.rpartition(".")[2] in IMAGE_EXTENSIONS]
    texts = [
        name for name in extensions
        if name != CAPTION_EXTENSION and name.rpartition(".")[2] in _CAPTION_ENDINGS
    ]  # fmt: skip
    found = []
    if images and not any(extension in IMAGE_EXTENSIONS for extension in extensions):
        found.append(f"set embed.image_extensions=[{images[0]}]")
    if texts and CAPTION_EXTENSION not in extensions:
        found.append(f"set embed.caption_extension={texts[0]}")
    elif "json" in extensions and CAPTION_EXTENSION not in extensions:
        likely = next((key for key in json_keys if key.lower() in ("caption", "text", "prompt")), "KEY")
        keys = f" (its keys are {_shown(json_keys)})" if json_keys else ""
        found.append(f"for a caption in its .json, set embed.caption_key={likely}{keys}")
    return found


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_NAMED_EXTENSIONS]) + (", ..." if len(names) > _NAMED_EXTENSIONS else "")
