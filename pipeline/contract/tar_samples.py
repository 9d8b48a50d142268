"""Streaming reader for the samples in a webdataset tar, with checks for damage."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from ..errors import InputError
from .file_marks import open_hashed
from .listing import is_data
from .samples import IMAGE_EXTENSIONS, Sample, name_extensions
from .storage import Store

_END_BYTES = 1024
"""Number of zero bytes at the end of every complete tar: two blocks of 512 bytes."""
_TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, OverflowError)
"""Exceptions that tarfile raises for damaged or malicious tars. It raises ValueError and OverflowError for invalid
numbers in headers."""
_NOT_TOGETHER = "the files of a sample do not stand together; write the tar again with `tar --sort=name`"

Content = TypeVar("Content")


def count_samples(store: Store, tar_name: str) -> int:
    """Return the number of samples in a tar. In a damaged tar, count only the samples before the damage.

    Only the headers are read, not the content of the files.

    Raises:
        InputError: the files of a sample are not consecutive.
    """
    count, seen, split = 0, _SeenSamples(), None
    with contextlib.suppress(*_TAR_ERRORS):
        with store.open(tar_name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for key, members in _groups(tar, store.size(tar_name), lambda member: None):
                count += 1
                if seen.is_split(key, members):
                    split = key
                    break
    if split is not None:
        raise InputError(f"{store.url}/{tar_name}: {_NOT_TOGETHER} (sample {split!r})")
    return count


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


def read_tar(store: Store, tar_name: str, *, hashed: bool) -> Iterator[Sample]:
    """Yield the samples of a tar in order, reading the tar as a stream.

    If the files of a sample are not consecutive, the later files are yielded as a separate sample, which has the same
    key and contains only an error.

    Args:
        hashed: True to compute the tar's hash while it is read, and to store it for `file_marks.marks_of_read`.

    Raises:
        InputError: the file is truncated or not a tar.
    """
    damage: Exception | None = None
    seen = _SeenSamples()
    with open_hashed(store, tar_name) if hashed else store.open(tar_name) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|") as tar:
                for key, members in _groups(tar, store.size(tar_name), partial(_content, tar)):
                    if seen.is_split(key, members):
                        yield Sample(key, None, None, f"not_together: {_NOT_TOGETHER}")
                    else:
                        yield _sample(key, members)
        except _TAR_ERRORS as error:
            damage = error
    if damage is not None:
        raise InputError(f"{store.url}/{tar_name} is damaged ({damage}); download that shard again") from damage
    if not _is_complete(store, tar_name):  # tarfile accepts a tar that was truncated between two members
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


def _sample(key: str, members: dict[str, bytes | None]) -> Sample:
    image = next((data for extension, data in members.items() if extension in IMAGE_EXTENSIONS), None)
    names = (extension if data is not None else f"{extension} (a link)" for extension, data in members.items())
    return Sample(key, image, members.get("txt"), instead=name_extensions(names))
