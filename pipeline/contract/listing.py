"""THE rule for which files of a folder or tar are data, and the listing that every reader of a folder uses."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from ..errors import InputError

_FOREIGN_FOLDERS = frozenset(
    {
        "__macosx", "__pycache__", "_delta_log", "_spark_metadata", "_temporary", "@eadir", "#recycle", "#snapshot",
        "$recycle.bin", "lost+found", "system volume information",
    }
)  # fmt: skip
"""Lower-case names of folders that file systems, archives and table formats keep beside data."""
_FOREIGN_FILES = frozenset({"_success", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
"""Lower-case names of files that operating systems and Hadoop keep beside data."""
_FOREIGN_PREFIXES = ("_committed_", "_started_")
"""Beginnings of the names of Databricks' commit markers."""
_PAX_HEADERS = "paxheaders"
"""Beginning of the folders that programs without the pax format unpack its headers to."""
_FOREIGN_ENDINGS = (".crc", "_$folder$")
"""Endings of Hadoop's checksums and of its folder markers on S3."""
_DOCUMENT = re.compile(r"(readme|license|licence)(\.(md|markdown|rst|txt|html?|pdf))?", re.IGNORECASE)


def is_data(name: str) -> bool:
    """Return False for files that tools and people keep beside data, given the name relative to the folder or tar.

    These are hidden files and folders (a leading dot), leftovers of operating systems, archives, Hadoop and Delta,
    README and LICENSE documents, and the empty objects that mark folders on S3.
    """
    *folders, file = name.removeprefix("./").split("/")
    lower = file.lower()
    return not (
        not file
        or file.startswith(".")
        or lower in _FOREIGN_FILES
        or lower.startswith(_FOREIGN_PREFIXES)
        or lower.endswith(_FOREIGN_ENDINGS)
        or _DOCUMENT.fullmatch(file)
        or not all(map(_holds_data, folders))
    )


def _holds_data(folder: str) -> bool:
    lower = folder.lower()
    is_hidden = folder.startswith(".") and folder not in (".", "..")  # members of tars may be named so
    return not is_hidden and lower not in _FOREIGN_FOLDERS and not lower.startswith(_PAX_HEADERS)


def list_files(fs: Any, root: str, under: str = "") -> list[str]:
    """Return the sorted names of the data files below `root`, relative to it, following links to folders.

    Args:
        fs: fsspec file system.
        root: path of the folder in it.
        under: list only this folder below `root`.

    Raises:
        InputError: a local folder cannot be listed.
    """
    return list(describe_files(fs, root, under, details=False))


def describe_files(fs: Any, root: str, under: str = "", *, details: bool = True) -> dict[str, dict[str, Any]]:
    """Return what the file system tells of each file of `list_files`, by name; empty without `details`."""
    base = root.rstrip("/")
    folder = f"{base}/{under}" if under else root
    if isinstance(fs, LocalFileSystem):
        entries = sorted(_walk(folder, under, _ancestors(folder)), key=lambda item: item[0])
        return {name: fs.info(entry) if details else {} for name, entry in entries}
    fs.invalidate_cache()
    if not fs.isdir(folder):
        return {}
    found = fs.find(folder, detail=True)
    names = {path[len(base) :].lstrip("/"): path for path in sorted(found) if found[path].get("type") != "directory"}
    return {name: found[path] if details else {} for name, path in names.items() if is_data(name)}


def _walk(folder: str, name: str, ancestors: frozenset[tuple[int, int]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the files below a local folder. A link to a folder that the path already leads through is a loop."""
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in ancestors:
            return
        with os.scandir(folder) as scan:
            entries = list(scan)
    except (FileNotFoundError, NotADirectoryError):  # removed since its own folder was listed
        return
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror}); make it readable, or move it away") from error
    ancestors |= {(status.st_dev, status.st_ino)}
    for entry in entries:
        inner = f"{name}/{entry.name}" if name else entry.name
        if _is_folder(entry):
            if _holds_data(entry.name):
                yield from _walk(entry.path, inner, ancestors)
        elif is_data(inner):
            yield inner, entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where nobody may look: reading it as a file names the error
        return False


def _ancestors(folder: str) -> frozenset[tuple[int, int]]:
    """Device and inode of every folder above a local one, so that no link leads back up to them."""
    path, above = os.path.realpath(folder), set()
    while (parent := os.path.dirname(path)) != path:
        path = parent
        with contextlib.suppress(OSError):  # the folder need not exist yet
            status = os.stat(path)
            above.add((status.st_dev, status.st_ino))
    return frozenset(above)
