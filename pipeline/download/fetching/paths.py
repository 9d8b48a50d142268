"""Reading of images at local and remote paths, for lists whose URL column contains paths (`download.allow_paths`).

Only the values of the list itself are read as paths. The target of a redirect never is, because a server chose it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import glob
import os
import posixpath
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from fsspec.implementations.local import LocalFileSystem

from ...contract.storage import open_location
from ...errors import InputError
from ..outcomes import FetchError
from ..settings import DownloadSettings

STORAGE_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"})
"""Schemes of storage whose servers the configuration of this machine determines, and not the URL.

Other schemes of fsspec, such as `ftp`, would connect to any host, also to internal ones.
"""
_THREADS = 64
"""Maximum number of paths that one worker reads at once. A read blocks its thread."""
_HTTP = re.compile(r"https?:", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
"""Scheme of a URL. As in RFC 3986, a relative path whose first part contains a colon is written with `./` before it."""
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError)
_ABSENT_CODES = (errno.ELOOP, errno.ENAMETOOLONG)
"""Exceptions and error codes for a path that names no file that can be read. Other failures may be temporary. For a
local path, `PermissionError` also counts; remote storage raises it for expired credentials too."""
_ERROR_CHARACTERS = 200
"""Maximum number of characters that an error message quotes from an exception's text."""


def is_http(url: str) -> bool:
    """Return True if a value of the URL column is an http or https URL."""
    return _HTTP.match(url) is not None


def paths_hint(url: str | None) -> str:
    """Return the end of an error message that names the setting for reading paths, if a refused URL is a path.

    Return an empty string for any other value.
    """
    scheme = _scheme((url or "").strip())
    is_path = scheme in ("", "file") or scheme in STORAGE_SCHEMES
    return "; download.allow_paths=true reads paths" if is_path else ""


def _scheme(url: str) -> str:
    """Return the scheme of a URL in lower case, or an empty string for a plain path."""
    match = _SCHEME.match(url)
    return match[1].lower() if match is not None else ""


def base_of(source: str) -> str | None:
    """Return the location that relative paths in a URL list are relative to.

    Args:
        source: path or URL of the list. For a file, the result is its folder; for a folder, the folder itself; and for
            a pattern with wildcards, the last folder before the first wildcard.

    Returns:
        Path or URL of a folder. For an http URL, `source` itself. None if the list is inside an archive.
    """
    if "::" in source:
        return None
    if is_http(source):
        return source
    fs, path = open_location(source)
    folder = path if fs.isdir(path) else posixpath.dirname(path)
    if folder != path and not fs.exists(path):
        while glob.has_magic(folder):
            folder = posixpath.dirname(folder)
    return folder if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(folder))


class PathReader:
    """Reader for images at local and remote paths, within the same limits as fetches of URLs.

    Args:
        settings: download settings.
        base: location that relative paths are relative to, as `base_of` returns it.
    """

    def __init__(self, settings: DownloadSettings, base: str | None) -> None:
        self._settings, self._base = settings, base
        number = min(settings.concurrency, _THREADS)
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="read")
        self._slots = asyncio.Semaphore(number)
        self._file_systems: dict[str, Any] = {}
        """File systems that were opened, keyed by scheme and host. fsspec would open one for each thread."""

    def close(self) -> None:
        """Cancel reads that have not started, without waiting for reads in progress."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def locate(self, text: str) -> str:
        """Return the absolute path or the URL for a value of the URL column.

        Raises:
            FetchError: the value is not a valid location, or its scheme is not supported.
        """
        scheme = _scheme(text)
        if scheme == "file":
            return _file_path(text)
        if scheme in STORAGE_SCHEMES:
            if "::" in text or not text[len(scheme) :].startswith("://"):
                raise FetchError("bad_url", f"expected {scheme}://..., without a chain (::)")
            return text
        if scheme:
            names = ", ".join(sorted(STORAGE_SCHEMES))
            raise FetchError("bad_scheme", f"{scheme} is not http, https, file or one of {names}")
        if text.startswith("/"):
            return text
        if self._base is None:
            raise FetchError("bad_url", "a relative path in a list inside an archive; write the whole path")
        if is_http(self._base):
            return urljoin(self._base, text)
        start, separator, folder = self._base.rpartition("://")
        path = posixpath.join(folder, text)
        return f"{start}://{posixpath.normpath(path)}" if separator else path  # object stores do not resolve `..`

    async def read(self, location: str) -> bytes:
        """Read a file at a location that `locate` returned, and return its content.

        The time limit `timeout_seconds` does not include the wait for a free thread.

        Raises:
            FetchError: the file is missing or too large, or could not be read in time.
        """
        seconds = self._settings.timeout_seconds
        loop = asyncio.get_running_loop()
        await self._slots.acquire()

        def end(job: concurrent.futures.Future[bytes]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._slots.release)

        job = self._threads.submit(self._load, location)
        job.add_done_callback(end)  # not earlier: after a timeout, the read still blocks its thread
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job), seconds)
        except asyncio.TimeoutError:
            raise FetchError("timeout", f"not read within {seconds:g} s") from None

    def _load(self, location: str) -> bytes:
        """Do what `read` does, in a thread."""
        try:
            return self._load_remote(location) if _scheme(location) else self._load_local(location)
        except FetchError:
            raise
        except InputError as error:  # the package for this kind of storage is missing
            raise FetchError("bad_scheme", str(error)[:_ERROR_CHARACTERS]) from None
        except Exception as error:  # storage clients raise many exception types
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            absent = _ABSENT if _scheme(location) else (*_ABSENT, PermissionError)
            is_absent = isinstance(error, absent) or getattr(error, "errno", None) in _ABSENT_CODES
            detail = f"{location}: {reason}"[:_ERROR_CHARACTERS]
            raise FetchError("no_file" if is_absent else "connection", detail) from None

    def _load_local(self, path: str) -> bytes:
        limit = self._settings.max_bytes
        with open(path, "rb", opener=_open_without_blocking) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FetchError("no_file", f"{path}: not a regular file"[:_ERROR_CHARACTERS])
            body = file.read(min(status.st_size, limit) + 1)
        return self._checked(body)

    def _load_remote(self, url: str) -> bytes:
        parts = urlsplit(url)
        root = f"{parts.scheme}://{parts.netloc}"
        fs = self._file_systems.get(root)
        if fs is None:
            fs = self._file_systems.setdefault(root, open_location(root)[0])
        try:
            return self._checked(fs.cat_file(url, start=0, end=self._settings.max_bytes + 1))
        except OSError as error:
            # S3 refuses a range of an empty object
            if not isinstance(error, FileNotFoundError) and not fs.info(url)["size"]:
                return b""
            raise

    def _checked(self, body: bytes) -> bytes:
        if len(body) > self._settings.max_bytes:
            raise FetchError("too_large", f"more than {self._settings.max_bytes} bytes")
        return body


def _open_without_blocking(path: str, flags: int) -> int:
    """Open a file without waiting: a named pipe would block until another process writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _file_path(url: str) -> str:
    """Return the absolute path in a `file:` URL, such as `file:///data/a%20b.jpg`.

    Raises:
        FetchError: the URL names another host, or its path is not absolute.
    """
    rest = url[len("file:") :]
    if rest.startswith("//"):
        host, slash, rest = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise FetchError("bad_url", f"a file on the host {host[:80]!r}; write file:///PATH for a file on this one")
        rest = slash + rest
    if not rest.startswith("/"):
        raise FetchError("bad_url", "a file: URL with a relative path; write the path without file:")
    return unquote(rest, errors="surrogateescape")
