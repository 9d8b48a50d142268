"""Stamps of files: size and modification time or tags, which change when the file changes."""

from __future__ import annotations

import contextlib
import datetime
import os
import posixpath
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from .storage import Store

_SETTLED_SECONDS = 2.0
"""Age in seconds below which a modification time is not trusted: another write may get the same time, since the clock
of some file systems ticks in seconds, and of FAT in two seconds."""
_CONTENT_TAGS = ("ETag", "etag", "generation", "md5Hash", "content_md5", "crc32c", "checksum", "blob_id", "sha256")
"""Entries of object stores' listings that change with every write, independent of the clock."""
_TIMES = ("LastModified", "last_modified", "mtime", "modified", "updated", "modificationTime", "created")
"""Entries of fsspec's listings that hold a modification time, the most reliable first."""


@dataclass(frozen=True)
class Stamp:
    """State of a file that its file system knows without reading it."""

    bytes: int
    modified: str | None
    """Modification time in nanoseconds, or an object store's tags; None if neither is known."""
    settled: bool
    """True if every later change alters `modified`."""


NO_STAMP = Stamp(0, None, settled=False)
"""Stamp of a file that does not exist."""


def stamps(store: Store, names: Iterable[str]) -> dict[str, Stamp]:
    """Return the stamps of files by their paths below the store's root; files that do not exist are left out."""
    if store.is_local:
        local = {name: _local_stamp(f"{store.root}/{name}") for name in names}
        return {name: stamp for name, stamp in local.items() if stamp is not None}
    store.fs.invalidate_cache()
    wanted = {f"{store.root}/{name}": name for name in names}
    described: dict[str, Any] = {}
    for folder in sorted({posixpath.dirname(path) for path in wanted}):  # one request per folder
        with contextlib.suppress(FileNotFoundError):
            described.update({entry["name"]: entry for entry in store.fs.ls(folder, detail=True)})
    return {name: remote_stamp(described[path]) for path, name in wanted.items() if path in described}


def _local_stamp(path: str) -> Stamp | None:
    try:
        status = os.stat(path)  # follows links
    except (FileNotFoundError, NotADirectoryError):
        return None
    real = os.path.realpath(path)  # a folder in the path may be a link too
    target = f" {real}" if real != path else ""
    return Stamp(status.st_size, f"{status.st_mtime_ns}{target}", _is_old(status.st_mtime))


def path_stamp(fs: Any, path: str) -> Stamp:
    """Return the stamp of one file of an fsspec file system."""
    if isinstance(fs, LocalFileSystem):
        return _local_stamp(path) or NO_STAMP
    fs.invalidate_cache()
    return remote_stamp(fs.info(path))


def file_stamp(store: Store, path: str, described: Mapping[str, Any]) -> Stamp:
    """Return the stamp of a file from its entry in a listing.

    A local file is looked up again, since the entry of a link describes the link.

    Args:
        path: path of the file in the file system.
        described: entry of the file in an fsspec listing.
    """
    stamp = _local_stamp(path) if store.is_local else remote_stamp(described)
    return NO_STAMP if stamp is None else stamp


def remote_stamp(described: Mapping[str, Any]) -> Stamp:
    """Return the stamp of a file from its entry in an fsspec listing."""
    size = int(described.get("size") or 0)
    tags = {name: str(described[name]) for name in _CONTENT_TAGS if described.get(name)}
    if tags:
        return Stamp(size, " ".join(f"{name}={value}" for name, value in sorted(tags.items())), settled=True)
    moment = next((described[name] for name in _TIMES if described.get(name)), None)
    if isinstance(moment, str):
        with contextlib.suppress(ValueError):
            moment = datetime.datetime.fromisoformat(moment.replace("Z", "+00:00"))
    if isinstance(moment, datetime.datetime):
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)).timestamp()
    if not isinstance(moment, int | float):
        return Stamp(size, None, settled=False)
    return Stamp(size, repr(moment), _is_old(moment))


def _is_old(modified: float) -> bool:
    return time.time() - modified > _SETTLED_SECONDS
