"""Access to the files in a local or remote folder through fsspec.

Writes are atomic, and paths that lead outside the folder are refused. This module deals only with names, bytes and
hashes. `manifest` defines the meaning of the files, and `lock` ensures that only one process writes to a folder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ..errors import InputError
from ..json_text import parse_json
from .hashing import HashingFile
from .listing import describe_files, list_files

TEMPORARY_SUFFIX = ".priorkit-tmp"
"""File name suffix of files that are still being written."""
_COPY_BYTES = 1 << 20
"""Block size in bytes for uploads."""
_LONGEST_NAME = 200
"""Maximum length of a file or folder name in bytes. File systems allow 255 bytes; the rest is reserved for the suffix
of temporary files."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


def check_name(name: str) -> str:
    """Return `name` if it is a plain relative name; otherwise raise InputError.

    priorkit writes only files with plain names. A plain name consists of parts separated by `/`, each made of ASCII
    letters, digits, `_`, `.` and `-`. No part starts with `.` or `-`, or is longer than 200 bytes.
    """
    if not _PLAIN_NAME.fullmatch(name) or max(map(len, name.split("/"))) > _LONGEST_NAME:
        shown = name if len(name) <= _LONGEST_NAME else f"{name[:60]}..."
        raise InputError(f"file name {shown!r} is not a plain relative name; the manifest is damaged or hostile")
    return name


def _check_inside(name: str) -> str:
    """Return `name` if it is a relative path that stays inside the folder; otherwise raise InputError.

    Names with a null byte, and names with an empty, `.` or `..` part, are refused. All other characters are allowed,
    unlike in `check_name`, because other tools may have named the files.
    """
    if "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise InputError(f"file name {name!r} leaves the folder; name a file in it")
    return name


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[BinaryIO]:
    """Context manager that writes a local file atomically.

    The file is written under a temporary name in the same folder, which must exist, and renamed on exit. If the `with`
    block raises an exception, no file is created or replaced.

    Args:
        durable: True to flush the file to disk before it is renamed, so that it survives a power failure.
    """
    path = os.fspath(path)
    # a unique name, because several processes may write the same file at once, such as a cache file
    temporary = f"{path}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}"
    try:
        with open(temporary, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def open_location(url: str, **options: Any) -> tuple[Any, str]:
    """Return the fsspec file system for a local path or URL, and the path within that file system.

    Args:
        options: keyword arguments for `fsspec.core.url_to_fs`.

    Raises:
        InputError: the URL scheme is unknown, or the package that supports it is not installed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise InputError(f"{url}: {error}; the extras priorkit[s3] and priorkit[gcs] bring remote storage") from error
    except ValueError as error:
        raise InputError(f"{url}: {error}; use a local path or an fsspec URL such as s3://bucket/folder") from error
    return fs, path


class Store:
    """A folder on the local disk or on any fsspec file system. File names are relative to this folder.

    Args:
        url: local path or fsspec URL (`s3://`, `gs://`, `hf://`, `memory://`).
    """

    def __init__(self, url: str) -> None:
        self.fs, root = open_location(url)
        self.root = root.rstrip("/") or "/"
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.url = self.root if self.is_local else self.fs.unstrip_protocol(self.root)

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return (Store, (self.url,))  # connections cannot be pickled, so each worker opens a new one

    def path(self, name: str) -> str:
        """Return the full path of the file `name` in the file system.

        Raises:
            InputError: `name` is not a relative path inside the folder.
        """
        return f"{self.root.rstrip('/')}/{_check_inside(name)}"

    def open(self, name: str) -> BinaryIO:
        """Open the file `name` for reading in binary mode."""
        return cast(BinaryIO, self.fs.open(self.path(name), "rb"))

    def size(self, name: str) -> int | None:
        """Return the size of the file `name` in bytes, or None if it does not exist."""
        try:
            return int(self.fs.size(self.path(name)))
        except OSError as error:
            if isinstance(error, (FileNotFoundError, NotADirectoryError)) or error.errno == errno.ENAMETOOLONG:
                return None
            raise

    def read_into(self, name: str, start: int, target: memoryview) -> int:
        """Fill `target` with the bytes of file `name`, starting at byte offset `start`.

        Returns:
            Number of bytes read, which is less than the length of `target` only if the file ends early.
        """
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
        """Return the parsed content of a JSON file.

        Raises:
            FileNotFoundError: the file does not exist.
            InputError: the file is not valid JSON.
        """
        with self.open(name) as file:
            text = file.read()
        try:
            return parse_json(text)
        except ValueError as error:
            raise InputError(
                f"{self.path(name)} is not JSON ({error}); restore it or start in another folder"
            ) from error

    def names(self, under: str = "") -> list[str]:
        """Return the sorted paths of the data files in the folder and its subfolders, relative to the folder.

        Hidden files and files that operating systems and other tools create are left out; see `listing.is_data`.

        Args:
            under: subfolder to list; empty lists the whole folder.
        """
        return list_files(self.fs, self.root, under)

    def sizes(self, under: str = "") -> dict[str, int]:
        """Return the size in bytes of each file that `names` returns, by name.

        The folder is listed only once. On a remote file system, this is faster than one `size` request per file.
        """
        return {name: int(info["size"] or 0) for name, info in self.describe(under).items()}

    def describe(self, under: str = "") -> dict[str, dict[str, Any]]:
        """Return the fsspec listing entry of each file that `names` returns, by file name.

        An entry is a dict that contains, for example, the file's size and modification time.

        Args:
            under: subfolder to list; empty lists the whole folder.
        """
        return describe_files(self.fs, self.root, under)

    def remove(self, name: str) -> None:
        """Remove the file `name`. Do nothing if it does not exist."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(check_name(name)))

    def move(self, name: str, target: str) -> None:
        """Rename the file `name` to `target`, replacing any existing file.

        Do nothing if `name` does not exist, so that an interrupted series of moves can be repeated.
        """
        check_name(name)
        check_name(target)
        if self.is_local:
            os.makedirs(os.path.dirname(self.path(target)), exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path(name), self.path(target))
        elif self.size(name) is not None:
            self.fs.mv(self.path(name), self.path(target))

    def make(self) -> None:
        """Create the folder if it does not exist."""
        self.fs.makedirs(self.root, exist_ok=True)

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[HashingFile]:
        """Context manager that creates or replaces the file `name` atomically, and yields a file object to write to.

        The yielded `HashingFile` computes the hash of the bytes written. If the `with` block raises an exception,
        the file is not created or replaced. Local files are written with `atomic_file`. Remote files are uploaded on
        exit. In an object store, a file is not visible until its upload is complete.
        """
        path = self.path(check_name(name))
        if self.is_local:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with atomic_file(path) as target:
                yield HashingFile(target)
            return
        with tempfile.TemporaryFile() as complete:
            yield HashingFile(cast(BinaryIO, complete))
            complete.seek(0)
            with self.fs.open(path, "wb") as remote:
                shutil.copyfileobj(complete, remote, _COPY_BYTES)

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` to a JSON file atomically."""
        with self.create(name) as file:
            file.write((json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    def sweep(self) -> None:
        """Remove the temporary files that killed processes left in the folder."""
        for name in self.names():
            if name.endswith(TEMPORARY_SUFFIX) and _PLAIN_NAME.fullmatch(name):
                self.remove(name)
