"""Folder lock, which lets only one process at a time write to a folder.

A local folder is locked with `flock`; the kernel releases the lock when the process ends. On an object store, or on a
file system that does not support locks, the writer holds a lease instead. A lease is a small file that the writer
renews while it works. After a crash, the lease expires.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from ..errors import FolderError, InputError
from .storage import Store

LOCK_NAME = ".lock"
LEASE_NAME = "lease.json"
_LEASE_SECONDS = 120.0
"""Number of seconds after which a lease expires if it is not renewed. After a crash, other machines must wait until its
lease has expired."""
_RENEWALS = 4
"""Number of renewals per lease period, so that one or two slow requests do not let the lease expire."""
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, 524})
"""Error codes of `flock` on file systems that do not support locks.

Examples are Lustre mounted without `-o flock`, and some NFS and autofs mounts. 524 is ENOTSUPP, which Python's `errno`
module does not define.
"""
_WARNED: set[str] = set()
"""Folders for which this process has already logged that the file system does not support locks."""


@contextlib.contextmanager
def lock_folder(store: Store) -> Iterator[None]:
    """Context manager that lets only this process write to a folder until the `with` block ends.

    The folder is created if it does not exist.

    Raises:
        FolderError: another process is writing to the folder.
        InputError: the folder's lease file (a lock file with an expiry time) is damaged.
    """
    store.make()
    with _file_lock(store) if store.is_local else _lease(store):
        yield


@contextlib.contextmanager
def _file_lock(store: Store) -> Iterator[None]:
    """Context manager that locks a local folder with `flock`.

    If the file system does not support `flock`, the folder is locked with a lease (a lock file with an expiry time).

    Raises:
        FolderError: another process is writing to the folder.
        InputError: the lease file is damaged.
    """
    import fcntl

    with open(f"{store.root}/{LOCK_NAME}", "w") as file:
        lease: contextlib.AbstractContextManager[None]
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel releases the lock when the process dies
        except BlockingIOError:
            raise FolderError(
                f"{store.root}: another priorkit process is writing here; wait for it or use another folder"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _warn_without_locks(store.root, error)
            lease = _lease(store)
        else:
            _require_no_lease(store)  # a machine that mounts this folder without locks may hold a lease
            lease = contextlib.nullcontext()
        with lease:
            yield


def _require_no_lease(store: Store) -> None:
    """Check that no other process holds a lease (a lock file with an expiry time) on the folder.

    A lease is ignored if it has expired, or if the process that wrote it ran on this machine and has ended.

    Raises:
        FolderError: another process holds a lease.
        InputError: the lease file is damaged.
    """
    host = socket.gethostname()
    with contextlib.suppress(FileNotFoundError):
        lease = store.read_json(LEASE_NAME)
        try:
            dead = lease["host"] == host and not process_runs(lease["pid"])
            left = lease["expires"] - time.time()
        except (KeyError, TypeError) as error:
            raise InputError(f"{store.path(LEASE_NAME)} is not a lease of priorkit ({error!r}); remove it") from error
        if left > 0 and not dead:
            raise FolderError(
                f"{store.url}: process {lease['pid']} on {lease['host']} is writing here; "
                f"wait for it (its lease ends in {left:.0f} s unless renewed) or use another folder"
            )


@contextlib.contextmanager
def _lease(store: Store) -> Iterator[None]:
    """Context manager that locks a folder with a lease: a file with an expiry time, which a background thread renews.

    Raises:
        FolderError: another process holds a lease, or created one at the same moment.
        InputError: the lease file is damaged.
    """
    _require_no_lease(store)
    owner, host = uuid.uuid4().hex, socket.gethostname()

    def renew() -> None:
        expires = time.time() + _LEASE_SECONDS
        store.write_json(LEASE_NAME, {"owner": owner, "host": host, "pid": os.getpid(), "expires": expires})

    renew()
    if store.read_json(LEASE_NAME)["owner"] != owner:
        raise FolderError(f"{store.url}: another process began to write here at the same moment; use another folder")
    done = threading.Event()

    def keep_renewing() -> None:
        while not done.wait(_LEASE_SECONDS / _RENEWALS):
            renew()

    thread = threading.Thread(target=keep_renewing, name="priorkit-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        store.remove(LEASE_NAME)


def _warn_without_locks(folder: str, error: OSError) -> None:
    """Warn, once per process and folder, that a lease is used to lock the folder because `flock` is not supported."""
    if folder not in _WARNED:
        _WARNED.add(folder)
        logging.getLogger(__name__).warning(
            "%s: its file system has no locks (%s), so %s holds the folder; after a crash, another machine can write "
            "here %.0f s later", folder, error.strerror or error, LEASE_NAME, _LEASE_SECONDS,
        )  # fmt: skip


def process_runs(pid: int) -> bool:
    """Return True if a process of this machine runs, or if it cannot be checked because another user started it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
