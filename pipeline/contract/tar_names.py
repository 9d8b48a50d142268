"""Names of tar files: their extensions, their order, and the shard numbers that follow from them."""

from __future__ import annotations

import re
from collections.abc import Iterable

_READABLE = (".tar", ".tar.gz", ".tgz")
_UNPACK_COMMANDS = {
    ".tar.bz2": "bunzip2", ".tbz2": "bunzip2", ".tbz": "bunzip2", ".tar.xz": "unxz", ".txz": "unxz",
    ".tar.zst": "unzstd", ".tzst": "unzstd", ".tar.lz4": "unlz4",
}  # fmt: skip
"""Command that unpacks a tar whose compression priorkit does not read, keyed by file extension."""
_UNPACK_BY_START = {
    b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz", b"\x28\xb5\x2f\xfd": "unzstd", b"\x04\x22\x4d\x18": "unlz4",
}  # fmt: skip
"""Command that unpacks a file whose compression priorkit does not read, keyed by the first bytes of the file."""
GZIP_START = b"\x1f\x8b"
"""First bytes of every gzip file."""
START_BYTES = max(map(len, (GZIP_START, *_UNPACK_BY_START)))
"""Number of bytes at the start of a file that show its compression."""
TAR_EXTENSIONS = (*_READABLE, *_UNPACK_COMMANDS)
"""File extensions of tars, with any compression."""
_DIGITS = re.compile(r"([0-9]+)")


def is_tar(name: str) -> bool:
    """Return True if a file name has the extension of a tar, compressed or not."""
    return name.lower().endswith(TAR_EXTENSIONS)


def tar_stem(name: str) -> str:
    """Return the path of a tar without its extension, such as `train/0003` for `train/0003.tar.gz`."""
    lower = name.lower()
    return name[: -max(len(extension) for extension in TAR_EXTENSIONS if lower.endswith(extension))]


def unpack_command(name: str, start: bytes = b"") -> str | None:
    """Return the command that unpacks a tar whose compression priorkit does not read; None for any other tar.

    Args:
        name: name of the tar.
        start: first `START_BYTES` bytes of the tar; empty to judge only by the name.
    """
    lower = name.lower()
    known = {command for extension, command in _UNPACK_COMMANDS.items() if lower.endswith(extension)}
    if start:
        known = {command for first, command in _UNPACK_BY_START.items() if start.startswith(first)}
    return next(iter(known), None)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return a sort key that orders the numbers in names by value, so that `a-2.tar` comes before `a-10.tar`."""
    parts: list[str | int] = list(_DIGITS.split(name))
    parts[1::2] = [int(part) for part in parts[1::2]]  # text and digits alternate
    return parts, name


def same_but_number(name: str) -> str:
    """Return a name with every number replaced by `0`. The names of shards of one data set then become equal."""
    return _DIGITS.sub("0", name)


def number_tars(tars: Iterable[str]) -> list[tuple[str, str]]:
    """Give each tar a shard number, and return pairs of number and tar name, ordered by number.

    If the name of every tar is a number, such as `00012.tar`, that number is the shard number, so that it does not
    depend on the other tars. Otherwise, or if two names are the same number, the tars are numbered from 0 in the
    natural order of their names.

    Args:
        tars: names of the tars, relative to the input folder.

    Returns:
        Pairs of the shard number, written in at least five digits or as in the file name, and the name of the tar.
    """
    ordered = sorted(tars, key=natural_key)
    stems = [tar_stem(name) for name in ordered]
    numbers = {int(stem) for stem in stems if stem.isascii() and stem.isdigit()}
    if len(numbers) == len(ordered):
        return sorted(zip(stems, ordered, strict=True), key=lambda pair: int(pair[0]))
    return [(f"{number:05d}", name) for number, name in enumerate(ordered)]
