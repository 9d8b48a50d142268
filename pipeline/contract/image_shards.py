"""Image shards as `download` and img2dataset write them: which there are, and the samples in each."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import pyarrow as pa

from ..errors import InputError
from ..explain import one_line
from .arrow.columns import carried, key_texts
from .arrow.parquet import open_parquet
from .arrow.types import is_text, require_distinct
from .file_marks import note_file, open_hashed
from .listing import is_data
from .manifest import damaged_shards, fingerprint, read_manifest
from .samples import IMAGE_EXTENSIONS, Sample, name_extensions
from .storage import Store

_END_BYTES = 1024
_TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, OverflowError)
"""What tarfile raises on hostile bytes: the last two on numbers that make no sense."""
_COMPRESSED_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
_START_BYTES = max(map(len, _COMPRESSED_STARTS))
"""First bytes of gzip, bzip2, xz, Zstandard and LZ4."""
_NOT_TOGETHER = "the files of a sample do not stand together; write the tar again with `tar --sort=name`"

Content = TypeVar("Content")


@dataclass(frozen=True)
class ImageShard:
    """One webdataset shard."""

    name: str
    """Digits that number the shard."""
    fingerprint: str
    """Of the committed bytes; for a folder without a manifest of the name alone, since its files are marked."""
    samples: int
    """Images in the shard, so without the rows that failed."""
    files: tuple[str, ...] = ()
    """Its files, where no manifest has their hashes."""

    @property
    def tar_name(self) -> str:
        return f"{self.name}.tar"

    @property
    def title(self) -> str:
        return self.tar_name

    @property
    def table_name(self) -> str:
        return f"{self.name}.parquet"

    def sources(self, limit: int | None) -> tuple[str, ...]:
        """See `InputShard`: a tar is read as a whole."""
        return self.files

    def read(self, store: Store) -> Iterator[Sample]:
        """The samples in the order of the tar; where it is damaged or some are missing, a last one says so."""
        if self.table_name in self.files:
            note_file(store, self.table_name)
        count = 0
        try:
            for sample in read_samples(store, self):
                count += 1
                yield sample
        except InputError as error:
            yield Sample(self.tar_name, None, None, f"damaged_shard: {error}")
            return
        if count < self.samples:
            reason = f"damaged_shard: {self.tar_name} has {count:,} of the {self.samples:,} samples that it should have"
            yield Sample(self.tar_name, None, None, reason)

    def tables(self, store: Store) -> list[pa.Table | None]:
        """The rows of the list, by `key`, the failed ones included; None where there is no table that has keys."""
        return [read_shard_table(store, self)]


def list_image_shards(store: Store) -> list[ImageShard]:
    """The image shards of a folder, by number.

    Raises:
        InputError: there are none, or a file that the manifest names is not there.
    """
    manifest = read_manifest(store)
    if manifest is None:
        shards = [_foreign_shard(store, name) for name in _tar_names(store)]
    elif manifest.stage != "download":
        raise InputError(
            f"{store.url} was written by `priorkit {manifest.stage}`; name the folder of downloaded images"
        )
    else:
        shards = []
        _require_numbers(store, [f"{name}.tar" for name in manifest.shards])
        damaged = damaged_shards(store, manifest)
        for name, record in manifest.shards.items():
            if name in damaged:
                raise InputError(
                    f"{store.url}: {damaged[name][0]} is missing or damaged; run `priorkit download` again"
                )
            shards.append(ImageShard(name, fingerprint(record.content()), record.counts.get("success", 0)))
    if not shards:
        raise InputError(
            f"{store.url} holds no image shards (*.tar); run `priorkit download` first or name another folder"
        )
    return sorted(shards, key=lambda shard: int(shard.name))


def is_compressed_tar(name: str) -> bool:
    """Return whether a file is a compressed tar, by its name."""
    return name.lower().endswith(_COMPRESSED_ENDINGS)


def _tar_names(store: Store) -> list[str]:
    """The tars of a foreign folder; InputError unless all are plain tars that are named by different numbers."""
    names = store.names()
    if compressed := next(filter(is_compressed_tar, names), None):
        raise InputError(f"{store.url}/{compressed}: image shards must not be compressed; unpack it, such as by gunzip")
    tars = [name for name in names if name.lower().endswith(".tar")]
    _require_numbers(store, tars)
    for name in names:
        stem = name.removesuffix(".parquet")
        if stem != name and stem.isdigit() and f"{stem}.tar" not in tars and tars:
            raise InputError(
                f"{store.url}/{stem}.tar is missing, though there is {name}; restore it, or move both away"
            )
    return tars


def _require_numbers(store: Store, tar_names: Iterable[str]) -> None:
    by_number: dict[int, str] = {}
    for name in tar_names:
        stem = name.removesuffix(".tar")
        if stem == name or not (stem.isascii() and stem.isdigit()):
            raise InputError(
                f"{store.url}/{name}: image shards are named by number, such as 00000.tar, in the folder itself; "
                "rename it"
            )
        other = by_number.setdefault(int(stem), name)
        if other != name:
            raise InputError(f"{store.url}: two shards have the number {int(stem)}, {other} and {name}")


def _foreign_shard(store: Store, tar_name: str) -> ImageShard:
    name = tar_name.removesuffix(".tar")
    with store.open(tar_name) as file:
        if file.read(_START_BYTES).startswith(_COMPRESSED_STARTS):
            raise InputError(f"{store.url}/{tar_name} is compressed; unpack it, such as by gunzip")
    mark = fingerprint([tar_name])
    shard = ImageShard(name, mark, 0, (tar_name,))
    status = _read_parquet(store, shard.table_name, columns=["status"])
    files = shard.files if status is None else (tar_name, shard.table_name)
    if status is not None and status.num_columns and is_text(status.column("status").type):
        successes = key_texts(status.column("status"), shard.table_name).count("success")
        if successes or not status.num_rows:
            return ImageShard(name, mark, successes, files)
    return ImageShard(name, mark, _count_samples(store, shard), files)


def _count_samples(store: Store, shard: ImageShard) -> int:
    """Return the number of samples of a tar, from its headers; of a damaged one those before the damage.

    Raises:
        InputError: the files of a sample do not stand together.
    """
    count, met, split = 0, _Met(), None
    with contextlib.suppress(*_TAR_ERRORS):
        with store.open(shard.tar_name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for key, members in _groups(tar, store.size(shard.tar_name), lambda member: None):
                count += 1
                if met.is_split(key, members):
                    split = key
                    break
    if split is not None:
        raise InputError(f"{store.url}/{shard.tar_name}: {_NOT_TOGETHER} (sample {split!r})")
    return count


class _Met:
    """The samples of a tar so far, to tell a sample whose files are apart from one that comes again."""

    def __init__(self) -> None:
        self._extensions: dict[str, tuple[str, ...]] = {}
        self._shared: dict[tuple[str, ...], tuple[str, ...]] = {}

    def is_split(self, key: str, members: Iterable[str]) -> bool:
        """Return whether a key has come before with other files only."""
        extensions = tuple(members)
        earlier = self._extensions.setdefault(key, self._shared.setdefault(extensions, extensions))
        return set(earlier).isdisjoint(extensions)


def _groups(
    tar: tarfile.TarFile, tar_bytes: int | None, read: Callable[[tarfile.TarInfo], Content]
) -> Iterator[tuple[str, dict[str, Content]]]:
    """Yield the key of each sample, as webdataset has it, and by extension what `read` makes of each of its files.

    Raises:
        one of _TAR_ERRORS: the tar is damaged; what was read before has been yielded.
    """
    key = ""
    members: dict[str, Content] = {}
    damage: Exception | None = None
    try:
        for member, its_key, extension in _members(tar, tar_bytes):
            if members and (its_key != key or extension in members):
                yield key, members
                members = {}
            key = its_key
            members[extension] = read(member)
    except _TAR_ERRORS as error:
        damage = error
    if members:  # before the damage, so perhaps whole
        yield key, members
    if damage is not None:
        raise damage


def _members(tar: tarfile.TarFile, tar_bytes: int | None) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Yield the files and links of a tar that are part of a sample, with the sample's key and the extension."""
    if tar.firstmember is None:  # type: ignore[attr-defined]  # an empty tar, over which `next` of Python 3.10 stumbles
        return
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it keeps all that it has met, 1 kB each
        if not 0 <= member.size <= (tar_bytes or 0):  # tarfile would skip that far, and never arrive
            raise tarfile.ReadError(f"a member of {member.size:,} bytes")
        folder, slash, name = member.name.removeprefix("./").rpartition("/")
        stem, dot, extension = name.partition(".")
        if (member.isfile() or member.islnk() or member.issym()) and stem and dot and is_data(member.name):
            yield member, f"{folder}{slash}{stem}", extension.lower()


def read_samples(store: Store, shard: ImageShard) -> Iterator[Sample]:
    """The samples of a shard in the order of the tar, read as a stream.

    Raises:
        InputError: the tar is cut or is none.
    """
    damage: Exception | None = None
    met = _Met()
    with open_hashed(store, shard.tar_name) if shard.files else store.open(shard.tar_name) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|") as tar:
                for key, members in _groups(tar, store.size(shard.tar_name), partial(_content, tar)):
                    if met.is_split(key, members):
                        yield Sample(key, None, None, f"not_together: {_NOT_TOGETHER}")
                    else:
                        yield _sample(key, members)
        except _TAR_ERRORS as error:
            damage = error
    if damage is not None:
        raise InputError(f"{store.url}/{shard.tar_name} is damaged ({damage}); download that shard again") from damage
    if not _is_whole(store, shard.tar_name):  # tarfile takes an end between two members for the end
        raise InputError(f"{store.url}/{shard.tar_name} is damaged (it ends early); download that shard again")


def _is_whole(store: Store, tar_name: str) -> bool:
    """Whether a tar ends with the two empty blocks that every tar ends with."""
    with store.open(tar_name) as file:
        file.seek(max(0, file.seek(0, 2) - _END_BYTES))
        return not any(file.read())


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    """The bytes of a file that a stream has come to; None for a link, whose target it may have passed."""
    if not member.isfile():
        return None
    content = tar.extractfile(member)
    assert content is not None
    return content.read()


def _sample(key: str, members: dict[str, bytes | None]) -> Sample:
    image = next((data for extension, data in members.items() if extension in IMAGE_EXTENSIONS), None)
    names = (extension if data is not None else f"{extension} (a link)" for extension, data in members.items())
    return Sample(key, image, members.get("txt"), instead=name_extensions(names))


def read_shard_table(store: Store, shard: ImageShard) -> pa.Table | None:
    """The parquet table of a shard, one row for each row of the list; None where there is none that has keys."""
    table = _read_parquet(store, shard.table_name)
    if table is None or "key" not in table.schema.names:
        return None
    return carried(table, f"{store.url}/{shard.table_name}")


def _read_parquet(store: Store, name: str, columns: list[str] | None = None) -> pa.Table | None:
    """Those of the columns that a parquet file has, or all; None where there is no such file."""
    if store.size(name) is None:
        return None
    try:
        with store.open(name) as file:
            parquet = open_parquet(file)
            require_distinct(parquet.schema_arrow, f"{store.url}/{name}")
            return parquet.read(columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{store.url}/{name} is damaged ({one_line(error)}); write it again, or move it away"
        ) from error
