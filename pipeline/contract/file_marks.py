"""Functions that detect changes to input files that no manifest lists, by comparing sizes and times, then hashes.

A stage records a *mark* (`FileMark`) for each input file that no manifest lists. If the file's size and modification
time (on an object store, the ETag or a similar tag) still match the mark, the file is unchanged and is not read again.
Otherwise, the file's hash is compared. A file that was moved, touched or copied has the same hash and counts as
unchanged. A file with new content counts as changed, even if its size is the same.
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
"""Callback that receives a line of progress text; None if no progress is reported."""

_HASH_THREADS = 8
"""Number of files hashed in parallel."""
_REPORT_SECONDS = 1.0
"""Minimum number of seconds before the first progress report and between reports."""
_BLOCK_BYTES = 1 << 20
"""Number of bytes per read when the rest of a partly read file is hashed."""
UNREADABLE = "unreadable"
"""Placeholder hash of a file that cannot be read. Once the file is readable again, it counts as changed."""
_CACHED_HASHES = 1024
"""Maximum number of file hashes cached per process, so that a large table read by many shards is hashed only once."""


@dataclass(frozen=True)
class FileMark:
    """Size, modification time and hash of a file, recorded to detect later changes to the file.

    If the size and modification time still match, the file counts as unchanged and is not read. If they differ, or if
    the recorded time is unreliable, the file is read and its hash is compared.
    """

    bytes: int
    modified: str | None
    """Modification time or object store tags (such as the ETag), determined before the file was read. None if they are
    unreliable, because a later write might leave them unchanged."""
    sha256: str

    @staticmethod
    def of(stamp: Stamp, sha256: str) -> FileMark:
        """Create a mark from a file's stamp (size and modification time) and hash.

        Args:
            stamp: stamp determined before the file was read. If `stamp.settled` is False, the modification time is
                not recorded, because a later write might leave it unchanged.
            sha256: hash of the file's content.
        """
        return FileMark(stamp.bytes, stamp.modified if stamp.settled else None, sha256)

    def is_of(self, stamp: Stamp) -> bool:
        """Return True if a file's size and modification time show that it has not changed since this mark was recorded.

        If the result is False, the file may or may not have changed, and its hash must be compared.

        Args:
            stamp: current stamp (size and modification time) of the file.
        """
        return self.modified is not None and (self.bytes, self.modified) == (stamp.bytes, stamp.modified)


class _Hashes:
    """Hashes of the files that this process has read, each with the file's stamp (size and modification time).

    The stamp is determined before the file is read. The code that reads a shard stores hashes with `note`, and
    `marks_of_read` retrieves them with `take`. `compute` hashes a file, and uses a cache to avoid hashing an unchanged
    file again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: dict[tuple[str, str], tuple[Stamp, str, bool]] = {}
        """Hashes of the source files of shards that are being read, keyed by folder URL and file name. Each value
        contains the file's stamp, its hash, and a flag that is True if the file is first hashed and then read again for
        its rows. `take` removes the entries."""
        self._cached: OrderedDict[tuple[str, str], tuple[Stamp, str]] = OrderedDict()

    def note(self, store: Store, name: str, stamp: Stamp, sha256: str, *, separate: bool = False) -> None:
        """Store the hash of a source file of the current shard until `take` retrieves it.

        Args:
            separate: True if the file is first hashed and then read again for its rows, so that it could change
                between the two reads.
        """
        with self._lock:
            self._read[store.url, name] = stamp, sha256, separate

    def take(self, store: Store, name: str) -> tuple[FileMark, bool] | None:
        """Remove and return the entry that `note` stored for a file.

        Returns:
            Tuple of the file's mark (size, modification time and hash) and the flag `separate` that was passed to
            `note`. None if there is no entry.
        """
        with self._lock:
            entry = self._read.pop((store.url, name), None)
        return None if entry is None else (FileMark.of(*entry[:2]), entry[2])

    def compute(self, store: Store, name: str, stamp: Stamp) -> str:
        """Return the SHA-256 of a file, and store it in the cache.

        The file is not read if the cache contains its hash and its stamp (size and modification time) shows that it has
        not changed since then.

        Args:
            stamp: current stamp of the file.

        Raises:
            InputError: the file cannot be read.
        """
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
    """Hash the content of a file that has been read in full, and store the hash for a later call to `marks_of_read`.

    Args:
        stamp: size and modification time of the file before it was read.
        content: the whole content of the file; None if it could not be read.
    """
    _HASHES.note(store, name, stamp, UNREADABLE if content is None else hashlib.sha256(content).hexdigest())


def note_file(store: Store, name: str) -> None:
    """Hash a file before its rows are read, and store the hash for a later call to `marks_of_read`.

    If the file is missing or cannot be read, nothing is stored and no error is raised.
    """
    if (stamp := stamps(store, [name]).get(name)) is not None:
        with contextlib.suppress(InputError):  # the read that follows reports the error
            _HASHES.note(store, name, stamp, _HASHES.compute(store, name, stamp), separate=True)


class _HashedReader:
    """Read-only wrapper of a binary file that computes the SHA-256 of all bytes read. Seeking is not supported."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read and hash the next `size` bytes; -1 reads the rest of the file."""
        data = self._file.read(size)
        self._digest.update(data)
        return data

    def finish(self) -> str:
        """Read the rest of the file, and return the SHA-256 of the whole file."""
        while self.read(_BLOCK_BYTES):
            pass
        return self._digest.hexdigest()


@contextlib.contextmanager
def open_hashed(store: Store, name: str) -> Iterator[BinaryIO]:
    """Context manager that opens a file for streaming, and hashes it while it is read.

    The hash is stored for a later call to `marks_of_read`, unless the `with` block raises an exception.
    """
    stamp = stamps(store, [name]).get(name, NO_STAMP)
    with store.fs.open(f"{store.root}/{name}", "rb") as file:
        reader = _HashedReader(file)
        yield cast(BinaryIO, reader)
        _HASHES.note(store, name, stamp, reader.finish())


def marks_of_read(store: Store, names: Iterable[str]) -> dict[str, FileMark]:
    """Return the mark (size, modification time and hash) of each source file of a shard, after the shard has been read.

    The hashes that `note_content`, `note_file` and `open_hashed` stored for these files are used and removed. Files
    without a stored hash are hashed now. Missing and unreadable files get the hash `UNREADABLE`.

    Args:
        store: folder of the files.
        names: names of the shard's source files.

    Returns:
        Marks by file name.

    Raises:
        InputError: a file has changed since `note_file` hashed it.
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
    """Return the current mark (size, modification time and hash) of each named file, by file name.

    A file is not read if its size and modification time match its known mark.

    Args:
        known: previously recorded marks, by file name.
        report: called with a line of progress text about once per second while files are hashed; None for no reports.
        lenient: True to give missing and unreadable files the hash `UNREADABLE` instead of raising InputError.

    Raises:
        InputError: a file is missing or cannot be read, and `lenient` is False.
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
    """Return a hash of the names and contents of a set of files.

    The location of their folder and the modification times do not affect it.

    Args:
        marks: mark of each file, by file name relative to the folder.
    """
    return fingerprint({name: mark.sha256 for name, mark in marks.items()})


def to_json(marks: Mapping[str, FileMark]) -> dict[str, Any]:
    """Convert marks (sizes, modification times and hashes of files) to plain JSON values."""
    return {name: asdict(marks[name]) for name in sorted(marks)}


def from_json(value: Any) -> dict[str, FileMark]:
    """Convert the output of `to_json` back to marks. Invalid entries are dropped, so their files are hashed again."""
    marks = {}
    for name, entry in value.items() if isinstance(value, dict) else ():
        with contextlib.suppress(TypeError):
            mark = FileMark(**entry)
            if isinstance(mark.bytes, int) and isinstance(mark.sha256, str):
                marks[name] = mark
    return marks


def read_marks(store: Store, name: str) -> dict[str, FileMark]:
    """Return the file marks (sizes, modification times and hashes) that are stored in a JSON file, by file name.

    The result is empty if the JSON file is missing or damaged.
    """
    try:
        return from_json(store.read_json(name))
    except (OSError, InputError):
        return {}
