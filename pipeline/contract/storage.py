"""Files under one root, local or remote, through fsspec: plain relative names, atomic writes, one writer.

What the files mean is the business of `shards`; this module knows names, bytes and hashes only.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ..errors import FolderError, InputError
from .hashing import HashingFile
from .listing import describe_files, list_files

TEMPORARY_SUFFIX = ".priorkit-tmp"
LOCK_NAME = ".lock"
LEASE_NAME = "lease.json"
_LEASE_SECONDS = 120.0
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, 524})
"""Errors of `flock` on file systems without locks: Lustre without `-o flock`, some NFS and autofs (524: ENOTSUPP)."""
_WARNED: set[str] = set()
"""Folders whose file systems were said to have no locks."""
_COPY_BYTES = 1 << 20
_LONGEST_NAME = 200
"""Longest name of a file or folder in bytes; file systems take 255, and a temporary suffix is added to it."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


def check_name(name: str) -> str:
    """Return `name` if it is a plain relative name, as all that priorkit writes; else raise InputError."""
    if not _PLAIN_NAME.fullmatch(name) or max(map(len, name.split("/"))) > _LONGEST_NAME:
        shown = name if len(name) <= _LONGEST_NAME else f"{name[:60]}..."
        raise InputError(f"file name {shown!r} is not a plain relative name; the manifest is damaged or hostile")
    return name


def _check_inside(name: str) -> str:
    """Return `name` if it stays in the folder, whatever its characters, as names of other tools' files may be."""
    if "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise InputError(f"file name {name!r} leaves the folder; name a file in it")
    return name


def open_location(url: str) -> tuple[Any, str]:
    """The fsspec file system of a local path or URL, and the path in it.

    Raises:
        InputError: the URL's scheme is unknown, or what reads it is not installed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise InputError(f"{url}: {error}; the extras priorkit[s3] and priorkit[gcs] bring remote storage") from error
    except ValueError as error:
        raise InputError(f"{url}: {error}; use a local path or an fsspec URL such as s3://bucket/folder") from error
    return fs, path


class Store:
    """A folder, local or on any fsspec file system.

    Args:
        url: a local path or an fsspec URL (`s3://`, `gs://`, `hf://`, `memory://`).
    """

    def __init__(self, url: str) -> None:
        self.fs, root = open_location(url)
        self.root = root.rstrip("/") or "/"
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.url = self.root if self.is_local else self.fs.unstrip_protocol(self.root)

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return (Store, (self.url,))  # file systems hold connections: a worker opens its own

    def path(self, name: str) -> str:
        """Return the file system's own path of `name`; InputError if it would leave the folder."""
        return f"{self.root.rstrip('/')}/{_check_inside(name)}"

    def open(self, name: str) -> BinaryIO:
        """Open `name` for reading bytes."""
        return cast(BinaryIO, self.fs.open(self.path(name), "rb"))

    def size(self, name: str) -> int | None:
        """Size of `name` in bytes; None if there is no such file."""
        try:
            return int(self.fs.size(self.path(name)))
        except OSError as error:
            if isinstance(error, (FileNotFoundError, NotADirectoryError)) or error.errno == errno.ENAMETOOLONG:
                return None
            raise

    def read_into(self, name: str, start: int, target: memoryview) -> int:
        """Read bytes of `name` from `start` on into `target`; returns how many there were, fewer only at its end."""
        if not self.is_local:
            data = self.fs.cat_file(self.path(name), start=start, end=start + len(target))
            target[: len(data)] = data
            return len(data)
        with open(self.path(name), "rb", buffering=0) as file:
            file.seek(start)
            done = 0
            while done < len(target) and (read := file.readinto(target[done:])):
                done += read
            return done

    def read_json(self, name: str) -> Any:
        """The content of a JSON file; FileNotFoundError if absent, InputError if it is not JSON."""
        with self.open(name) as file:
            text = file.read()
        try:
            return json.loads(text)
        except ValueError as error:
            raise InputError(
                f"{self.path(name)} is not JSON ({error}); restore it or start in another folder"
            ) from error

    def names(self, under: str = "") -> list[str]:
        """Sorted relative names of the data files below `under`; see `listing.is_data`."""
        return list_files(self.fs, self.root, under)

    def sizes(self, under: str = "") -> dict[str, int]:
        """Bytes of the files of `names`, by name: one listing, where `size` asks for each file."""
        return {name: int(info["size"] or 0) for name, info in self.describe(under).items()}

    def describe(self, under: str = "") -> dict[str, dict[str, Any]]:
        """fsspec's description of the files of `names`, by name: size, time of the last change and others."""
        return describe_files(self.fs, self.root, under)

    def remove(self, name: str) -> None:
        """Remove `name` if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(check_name(name)))

    def move(self, name: str, target: str) -> None:
        """Put `name` in the place of `target`, if it is there: one that was moved before is not moved twice."""
        check_name(name)
        check_name(target)
        if self.is_local:
            os.makedirs(os.path.dirname(self.path(target)), exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path(name), self.path(target))
        elif self.size(name) is not None:
            self.fs.mv(self.path(name), self.path(target))

    def make(self) -> None:
        """Create the folder."""
        self.fs.makedirs(self.root, exist_ok=True)

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[HashingFile]:
        """Write `name` atomically: it appears whole when the block ends, or not at all.

        A local file is written under a temporary name, flushed to disk and renamed. An object store shows an object
        only when its upload is complete; the upload starts when the block has ended.
        """
        path = self.path(check_name(name))
        if not self.is_local:
            with tempfile.TemporaryFile() as whole:
                yield HashingFile(cast(BinaryIO, whole))
                whole.seek(0)
                with self.fs.open(path, "wb") as target:
                    shutil.copyfileobj(whole, target, _COPY_BYTES)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = (
            f"{path}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}"  # of its own: readers too keep what they found out
        )
        try:
            with open(temporary, "wb") as target:
                yield HashingFile(target)
                target.flush()
                os.fsync(target.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(temporary)
            raise

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as JSON, atomically."""
        with self.create(name) as file:
            file.write((json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    def sweep(self) -> None:
        """Remove what a killed writer left under temporary names."""
        for name in self.names():
            if name.endswith(TEMPORARY_SUFFIX) and _PLAIN_NAME.fullmatch(name):
                self.remove(name)

    @contextlib.contextmanager
    def writer(self) -> Iterator[None]:
        """Hold this folder as its only writer.

        Raises:
            FolderError: another process writes to the folder.
        """
        self.make()
        with self._file_lock() if self.is_local else self._lease():
            yield

    @contextlib.contextmanager
    def _file_lock(self) -> Iterator[None]:
        """Hold the folder by a lock of the kernel, or by a lease where its file system has no locks."""
        import fcntl

        with open(f"{self.root}/{LOCK_NAME}", "w") as file:
            holder: contextlib.AbstractContextManager[None]
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it when the process dies
            except BlockingIOError:
                raise FolderError(
                    f"{self.root}: another priorkit process is writing here; wait for it or use another folder"
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                _warn_without_locks(self.root, error)
                holder = self._lease()
            else:
                self._require_no_lease()  # of a machine that mounts the same folder without locks
                holder = contextlib.nullcontext()
            with holder:
                yield

    def _require_no_lease(self) -> None:
        """FolderError if another process holds the folder by a lease."""
        host = socket.gethostname()
        with contextlib.suppress(FileNotFoundError):
            held = self.read_json(LEASE_NAME)
            try:
                dead = held["host"] == host and not _process_runs(held["pid"])
                left = held["expires"] - time.time()
            except (KeyError, TypeError) as error:
                raise InputError(
                    f"{self.path(LEASE_NAME)} is not a lease of priorkit ({error!r}); remove it"
                ) from error
            if left > 0 and not dead:
                raise FolderError(
                    f"{self.url}: process {held['pid']} on {held['host']} is writing here; "
                    f"wait for it (its lease ends in {left:.0f} s unless renewed) or use another folder"
                )

    @contextlib.contextmanager
    def _lease(self) -> Iterator[None]:
        self._require_no_lease()
        owner, host = uuid.uuid4().hex, socket.gethostname()

        def renew() -> None:
            expires = time.time() + _LEASE_SECONDS
            self.write_json(LEASE_NAME, {"owner": owner, "host": host, "pid": os.getpid(), "expires": expires})

        renew()
        if self.read_json(LEASE_NAME)["owner"] != owner:
            raise FolderError(f"{self.url}: another process began to write here at the same moment; use another folder")
        done = threading.Event()

        def keep_renewing() -> None:
            while not done.wait(_LEASE_SECONDS / 4):
                renew()

        thread = threading.Thread(target=keep_renewing, name="priorkit-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.remove(LEASE_NAME)


def _warn_without_locks(folder: str, error: OSError) -> None:
    """Say once a process that a folder is held by a lease."""
    if folder not in _WARNED:
        _WARNED.add(folder)
        logging.getLogger(__name__).warning(
            "%s: its file system has no locks (%s), so %s holds the folder; after a crash, another machine can write "
            "here %.0f s later", folder, error.strerror or error, LEASE_NAME, _LEASE_SECONDS,
        )  # fmt: skip


def _process_runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
