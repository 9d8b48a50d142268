"""User-facing messages for exceptions that Python and other libraries raise."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from .errors import PriorkitError

_REMOTE_LIBRARIES = frozenset(
    {
        "adlfs", "aiobotocore", "aiohttp", "azure", "boto3", "botocore", "gcsfs", "google", "hf_xet", "httpcore",
        "httpcore2", "httpx", "httpx2", "huggingface_hub", "requests", "s3fs", "urllib", "urllib3",
    }
)  # fmt: skip
"""Packages for access to object stores and model hubs. Their exceptions usually mean that the remote storage failed."""
_DATA_LIBRARIES = frozenset(
    {"json", "lzma", "pickle", "PIL", "pyarrow", "safetensors", "struct", "tarfile", "zipfile", "zlib"}
)
"""Packages that parse files. Their exceptions usually mean that the file is damaged."""

_OS_MESSAGES = {
    errno.EACCES: "not allowed to write or read: {}; change its permissions or name another folder",
    errno.EISDIR: "{} is a folder, and a file is needed; name the file",
    errno.ELOOP: "{} is a circle of symbolic links; name the file or folder itself",
    errno.EMFILE: "too many open files ({}); raise the limit with `ulimit -n 65536`",
    errno.ENAMETOOLONG: "{} is longer than the file system takes; use a shorter name",
    errno.ENOENT: "{}: no such file or folder",
    errno.ENOSPC: "no space left on the disk ({}); free some: what is committed is kept, the same command resumes",
    errno.ENOSYS: "{}: the file system cannot do this; use a folder on another",
    errno.ENOTDIR: "{} has a file where a folder is needed; name another path",
    errno.EIO: "{}: the disk, the network file system or the terminal failed; what is committed is kept",
}  # fmt: skip
"""Message for each `errno` value, in which `{}` is replaced by the file name."""
_SAME_MESSAGES = {
    errno.EDQUOT: errno.ENOSPC, errno.ENFILE: errno.EMFILE, errno.EOPNOTSUPP: errno.ENOSYS, errno.EPERM: errno.EACCES,
    errno.EROFS: errno.EACCES,
}  # fmt: skip
"""Mapping from `errno` values that have no message in `_OS_MESSAGES` to similar values whose messages they use."""

_MAX_CHARACTERS = 300
"""Maximum number of characters in the part of a message that quotes an exception."""


def explain(error: BaseException) -> str | None:
    """Return the message to show to the user for an exception, or None if the exception is a bug in priorkit.

    Exceptions of file-parsing libraries are normally caught where a file is read. For those that are not caught there,
    the message says that a file cannot be read.
    """
    if isinstance(error, PriorkitError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what is committed is kept, the same command resumes from there"
    if _is_remote(error):
        return f"remote storage: {one_line(error)}; check its address, the network and your credentials"
    if isinstance(error, OSError):
        return _explain_os_error(error)
    if _is_out_of_memory(error):
        return f"out of memory ({one_line(error, 120)}); use smaller batches, fewer workers, or a machine with more"
    if isinstance(error, RecursionError):
        return "an input is nested too deeply to be read"
    if any(kind.__module__.partition(".")[0] in _DATA_LIBRARIES for kind in type(error).__mro__):
        return f"a file cannot be read ({type(error).__name__}: {one_line(error)}); `priorkit inspect` names damage"
    return None


def one_line(error: BaseException, limit: int = _MAX_CHARACTERS) -> str:
    """Return the text of an exception on one line, cut to `limit` characters. If there is no text, return the name of
    the exception's type."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def report_bug(error: BaseException) -> str:
    """Write the traceback of a bug to a temporary file, and return a message with the exception and the file's path.

    If the file cannot be written, the message says to set PRIORKIT_TRACEBACK=1 instead, which prints the traceback.
    """
    summary = f"internal error: {type(error).__name__}: {one_line(error)}{_place(error)}; this is a bug in priorkit"
    try:
        number, path = tempfile.mkstemp(prefix="priorkit-traceback-", suffix=".txt")
        with open(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return f"{summary}: please report it with what PRIORKIT_TRACEBACK=1 shows"
    return f"{summary}: please report it with {path}"


def _place(error: BaseException) -> str:
    """Return ` at FILE:LINE` for the traceback's innermost frame in priorkit, or an empty string if there is none."""
    root = Path(__file__).resolve().parents[1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename).resolve()
        if path.is_relative_to(root) and "site-packages" not in path.relative_to(root).parts:
            return f" at {path.relative_to(root).as_posix()}:{frame.lineno}"
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, then the exception that led to it, and so on. Stop if an exception repeats.

    The exception that led to another is its `__cause__`, or else its `__context__`, unless that is suppressed. Yield
    nothing if `error` is None.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_remote(error: BaseException) -> bool:
    """Return True if an exception probably comes from an access to remote storage.

    The function checks the types, including base classes, of the exception and of the exceptions that led to it. It
    returns True if a package in `_REMOTE_LIBRARIES` defines one of these types. For FileNotFoundError and
    PermissionError, it checks only the exception itself, because these errors have messages of their own.
    """
    errors = [error] if isinstance(error, FileNotFoundError | PermissionError) else _chain(error)
    kinds = {kind for cause in errors for kind in type(cause).__mro__}
    return any(kind.__module__.partition(".")[0] in _REMOTE_LIBRARIES for kind in kinds)


def _is_out_of_memory(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"}:
        return True
    text = str(error).lower()  # torch's CPU allocator raises a plain RuntimeError
    return isinstance(error, RuntimeError) and any(
        part in text for part in ("out of memory", "not enough memory", "can't allocate memory")
    )


def _explain_os_error(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"the name of a host cannot be found ({error.strerror}); check the address and the network"
    number = error.errno or 0
    message = _OS_MESSAGES.get(_SAME_MESSAGES.get(number, number))
    if message is None:
        return f"{type(error).__name__}: {one_line(error)}"
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return message.format(" or ".join(names) or one_line(error))
