"""Recognise input files that no manifest of ours describes: by size and modification time, else by their SHA-256.

A stage records a *mark* of each such file that it reads. A file whose size and modification time (on an object store
its ETag or the like) are those of the mark is unchanged and is not read. Otherwise its hash decides, so that a file
that was moved, touched or copied is still the same, and one that was rewritten at the same size is not.
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
"""Takes a note on progress; None where nobody wants to know."""

_HASH_THREADS = 8
_QUIET_SECONDS = 1.0
"""Seconds of hashing before progress is shown, and between two notes."""
_REST_BYTES = 1 << 20
UNREADABLE = "unreadable"
"""In place of the hash of a file that could not be read, so that it counts as changed once it can be."""
_CACHED_HASHES = 1024
"""Number of files whose hashes a process keeps, since a large table is the input of many shards."""


@dataclass(frozen=True)
class FileMark:
    """Content of a file, and by what it is recognised without reading it."""

    bytes: int
    modified: str | None
    """As `Stamp.modified`; None where that is not to be trusted."""
    sha256: str

    @staticmethod
    def of(stamp: Stamp, sha256: str) -> FileMark:
        """Mark of a file that had this stamp before it was read."""
        return FileMark(stamp.bytes, stamp.modified if stamp.settled else None, sha256)

    def is_of(self, stamp: Stamp) -> bool:
        """Return whether the file that has this stamp now is certain to be unchanged."""
        return self.modified is not None and (self.bytes, self.modified) == (stamp.bytes, stamp.modified)


class _Hashes:
    """Hashes that this process has computed, with the stamps that the files had before they were read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: dict[tuple[str, str], tuple[Stamp, str, bool]] = {}
        """Of files that were hashed while their shard was read, until the shard's record asks for them; and whether the
        rows were read apart from the hash."""
        self._cached: OrderedDict[tuple[str, str], tuple[Stamp, str]] = OrderedDict()

    def note(self, store: Store, name: str, stamp: Stamp, sha256: str, *, apart: bool = False) -> None:
        """Remember a hash of a file of the shard that is read."""
        with self._lock:
            self._read[store.url, name] = stamp, sha256, apart

    def take(self, store: Store, name: str) -> tuple[FileMark, bool] | None:
        """What `note` was given, which is then forgotten."""
        with self._lock:
            found = self._read.pop((store.url, name), None)
        return None if found is None else (FileMark.of(*found[:2]), found[2])

    def compute(self, store: Store, name: str, stamp: Stamp) -> str:
        """SHA-256 of a file, read unless it was hashed with this stamp before; InputError if it cannot be read."""
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
    """Remember the hash of a file that was read whole, until `marks_of_read` asks for it.

    Args:
        stamp: as it was before the file was read.
        content: None of a file that could not be read.
    """
    _HASHES.note(store, name, stamp, UNREADABLE if content is None else hashlib.sha256(content).hexdigest())


def note_file(store: Store, name: str) -> None:
    """Hash a file that is about to be read by parts, until `marks_of_read` asks for it."""
    if (stamp := stamps(store, [name]).get(name)) is not None:
        with contextlib.suppress(InputError):  # whoever reads it says what is wrong
            _HASHES.note(store, name, stamp, _HASHES.compute(store, name, stamp), apart=True)


class _HashedReader:
    """A file that is read from its start to its end, and hashed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read on."""
        data = self._file.read(size)
        self._digest.update(data)
        return data

    def finish(self) -> str:
        """SHA-256 of the whole file, whose rest is read."""
        while self.read(_REST_BYTES):
            pass
        return self._digest.hexdigest()


@contextlib.contextmanager
def open_hashed(store: Store, name: str) -> Iterator[BinaryIO]:
    """Open a file to stream it; its hash is remembered for `marks_of_read` unless the reader gives up."""
    stamp = stamps(store, [name]).get(name, NO_STAMP)
    with store.fs.open(f"{store.root}/{name}", "rb") as file:
        reader = _HashedReader(file)
        yield cast(BinaryIO, reader)
        _HASHES.note(store, name, stamp, reader.finish())


def marks_of_read(store: Store, names: Iterable[str]) -> dict[str, FileMark]:
    """Marks of the files of a shard that was read, with the hashes of what was read; others are hashed now.

    Raises:
        InputError: a file was changed while it was read.
    """
    marks: dict[str, FileMark] = {}
    rest, apart = [], []
    for name in names:
        if (found := _HASHES.take(store, name)) is None:
            rest.append(name)
            continue
        marks[name], is_apart = found
        apart += [name] if is_apart else []
    for name, mark in identify(store, apart, marks, lenient=True).items():
        if mark.sha256 != marks[name].sha256:
            raise InputError(f"{store.url}/{name} was changed while it was read; run the same command again")
    return {**marks, **identify(store, rest, {}, lenient=True)}


def identify(
    store: Store, names: Iterable[str], known: Mapping[str, FileMark], tell: Tell = None, *, lenient: bool = False
) -> dict[str, FileMark]:
    """Marks of files as they are now; those that have changed since they were marked are read.

    Args:
        known: marks that were recorded before.
        tell: told of the progress of hashing that takes more than a second.
        lenient: a file that is missing or cannot be read has a mark that says so, and is no error.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    names = list(dict.fromkeys(names))
    found = stamps(store, names)
    to_hash = [name for name in names if name not in found or name not in known or not known[name].is_of(found[name])]

    def mark_of(name: str) -> FileMark:
        try:
            if name not in found:
                raise InputError(f"{store.url}/{name} is missing; restore it")
            return FileMark.of(found[name], _HASHES.compute(store, name, found[name]))
        except InputError:
            if lenient:
                return FileMark(0, None, UNREADABLE)
            raise

    marks = {name: known[name] for name in set(names).difference(to_hash)}
    total, done = sum(stamp.bytes for name, stamp in found.items() if name not in marks), 0
    told = time.monotonic()
    with ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="hash") as pool:
        for name, mark in zip(to_hash, pool.map(mark_of, to_hash), strict=True):
            marks[name] = mark
            done += mark.bytes
            if tell is not None and time.monotonic() - told > _QUIET_SECONDS:
                told = time.monotonic()
                tell(f"hashing {store.url}: {done / 1e9:,.1f} of {total / 1e9:,.1f} GB")
    return {name: marks[name] for name in names}


def content_fingerprint(marks: Mapping[str, FileMark]) -> str:
    """Fingerprint of the names and contents of files, wherever they are."""
    return fingerprint({name: mark.sha256 for name, mark in marks.items()})


def to_json(marks: Mapping[str, FileMark]) -> dict[str, Any]:
    """Marks as a manifest holds them."""
    return {name: asdict(marks[name]) for name in sorted(marks)}


def from_json(value: Any) -> dict[str, FileMark]:
    """Marks that `to_json` gave; what is no mark is left out, so that its file is hashed."""
    marks = {}
    for name, entry in value.items() if isinstance(value, dict) else ():
        with contextlib.suppress(TypeError):
            mark = FileMark(**entry)
            if isinstance(mark.bytes, int) and isinstance(mark.sha256, str):
                marks[name] = mark
    return marks


def read_marks(store: Store, name: str) -> dict[str, FileMark]:
    """Marks in a JSON file; none where it is missing or damaged."""
    try:
        return from_json(store.read_json(name))
    except (OSError, InputError):
        return {}
