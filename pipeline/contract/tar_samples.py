"""Streaming reader for the samples in a webdataset tar, with checks for damage."""

from __future__ import annotations

import contextlib
import gzip
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import BinaryIO, TypeVar, cast

from ..errors import InputError
from .file_marks import open_hashed
from .listing import is_data
from .samples import DEFAULT_FILES, Sample, SampleFiles
from .storage import Store
from .tar_names import GZIP_START

_END_BYTES = 1024
"""Number of zero bytes at the end of every complete tar: two blocks of 512 bytes."""
_TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, OverflowError, zlib.error, gzip.BadGzipFile)
"""Exceptions that tarfile and gzip raise for damaged or malicious tars. tarfile raises ValueError and OverflowError for
invalid numbers in headers."""
_GZIP_RATIO = 1032
"""Largest ratio of the size of data to its size when compressed with gzip."""
_DRAIN_BYTES = 1 << 20
"""Number of bytes per read of what follows the last member of a compressed tar."""
NOT_TOGETHER = "not_together"
"""Outcome of a sample whose files are not next to each other in the tar."""
NOT_TOGETHER_FIX = "the files of a sample do not stand together; write the tar again with `tar --sort=name`"

Content = TypeVar("Content")


def count_samples(store: Store, tar_name: str) -> int:
    """Return the number of samples in a tar. In a damaged tar, count only the samples before the damage.

    Only the headers are read, not the content of the files. A compressed tar is unpacked for this, without storing it.

    Raises:
        InputError: the files of a sample are not consecutive.
    """
    count, seen, split = 0, _SeenSamples(), None
    with contextlib.suppress(*_TAR_ERRORS):
        for key, members in _headers(store, tar_name):
            count += 1
            if seen.is_split(key, members):
                split = key
                break
    if split is not None:
        raise InputError(f"{store.url}/{tar_name}: {NOT_TOGETHER_FIX} (sample {split!r})")
    return count


def count_keys(store: Store, tar_name: str) -> Counter[str]:
    """Return the number of samples with each key in a tar. In a damaged tar, only samples before the damage count."""
    counts: Counter[str] = Counter()
    with contextlib.suppress(*_TAR_ERRORS):
        for key, _ in _headers(store, tar_name):
            counts[key] += 1
    return counts


def _headers(store: Store, tar_name: str) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield the key and the file extensions of each sample in a tar, without reading the content of the files.

    Raises:
        one of _TAR_ERRORS: the tar is damaged.
    """
    with store.open(tar_name) as file:
        is_compressed = file.read(len(GZIP_START)) == GZIP_START
        file.seek(0)
        content = cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb")) if is_compressed else file
        with tarfile.open(fileobj=content, mode="r|" if is_compressed else "r:") as tar:
            yield from _groups(tar, _tar_bytes(store, tar_name, is_compressed), lambda member: None)


def _tar_bytes(store: Store, tar_name: str, is_compressed: bool) -> int:
    """Return the size of a tar in bytes, or the largest possible size of its unpacked content if it is compressed."""
    return (store.size(tar_name) or 0) * (_GZIP_RATIO if is_compressed else 1)


class _TarStream:
    """Binary stream of the content of a tar, which is unpacked if it is compressed with gzip. Seeking is not supported.

    Args:
        file: the tar, open at its start.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._packed, self._start = file, file.read(len(GZIP_START))
        self.is_compressed = self._start == GZIP_START
        self._unpacked: gzip.GzipFile | None = None
        if self.is_compressed:
            self._unpacked = gzip.GzipFile(fileobj=cast(BinaryIO, _Reader(self._read_packed)), mode="rb")
        self._end = b""

    def _read_packed(self, size: int = -1) -> bytes:
        start, self._start = self._start, b""
        return start + self._packed.read(max(size - len(start), 0) if size >= 0 else -1)

    def read(self, size: int = -1) -> bytes:
        """Read the next `size` bytes of the tar's content; -1 reads the rest."""
        if self._unpacked is None:
            return self._read_packed(size)
        data = self._unpacked.read(size)
        self._end = (self._end + data)[-_END_BYTES:]
        return data

    def ends_whole(self) -> bool:
        """Read the rest of a compressed tar, and return True if its content ends like that of every complete tar.

        Raises:
            one of _TAR_ERRORS: the compressed data are damaged or end early.
        """
        while self.read(_DRAIN_BYTES):
            pass
        return len(self._end) == _END_BYTES and not any(self._end)


class _Reader:
    """File object with only a `read` method."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read


class _SeenSamples:
    """Record of the samples read so far from a tar, used to detect samples whose files are not consecutive.

    Only consecutive files with the same key are read as one sample. If `a.jpg` and `a.txt` are not consecutive, they
    are therefore read as two samples with the same key but no common file extension. Samples that share both a key and
    a file extension, such as two files `a.jpg`, are treated as different samples.
    """

    def __init__(self) -> None:
        self._extensions: dict[str, tuple[str, ...]] = {}
        self._shared: dict[tuple[str, ...], tuple[str, ...]] = {}

    def is_split(self, key: str, members: Iterable[str]) -> bool:
        """Record a sample, and return True if its files seem to belong to an earlier sample in the tar.

        This is the case if the tar's first sample with the same key has no file extension in common with this sample.

        Args:
            key: key of the sample.
            members: file extensions of the sample.
        """
        extensions = tuple(members)
        earlier = self._extensions.setdefault(key, self._shared.setdefault(extensions, extensions))
        return set(earlier).isdisjoint(extensions)


def _groups(
    tar: tarfile.TarFile, tar_bytes: int | None, read: Callable[[tarfile.TarInfo], Content]
) -> Iterator[tuple[str, dict[str, Content]]]:
    """Group consecutive files with the same key into samples, as webdataset does.

    A new sample also starts if the current sample already has a file with the same extension.

    Args:
        tar: open tar.
        tar_bytes: size of the tar in bytes. A member that claims to be larger than the tar is treated as damage.
        read: function called with the header of each file. It is called before the next header is read, so it can
            read the file's content from the tar.

    Yields:
        For each sample, its key and a dict that maps the extension of each file to the result of `read` for that file.

    Raises:
        one of _TAR_ERRORS: the tar is damaged. The samples before the damage are yielded first.
    """
    key = ""
    members: dict[str, Content] = {}
    damage: Exception | None = None
    try:
        for member, member_key, extension in _members(tar, tar_bytes):
            if members and (member_key != key or extension in members):
                yield key, members
                members = {}
            key = member_key
            members[extension] = read(member)
    except _TAR_ERRORS as error:
        damage = error
    if members:  # the last sample before the damage or the end of the tar; it may be complete
        yield key, members
    if damage is not None:
        raise damage


def _members(tar: tarfile.TarFile, tar_bytes: int | None) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Yield the header, sample key and file extension of each file or link in a tar that belongs to a sample.

    The key is the path up to the first dot in the file name, and the extension is the rest of the name in lower case.
    For example, `cat/0007.seg.PNG` has key `cat/0007` and extension `seg.png`. Names without an extension, and files
    that are not data files (see `is_data`), are skipped.

    Raises:
        one of _TAR_ERRORS: the tar is damaged, or a member claims to be larger than the tar.
    """
    if tar.firstmember is None:  # type: ignore[attr-defined]  # empty tar: `next` fails on Python 3.10
        return
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header in memory, 1 kB each
        if not 0 <= member.size <= (tar_bytes or 0):  # tarfile would try to skip this many bytes
            raise tarfile.ReadError(f"a member of {member.size:,} bytes")
        folder, slash, name = member.name.removeprefix("./").rpartition("/")
        stem, dot, extension = name.partition(".")
        if (member.isfile() or member.islnk() or member.issym()) and stem and dot and is_data(member.name):
            yield member, f"{folder}{slash}{stem}", extension.lower()


def read_tar(store: Store, tar_name: str, *, hashed: bool, rules: SampleFiles = DEFAULT_FILES) -> Iterator[Sample]:
    """Yield the samples of a tar in order, reading the tar as a stream. The tar may be compressed with gzip.

    If the files of a sample are not consecutive, the later files are yielded as a separate sample, which has the same
    key and contains only an error.

    Args:
        hashed: True to compute the tar's hash while it is read, and to store it for `file_marks.marks_of_read`.
        rules: rules that identify the image and the captions of a sample.

    Raises:
        InputError: the file is truncated or not a tar.
    """
    damage: Exception | None = None
    seen, is_whole = _SeenSamples(), None
    with open_hashed(store, tar_name) if hashed else store.open(tar_name) as file:
        try:
            stream = _TarStream(file)
            with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r|") as tar:
                tar_bytes = _tar_bytes(store, tar_name, stream.is_compressed)
                for key, members in _groups(tar, tar_bytes, partial(_content, tar)):
                    if seen.is_split(key, members):
                        yield Sample(key, None, None, f"{NOT_TOGETHER}: {NOT_TOGETHER_FIX}")
                    else:
                        yield rules.sample(key, members)
            if stream.is_compressed:
                is_whole = stream.ends_whole()
        except _TAR_ERRORS as error:
            damage = error
    if damage is not None:
        raise InputError(f"{store.url}/{tar_name} is damaged ({damage}); download that shard again") from damage
    if is_whole is None:
        is_whole = _is_complete(store, tar_name)
    if not is_whole:  # tarfile accepts a tar that was truncated between two members
        raise InputError(f"{store.url}/{tar_name} is damaged (it ends early); download that shard again")


def _is_complete(store: Store, tar_name: str) -> bool:
    """Return True if a tar ends with two zero-filled blocks, like every complete tar."""
    with store.open(tar_name) as file:
        file.seek(max(0, file.seek(0, 2) - _END_BYTES))
        return not any(file.read())


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    """Return the content of the tar member that the stream has just reached, or None if the member is a link.

    Links are not followed, because the stream may already be past the file that the link points to.
    """
    if not member.isfile():
        return None
    content = tar.extractfile(member)
    assert content is not None
    return content.read()
