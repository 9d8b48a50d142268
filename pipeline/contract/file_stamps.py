"""File stamps for detecting changes.

A stamp contains a file's size, and its modification time or object store tags such as the ETag.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import os
import posixpath
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from .storage import Store

_SETTLED_SECONDS = 2.0
"""Age in seconds below which a modification time is not trusted, because a later write could get the same time. Some
file systems store times in whole seconds, and FAT stores them in steps of two seconds."""
_CONTENT_TAGS = ("ETag", "etag", "generation", "md5Hash", "content_md5", "crc32c", "checksum", "blob_id", "sha256")
"""Fields of object store listings that, unlike modification times, always change when the content changes."""
_TIMES = (
    "LastModified",
    "last_modified",
    "mtime",
    "modified",
    "updated",
    "modificationTime",
    "created",
    "Last-Modified",
)
"""Fields of fsspec listings that contain a modification time, most reliable first."""
_WEB_THREADS = 16
"""Number of requests sent to a web server at the same time. The number is high, to hide their latency."""


@dataclass(frozen=True)
class Stamp:
    """Size and modification time of a file, as reported by its file system without reading the content.

    For a file in an object store, tags such as the ETag take the place of the modification time if the store reports
    them.
    """

    bytes: int
    modified: str | None
    """Modification time or object store tags, as a string; None if neither is known. For local files, the time is in
    nanoseconds, followed by the resolved path if the file's path contains a symbolic link."""
    settled: bool
    """True if any later change to the file is certain to change `modified`. For example, this is False for a local file
    that was written in the last two seconds, because the next write could get the same time."""


NO_STAMP = Stamp(0, None, settled=False)
"""Placeholder for the stamp of a file that does not exist."""


def stamps(store: Store, names: Iterable[str]) -> dict[str, Stamp]:
    """Return the stamp (size and modification time) of each named file, by name. Missing files are omitted.

    Args:
        names: file paths relative to the store's root.
    """
    if store.is_local:
        local = {name: _local_stamp(f"{store.root}/{name}") for name in names}
        return {name: stamp for name, stamp in local.items() if stamp is not None}
    store.fs.invalidate_cache()
    wanted = {f"{store.root}/{name}": name for name in names}
    if store.url.startswith(("http://", "https://")):
        return _web_stamps(store, wanted)
    described: dict[str, Any] = {}
    for folder in sorted({posixpath.dirname(path) for path in wanted}):  # one request per folder
        with contextlib.suppress(FileNotFoundError):
            described.update({entry["name"]: entry for entry in store.fs.ls(folder, detail=True)})
    return {name: remote_stamp(described[path]) for path, name in wanted.items() if path in described}


def _web_stamps(store: Store, wanted: Mapping[str, str]) -> dict[str, Stamp]:
    """Return the stamp of each file on a web server, by name. The headers of each file are requested.

    Many web servers list no folders, and the listings of the others have neither sizes nor tags.

    Args:
        wanted: names of the files, by URL.
    """

    def stamp_or_none(url: str) -> Stamp | None:
        with contextlib.suppress(FileNotFoundError):
            return path_stamp(store.fs, url)
        return None

    with ThreadPoolExecutor(_WEB_THREADS) as pool:
        found = dict(zip(wanted.values(), pool.map(stamp_or_none, wanted), strict=True))
    return {name: stamp for name, stamp in found.items() if stamp is not None}


def _local_stamp(path: str) -> Stamp | None:
    try:
        status = os.stat(path)  # follows symbolic links
    except (FileNotFoundError, NotADirectoryError):
        return None
    real = os.path.realpath(path)  # a folder in the path may also be a symbolic link
    target = f" {real}" if real != path else ""
    return Stamp(status.st_size, f"{status.st_mtime_ns}{target}", _is_old(status.st_mtime))


def path_stamp(fs: Any, path: str) -> Stamp:
    """Return the stamp (size and modification time) of one file in an fsspec file system.

    For a local file that does not exist, return `NO_STAMP`.

    Raises:
        FileNotFoundError: a remote file does not exist.
    """
    if isinstance(fs, LocalFileSystem):
        return _local_stamp(path) or NO_STAMP
    fs.invalidate_cache()
    return remote_stamp(fs.info(path))


def file_stamp(store: Store, path: str, described: Mapping[str, Any]) -> Stamp:
    """Return the stamp (size and modification time) of a file that was found in a listing.

    For local files, the listing entry is not used, because the entry of a symbolic link describes the link itself
    instead of its target. If a local file no longer exists, return `NO_STAMP`.

    Args:
        path: path of the file in the file system.
        described: the file's entry in an fsspec listing.
    """
    stamp = _local_stamp(path) if store.is_local else remote_stamp(described)
    return NO_STAMP if stamp is None else stamp


def remote_stamp(described: Mapping[str, Any]) -> Stamp:
    """Return the stamp (size and modification time) of a remote file, given its entry in an fsspec listing.

    If the entry contains tags such as the ETag, they are used instead of the modification time.
    """
    size = int(described.get("size") or 0)
    tags = {name: str(described[name]) for name in _CONTENT_TAGS if described.get(name)}
    if tags:
        return Stamp(size, " ".join(f"{name}={value}" for name, value in sorted(tags.items())), settled=True)
    moment = next((described[name] for name in _TIMES if described.get(name)), None)
    if isinstance(moment, str):
        with contextlib.suppress(ValueError):
            moment = datetime.datetime.fromisoformat(moment.replace("Z", "+00:00"))
    if isinstance(moment, str):
        with contextlib.suppress(ValueError):  # the format of HTTP headers
            moment = email.utils.parsedate_to_datetime(moment)
    if isinstance(moment, datetime.datetime):
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)).timestamp()
    if not isinstance(moment, int | float):
        return Stamp(size, None, settled=False)
    return Stamp(size, repr(moment), _is_old(moment))


def _is_old(modified: float) -> bool:
    return time.time() - modified > _SETTLED_SECONDS
