"""Recursive folder listing used by all readers, and the rule that distinguishes data files from other files."""

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
"""Lower-case names of folders that file systems, archivers and table formats create next to the data."""
_FOREIGN_FILES = frozenset({"_success", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
"""Lower-case names of files that operating systems and Hadoop create next to the data."""
_FOREIGN_PREFIXES = ("_committed_", "_started_")
"""File name prefixes of Databricks commit markers."""
_PAX_HEADERS = "paxheaders"
"""Lower-case name prefix of folders that contain a tar's pax headers.

Programs without pax support create these folders when they unpack a tar.
"""
_FOREIGN_ENDINGS = (".crc", "_$folder$")
"""File name suffixes of Hadoop's checksum files and of its folder markers on S3."""
_DOCUMENT = re.compile(r"(readme|license|licence)(\.(md|markdown|rst|txt|html?|pdf))?", re.IGNORECASE)


def is_data(name: str) -> bool:
    """Return True if a file is a data file, judging only by its path relative to the folder or tar.

    The following are not data files:

    - files whose name, or the name of a folder in their path, starts with a dot;
    - files and folders that operating systems, archivers, Hadoop and Delta Lake create;
    - README and LICENSE documents;
    - S3 objects whose names end with `/`, which represent folders.
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
    is_hidden = folder.startswith(".") and folder not in (".", "..")  # names in tars may contain these parts
    return not is_hidden and lower not in _FOREIGN_FOLDERS and not lower.startswith(_PAX_HEADERS)


def list_files(fs: Any, root: str, under: str = "") -> list[str]:
    """Return the sorted names of the data files in a folder and its subfolders.

    Links to folders are followed. If the folder does not exist, the list is empty.

    Args:
        fs: fsspec file system.
        root: path of the folder in the file system. Returned names are relative to this folder.
        under: subfolder of `root` to list; empty lists all of `root`.

    Raises:
        InputError: the folder cannot be listed, for example because it is not readable, or no bucket is named.
    """
    return list(describe_files(fs, root, under, details=False))


def describe_files(fs: Any, root: str, under: str = "", *, details: bool = True) -> dict[str, dict[str, Any]]:
    """List the data files in a folder and its subfolders, with the information that fsspec has about each file.

    Links to folders are followed.

    Args:
        fs: fsspec file system.
        root: path of the folder in the file system. Returned names are relative to this folder.
        under: subfolder of `root` to list; empty lists all of `root`.
        details: False to return an empty dict for each file, which is faster.

    Returns:
        Dict that maps file names, in sorted order, to fsspec listing entries. An entry is a dict that contains, for
        example, the file's size and modification time. If the folder does not exist, the result is empty.

    Raises:
        InputError: a local folder cannot be listed, for example because it is not readable.
    """
    base = root.rstrip("/")
    folder = f"{base}/{under}" if under else root
    if isinstance(fs, LocalFileSystem):
        local = sorted(_walk(folder, under, _ancestors(folder)), key=lambda item: item[0])
        return {name: fs.info(entry) if details else {} for name, entry in local}
    fs.invalidate_cache()
    if not fs.isdir(folder):
        return {}
    try:
        entries = fs.find(folder, detail=True)
    except ValueError as error:  # s3fs raises it if no bucket is named
        url = fs.unstrip_protocol(folder)
        raise InputError(f"{url}: this location cannot be listed ({error}); name a bucket or a folder in it") from error
    paths = [path for path in sorted(entries) if entries[path].get("type") != "directory"]
    names = {path[len(base) :].lstrip("/"): path for path in paths}
    return {name: entries[path] if details else {} for name, path in names.items() if is_data(name)}


def _walk(folder: str, name: str, ancestors: frozenset[tuple[int, int]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the relative path and the directory entry of each data file in a local folder and its subfolders.

    Args:
        folder: path of the folder.
        name: path of the folder relative to the listed root; empty for the root.
        ancestors: device and inode of each folder above `folder`. A link to such a folder forms a loop and is not
            followed.
    """
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in ancestors:
            return
        with os.scandir(folder) as scan:
            entries = list(scan)
    except (FileNotFoundError, NotADirectoryError):  # the folder was removed after its parent was listed
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
    except OSError:  # a link to itself, or no permission; reading the entry as a file reports the error
        return False


def _ancestors(folder: str) -> frozenset[tuple[int, int]]:
    """Return the device and inode of every folder above a local folder, so that `_walk` can detect links to them."""
    path, above = os.path.realpath(folder), set()
    while (parent := os.path.dirname(path)) != path:
        path = parent
        with contextlib.suppress(OSError):  # the folder may not exist yet
            status = os.stat(path)
            above.add((status.st_dev, status.st_ino))
    return frozenset(above)
