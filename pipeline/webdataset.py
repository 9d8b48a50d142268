"""Image shards as `download` and img2dataset write them: which there are, and the samples in each."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .errors import InputError
from .samples import IMAGE_EXTENSIONS, Sample
from .shards import fingerprint, missing_files, read_manifest
from .storage import Store

_HEADER_BYTES = 512
_END_BYTES = 1024
_TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, OverflowError)
"""What tarfile raises on hostile bytes: the last two on numbers that make no sense."""


@dataclass(frozen=True)
class ImageShard:
    """One webdataset shard."""

    name: str
    """Digits that number the shard."""
    fingerprint: str
    """Of the committed bytes; for a folder without a manifest, of name, size and header."""
    samples: int
    """Images in the shard, so without the rows that failed."""

    @property
    def tar_name(self) -> str:
        return f"{self.name}.tar"

    @property
    def title(self) -> str:
        return self.tar_name

    @property
    def table_name(self) -> str:
        return f"{self.name}.parquet"

    def read(self, store: Store) -> Iterator[Sample]:
        """The samples in the order of the tar; where it is damaged, a last one says so."""
        try:
            yield from read_samples(store, self)
        except InputError as error:
            yield Sample(self.tar_name, None, None, f"damaged_shard: {error}")

    def table(self, store: Store) -> pa.Table | None:
        """The rows of the list, by `key`, the failed ones included; None where there is no table that has keys."""
        return read_shard_table(store, self)


def list_image_shards(store: Store) -> list[ImageShard]:
    """The image shards of a folder, by number.

    Raises:
        InputError: there are none, or a file that the manifest names is not there.
    """
    manifest = read_manifest(store)
    if manifest is None:
        shards = [_foreign_shard(store, name) for name in store.names() if name.endswith(".tar")]
    elif manifest.stage != "download":
        raise InputError(
            f"{store.url} was written by `priorkit {manifest.stage}`; name the folder of downloaded images"
        )
    else:
        shards = []
        for name, record in manifest.shards.items():
            if lost := missing_files(store, record):
                raise InputError(f"{store.url}: {lost[0]} is missing or damaged; run `priorkit download` again")
            shards.append(ImageShard(name, fingerprint(record.content()), record.counts.get("success", 0)))
    if not shards:
        raise InputError(
            f"{store.url} holds no image shards (*.tar); run `priorkit download` first or name another folder"
        )
    by_number: dict[int, ImageShard] = {}
    for shard in shards:
        if not (shard.name.isascii() and shard.name.isdigit()):
            raise InputError(f"{store.url}/{shard.tar_name}: image shards are named by number, such as 00000.tar")
        other = by_number.setdefault(int(shard.name), shard)
        if other is not shard:
            raise InputError(
                f"{store.url}: two shards have the number {int(shard.name)}, {other.tar_name} and {shard.tar_name}"
            )
    return [by_number[number] for number in sorted(by_number)]


def _foreign_shard(store: Store, tar_name: str) -> ImageShard:
    name = tar_name.removesuffix(".tar")
    with store.open(tar_name) as file:
        header = file.read(_HEADER_BYTES)
    mark = fingerprint([tar_name, store.size(tar_name), header.hex()])
    shard = ImageShard(name, mark, 0)
    table = _read_parquet(store, shard.table_name, columns=["status"])
    if table is not None and table.num_columns:
        return ImageShard(name, mark, pc.sum(pc.equal(table.column("status"), "success")).as_py() or 0)
    return ImageShard(name, mark, _count_samples(store, shard))


def _count_samples(store: Store, shard: ImageShard) -> int:
    """Samples of a tar, from its headers; of a damaged one those before the damage."""
    paths: set[str] = set()
    with contextlib.suppress(*_TAR_ERRORS):
        with store.open(shard.tar_name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            paths.update(path for _, path, _ in _members(tar, store.size(shard.tar_name)))
    return len(paths)


def _members(tar: tarfile.TarFile, tar_bytes: int | None) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """The files of a tar that are part of a sample, with the sample's path and the extension; as webdataset has it."""
    if tar.firstmember is None:  # type: ignore[attr-defined]  # an empty tar, over which `next` of Python 3.10 stumbles
        return
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it keeps all that it has met, 1 kB each
        if not 0 <= member.size <= (tar_bytes or 0):  # tarfile would skip that far, and never arrive
            raise tarfile.ReadError(f"a member of {member.size:,} bytes")
        folder, slash, name = member.name.rpartition("/")
        stem, dot, extension = name.partition(".")
        if member.isfile() and stem and dot:  # others, such as macOS's `._0001.jpg`, are of no sample
            yield member, f"{folder}{slash}{stem}", extension.lower()


def read_samples(store: Store, shard: ImageShard) -> Iterator[Sample]:
    """The samples of a shard in the order of the tar, read as a stream.

    Raises:
        InputError: the tar is cut or is none.
    """
    sample_path = ""
    members: dict[str, bytes] = {}
    damage: Exception | None = None
    try:
        with store.open(shard.tar_name) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member, path, extension in _members(tar, store.size(shard.tar_name)):
                if (path != sample_path and members) or extension in members:
                    yield _sample(sample_path, members)
                    members = {}
                sample_path = path
                content = tar.extractfile(member)
                assert content is not None
                members[extension] = content.read()
    except _TAR_ERRORS as error:
        damage = error
    if members:  # before the damage, so perhaps whole
        yield _sample(sample_path, members)
    if damage is not None:
        raise InputError(f"{store.url}/{shard.tar_name} is damaged ({damage}); download that shard again") from damage
    if not _is_whole(store, shard.tar_name):  # tarfile takes an end between two members for the end
        raise InputError(f"{store.url}/{shard.tar_name} is damaged (it ends early); download that shard again")


def _is_whole(store: Store, tar_name: str) -> bool:
    """Whether a tar ends with the two empty blocks that every tar ends with."""
    with store.open(tar_name) as file:
        file.seek(max(0, file.seek(0, 2) - _END_BYTES))
        return not any(file.read())


def _sample(path: str, members: dict[str, bytes]) -> Sample:
    image = next((data for extension, data in members.items() if extension in IMAGE_EXTENSIONS), None)
    return Sample(path.rpartition("/")[2], image, members.get("txt"))


def read_shard_table(store: Store, shard: ImageShard) -> pa.Table | None:
    """The parquet table of a shard, one row for each row of the list; None where there is none that has keys."""
    table = _read_parquet(store, shard.table_name)
    return table if table is not None and "key" in table.schema.names else None


def _read_parquet(store: Store, name: str, columns: list[str] | None = None) -> pa.Table | None:
    """Those of the columns that a parquet file has, or all; None where there is no such file."""
    if store.size(name) is None:
        return None
    try:
        with store.open(name) as file:
            return pq.ParquetFile(file).read(columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{store.url}/{name} is damaged ({error}); download that shard again") from error
