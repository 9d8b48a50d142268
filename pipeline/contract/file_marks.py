"""Recognition of input files without a manifest: by size and modification time, or else by their SHA-256.

A stage records a *mark* of each such file that it reads. A file that still has the size and modification time of its
mark (on an object store: the ETag or similar) is unchanged and is not read. Otherwise its hash decides: a file that was
moved, touched or copied counts as the same, and one that was rewritten at the same size does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Optional, cast

from ..errors import InputError
from .file_stamps import NO_STAMP, Stamp, stamps
from .hashing import hash_file
from .manifest import fingerprint
from .storage import Store

Tell = Optional[Callable[[str], None]]
"""Function that takes a line about progress; None to report nothing."""

_HASH_THREADS = 8
"""Number of files that are hashed at once."""
_REPORT_SECONDS = 1.0
"""Seconds of hashing before the first report, and between two reports."""
_BLOCK_BYTES = 1 << 20
"""Bytes per read when the rest of a file is hashed."""
UNREADABLE = "unreadable"
"""Stands for the hash of a file that cannot be read; the file counts as changed when it is readable again."""
_CACHED_HASHES = 1024
"""Number of files whose hashes a process caches, since one large table can be the input of many shards."""


@dataclass(frozen=True)
class FileMark:
    """Hash of a file's content, with size and modification time to recognise the file without reading it."""

    bytes: int
    modified: str | None
    """Modification time or tags, see `Stamp.modified`; None if a later change may not alter it."""
    sha256: str

    @staticmethod
    def of(stamp: Stamp, sha256: str) -> FileMark:
        """Return the mark of a file that had this stamp before it was read."""
        return FileMark(stamp.bytes, stamp.modified if stamp.settled else None, sha256)

    def is_of(self, stamp: Stamp) -> bool:
        """Return whether a file with this stamp is certainly unchanged."""
        return self.modified is not None and (self.bytes, self.modified) == (stamp.bytes, stamp.modified)


class _Hashes:
    """Hashes that this process has computed, with the stamps of the files from before they were read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: dict[tuple[str, str], tuple[Stamp, str, bool]] = {}
        """Stamp and hash of files that were hashed while their shard was read, until the shard's record takes them;
        and whether the rows were read separately from the hash."""
        self._cached: OrderedDict[tuple[str, str], tuple[Stamp, str]] = OrderedDict()

    def note(self, store: Store, name: str, stamp: Stamp, sha256: str, *, separate: bool = False) -> None:
        """Store the hash of a file of the current shard."""
        with self._lock:
            self._read[store.url, name] = stamp, sha256, separate

    def take(self, store: Store, name: str) -> tuple[FileMark, bool] | None:
        """Remove and return what `note` stored: the file's mark, and whether its rows were read separately."""
        with self._lock:
            entry = self._read.pop((store.url, name), None)
        return None if entry is None else (FileMark.of(*entry[:2]), entry[2])

    def compute(self, store: Store, name: str, stamp: Stamp) -> str:
        """Return the SHA-256 of a file, cached by its stamp; InputError if the file cannot be read."""
        with self._lock:
            known, sha256 = self._cached.get((store.url, name), (None, ""))
        if known == stamp and stamp.settled:
            return sha256
        try:
            with store.fs.open(f"{store.root}/{name}", "rb") as file:
                sha256 = hash_file(file)
        except OSError as error:
            raise InputError(f"{store.url}/{name} cannot be read ({error})") from error
        with self._lock:
            self._cached[store.url, name] = stamp, sha256
            while len(self._cached) > _CACHED_HASHES:
                self._cached.popitem(last=False)
        return sha256


_HASHES = _Hashes()


def note_content(store: Store, name: str, stamp: Stamp, content: bytes | None) -> None:
    """Hash a file that was read completely, for `marks_of_read`.

    Args:
        stamp: stamp of the file from before it was read.
        content: content of the file; None if it could not be read.
    """
    _HASHES.note(store, name, stamp, UNREADABLE if content is None else hashlib.sha256(content).hexdigest())


def note_file(store: Store, name: str) -> None:
    """Hash a file that is about to be read in parts, for `marks_of_read`."""
    if (stamp := stamps(store, [name]).get(name)) is not None:
        with contextlib.suppress(InputError):  # the read that follows reports the error
            _HASHES.note(store, name, stamp, _HASHES.compute(store, name, stamp), separate=True)


class _HashedReader:
    """A file that is hashed while it is read from start to end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read the next bytes."""
        data = self._file.read(size)
        self._digest.update(data)
        return data

    def finish(self) -> str:
        """Read the rest of the file, and return the SHA-256 of the whole."""
        while self.read(_BLOCK_BYTES):
            pass
        return self._digest.hexdigest()


@contextlib.contextmanager
def open_hashed(store: Store, name: str) -> Iterator[BinaryIO]:
    """Open a file to stream it, and hash it for `marks_of_read` unless the block fails."""
    stamp = stamps(store, [name]).get(name, NO_STAMP)
    with store.fs.open(f"{store.root}/{name}", "rb") as file:
        reader = _HashedReader(file)
        yield cast(BinaryIO, reader)
        _HASHES.note(store, name, stamp, reader.finish())


def marks_of_read(store: Store, names: Iterable[str]) -> dict[str, FileMark]:
    """Return the marks of the files of a shard that was read; files that were not hashed then are hashed now.

    Raises:
        InputError: a file was changed while it was read.
    """
    marks: dict[str, FileMark] = {}
    unhashed, separate = [], []
    for name in names:
        if (entry := _HASHES.take(store, name)) is None:
            unhashed.append(name)
            continue
        marks[name], is_separate = entry
        separate += [name] if is_separate else []
    for name, mark in identify(store, separate, marks, lenient=True).items():
        if mark.sha256 != marks[name].sha256:
            raise InputError(f"{store.url}/{name} was changed while it was read; run the same command again")
    return {**marks, **identify(store, unhashed, {}, lenient=True)}


def identify(
    store: Store, names: Iterable[str], known: Mapping[str, FileMark], report: Tell = None, *, lenient: bool = False
) -> dict[str, FileMark]:
    """Return the current marks of files; only files that may have changed since their last mark are read.

    Args:
        known: marks that were recorded before.
        report: called with the progress of hashing, if that takes more than a second.
        lenient: give a missing or unreadable file a mark with the hash `UNREADABLE` instead of raising.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    names = list(dict.fromkeys(names))
    current = stamps(store, names)
    unchanged = {name for name in names if name in current and name in known and known[name].is_of(current[name])}
    to_hash = [name for name in names if name not in unchanged]

    def mark(name: str) -> FileMark:
        try:
            if name not in current:
                raise InputError(f"{store.url}/{name} is missing; restore it")
            return FileMark.of(current[name], _HASHES.compute(store, name, current[name]))
        except InputError:
            if lenient:
                return FileMark(0, None, UNREADABLE)
            raise

    marks = {name: known[name] for name in unchanged}
    total, done = sum(stamp.bytes for name, stamp in current.items() if name not in marks), 0
    last_report = time.monotonic()
    with ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="hash") as pool:
        for name, new in zip(to_hash, pool.map(mark, to_hash), strict=True):
            marks[name] = new
            done += new.bytes
            if report is not None and time.monotonic() - last_report > _REPORT_SECONDS:
                last_report = time.monotonic()
                report(f"hashing {store.url}: {done / 1e9:,.1f} of {total / 1e9:,.1f} GB")
    return {name: marks[name] for name in names}


def content_fingerprint(marks: Mapping[str, FileMark]) -> str:
    """Return a fingerprint of the names and contents of files; their location does not matter."""
    return fingerprint({name: mark.sha256 for name, mark in marks.items()})


def to_json(marks: Mapping[str, FileMark]) -> dict[str, Any]:
    """Return marks as plain JSON values for a manifest."""
    return {name: asdict(marks[name]) for name in sorted(marks)}


def from_json(value: Any) -> dict[str, FileMark]:
    """Return the marks in the output of `to_json`; invalid entries are left out, so that their files are hashed."""
    marks = {}
    for name, entry in value.items() if isinstance(value, dict) else ():
        with contextlib.suppress(TypeError):
            mark = FileMark(**entry)
            if isinstance(mark.bytes, int) and isinstance(mark.sha256, str):
                marks[name] = mark
    return marks


def read_marks(store: Store, name: str) -> dict[str, FileMark]:
    """Return the marks in a JSON file; empty if the file is missing or damaged."""
    try:
        return from_json(store.read_json(name))
    except (OSError, InputError):
        return {}
