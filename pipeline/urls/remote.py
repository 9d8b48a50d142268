"""Access to URL lists on web servers and on the Hugging Face Hub."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import re
import shlex
import shutil
import socket
import tempfile
import weakref
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ..contract.lock import process_runs
from ..contract.storage import open_location
from ..errors import InputError
from ..explain import one_line

_CONNECT_SECONDS, _READ_SECONDS = 30, 300
"""Seconds that a connection to a web server may take, and that the server may be silent. There is no limit on the total
time, because a list may be large."""
_HUB = "hf"
"""Scheme of addresses on the Hugging Face Hub."""
_CONTENT_TYPES = {
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
    "application/json": "json",
    "application/jsonl": "jsonl",
    "application/jsonlines": "jsonl",
    "application/x-jsonlines": "jsonl",
    "application/x-ndjson": "jsonl",
    "application/parquet": "parquet",
    "application/x-parquet": "parquet",
    "application/vnd.apache.parquet": "parquet",
}
"""Content types that identify the format of a list, mapped to the file name ending of that format."""
_FILE_NAME = re.compile(r"""filename\*?=(?:UTF-8'')?"?([^";]+)""", re.IGNORECASE)
"""Regular expression for the file name in a `Content-Disposition` header."""


def is_web(address: str) -> bool:
    """Return True if an address is an HTTP or HTTPS URL."""
    return address.lower().startswith(("http://", "https://"))


def shown_address(address: str) -> str:
    """Return an address without the secrets that it may contain, for messages.

    These are the query, which can contain a signature, and the user name and password.
    """
    if "://" not in address or not is_web(address.rpartition("::")[2]):
        return address
    plain, query, _ = address.partition("?")
    return re.sub(r"://[^/@]*@", "://", plain) + ("?..." if query else "")


def open_address(address: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path within that file system.

    Web servers are accessed through the proxies that the environment names, and the address is sent as it is written,
    because the signature of an address can depend on its spelling.

    Raises:
        InputError: the scheme is unknown, or the package that supports it is not installed.
    """
    last = address.rpartition("::")[2]
    if not is_web(last):
        return open_location(address)
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)
    headers = {"Accept-Encoding": "identity"}  # servers do not send parts of a response that they compress
    options = {
        "client_kwargs": {"trust_env": True, "timeout": timeout, "headers": headers},
        "encoded": last.isascii() and not re.search(r"\s", last),
    }
    return open_location(address, **{last.partition("://")[0].lower(): options})


@dataclass(frozen=True)
class WebAnswer:
    """Response of a web server to a request for the first byte of a list."""

    names: tuple[str, ...]
    """Names that the file may have, best first. Not all of them end like a list."""
    content_type: str
    """Content type in lower case, without parameters; empty if unknown."""
    bytes: int | None
    """Size of the file; None if unknown."""
    has_ranges: bool
    """True if the server sends parts of the file on request."""
    is_encoded: bool
    """True if the server compresses the response, whatever the file's name is."""

    @property
    def format(self) -> str | None:
        """Format of the list according to the content type, or None if the content type does not determine it."""
        return _CONTENT_TYPES.get(self.content_type)


def ask_server(address: str) -> WebAnswer:
    """Request the first byte of a list from a web server, to find out the list's name and how it can be read.

    Raises:
        InputError: the server cannot be reached, or does not send the list.
    """
    import aiohttp
    from fsspec.asyn import sync

    fs, path = open_address(address)

    async def ask() -> WebAnswer:
        session = await fs.set_session()
        options = dict(fs.kwargs)
        headers = {**options.pop("headers", {}), "Range": "bytes=0-0"}
        async with session.get(fs.encode_url(path), headers=headers, **options) as response:
            if response.status >= 400 and response.status != 416:  # 416: the file is empty
                raise _refused(address, response.status, response.reason)
            return _answer(address, str(response.url), response.status, response.headers)

    try:
        answer: WebAnswer = sync(fs.loop, ask)
    except InputError:
        raise
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:  # ValueError: invalid address
        raise _unreachable(address, error) from error
    return answer


def _answer(address: str, final: str, status: int, headers: Any) -> WebAnswer:
    """Return the answer of a server as a `WebAnswer`.

    Args:
        address: address that was requested.
        final: address of the response, after redirects.
        status: HTTP status.
        headers: response headers, with case-insensitive names.
    """
    stated = _FILE_NAME.search(headers.get("Content-Disposition", ""))
    parts = [urlsplit(address), urlsplit(final)]
    names = [_last_name(parts[0].path)]
    names += [_last_name(value.partition("filename=")[2].strip('"') or value) for _, value in parse_qsl(parts[0].query)]
    names += [unquote(stated[1])] if stated else []
    names += [_last_name(parts[1].path)]
    total = headers.get("Content-Range", "").rpartition("/")[2] if status == 206 else headers.get("Content-Length", "")
    is_encoded = headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")
    return WebAnswer(
        names=tuple(dict.fromkeys(name for name in names if name)),
        content_type=headers.get("Content-Type", "").partition(";")[0].strip().lower(),
        bytes=int(total) if total.isdecimal() and status != 416 else None,
        has_ranges=status == 206 and total.isdecimal() and not is_encoded,
        is_encoded=is_encoded,
    )


def _last_name(path: str) -> str:
    return unquote(path).rstrip("/").rpartition("/")[2]


def _refused(address: str, status: int, reason: str | None) -> InputError:
    shown = shown_address(address)
    if status in (404, 410):
        return InputError(f"{shown}: no such file or folder (HTTP {status})")
    if status in (400, 401, 403):
        return InputError(
            f"{shown}: the server does not allow access (HTTP {status}); a signed address may have expired: get a new "
            "one, and run the same command again"
        )
    return InputError(f"{shown}: the server answers HTTP {status} {reason or ''}".rstrip() + "; try again later")


def _unreachable(address: str, error: Exception) -> InputError:
    return InputError(
        f"{shown_address(address)}: the server cannot be reached ({one_line(error, 120)}); check the address, the "
        "network and http_proxy"
    )


class DiskCopy:
    """Temporary copy of a file, which is removed together with this object.

    If the process is killed, the copy stays on disk until another copy is made on the same machine.
    """

    def __init__(self) -> None:
        start = f"priorkit-list-{socket.gethostname()}-"
        _remove_abandoned(start)
        number, self.path = tempfile.mkstemp(prefix=f"{start}{os.getpid()}-")
        os.close(number)
        weakref.finalize(self, _remove, self.path, os.getpid())


def _remove_abandoned(start: str) -> None:
    """Remove the copies of processes that were killed.

    Args:
        start: start of the names of copies, which is followed by the number of the process and a random part. It
            contains the name of the machine, because several machines may share the folder.
    """
    copy = re.compile(rf"{re.escape(start)}(\d{{1,9}})-[a-z0-9_]+")
    for path in glob.glob(f"{glob.escape(os.path.join(tempfile.gettempdir(), start))}*"):
        found = copy.fullmatch(os.path.basename(path))
        if found is not None and not process_runs(int(found[1])):
            with contextlib.suppress(OSError):  # another process removed it first, or another user owns it
                os.remove(path)


def _remove(path: str, creator: int) -> None:
    if os.getpid() == creator:  # a forked process shares the file
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def copy_to_disk(address: str, size: int | None) -> DiskCopy:
    """Copy a file from a web server to a temporary file.

    A server that does not send parts of a file would have to send the file from its start again after each pause.

    Args:
        address: address of the file.
        size: size in bytes, or None if unknown.

    Raises:
        InputError: the file cannot be read, or the disk has too little space for it.
    """
    import aiohttp

    free = shutil.disk_usage(tempfile.gettempdir()).free
    if size is not None and size > free:
        raise InputError(
            f"{shown_address(address)}: the server sends this list only as a whole, and {tempfile.gettempdir()} has "
            f"{free / 1e9:.1f} GB free of the {size / 1e9:.1f} GB that a copy needs; set TMPDIR to a larger disk"
        )
    fs, path = open_address(address)
    copy = DiskCopy()
    try:
        fs.get_file(path, copy.path)
    except (aiohttp.ClientError, asyncio.TimeoutError, FileNotFoundError) as error:
        raise _unreachable(address, error) from error
    return copy


def require_hub(fs: Any, path: str, source: str) -> None:
    """Check that a repository on the Hugging Face Hub can be read. Do nothing for any other file system.

    `fs.isfile` and `fs.isdir` return False if the hub cannot be reached, so the list would seem to be missing.

    Args:
        fs: fsspec file system of the list.
        path: path of the list in the file system, such as `datasets/ORG/NAME/urls.parquet`.
        source: address of the list, for error messages.

    Raises:
        InputError: the hub cannot be reached, or the repository is missing or private.
    """
    if _HUB not in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol):
        return
    parts = path.split("/")
    count = 3 if parts[0] in ("datasets", "spaces", "buckets") else 2
    if len(parts) < count:
        raise InputError(f"{source}: not an address on the hub; write hf://datasets/ORG/NAME/FILE")
    if parts[count - 1].endswith("@refs"):  # a revision such as refs/convert/parquet
        count += 2
    repository = "/".join(parts[:count])
    try:
        fs.info(repository)
    except FileNotFoundError as error:
        cause = error.__cause__ or error.__context__
        reason = f" ({type(cause).__name__})" if cause is not None else ""
        raise InputError(
            f"{source}: the hub has no repository {repository!r} that you may read{reason}; check its name, or log in "
            "with `hf auth login`"
        ) from error
    except Exception as error:  # the type depends on the HTTP library that this version of huggingface_hub uses
        raise InputError(
            f"{source}: the Hugging Face Hub cannot be reached ({one_line(error, 120)}); connect this machine, or run "
            f"`{_hub_command(repository, path)}` on one that is, and name the copy"
        ) from error


def _hub_command(repository: str, path: str) -> str:
    """Return the command that copies files from a repository on the hub to the folder `list`.

    Args:
        repository: path of the repository, such as `datasets/ORG/NAME@REVISION`.
        path: path of the files, which may be a pattern.
    """
    kind = "--repo-type dataset " if repository.startswith("datasets/") else ""
    name, _, revision = repository.removeprefix("datasets/").partition("@")
    file = path[len(repository) + 1 :]
    option = "--include " if any(character in file for character in "*?[") else ""
    parts = [
        shlex.quote(name),
        f"{option}{shlex.quote(file)}" if file else "",
        f"--revision {shlex.quote(revision)}" if revision else "",
        "--local-dir list",
    ]
    return f"hf download {kind}{' '.join(filter(None, parts))}"
