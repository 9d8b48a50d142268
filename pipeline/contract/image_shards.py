"""Functions that list and read the image shards in a folder written by `download` or img2dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from ..errors import InputError
from ..explain import one_line
from .arrow.columns import carried, key_texts
from .arrow.parquet import open_parquet
from .arrow.types import is_text, require_distinct
from .file_marks import note_file
from .manifest import damaged_shards, fingerprint, read_manifest
from .samples import Sample
from .storage import Store
from .tar_samples import count_samples, read_tar

_COMPRESSED_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
"""Magic numbers of gzip, bzip2, xz, Zstandard and LZ4."""
_START_BYTES = max(map(len, _COMPRESSED_STARTS))


@dataclass(frozen=True)
class ImageShard:
    """Tar file of images and captions in webdataset format, usually with a Parquet table that has one row per URL."""

    name: str
    """Shard number as written in the file names, such as `00012`."""
    fingerprint: str
    """Hash that identifies the shard's content, computed from its file hashes in the manifest. In a folder without a
    manifest, it is a hash of the tar's name only, and the module `file_marks` detects changed content."""
    samples: int
    """Number of samples in the shard, not counting the URLs that failed."""
    files: tuple[str, ...] = ()
    """Names of the shard's files in a folder without a manifest; empty if a manifest contains their hashes."""

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
        """Return the names of the shard's files whose hashes are not recorded in a manifest.

        Args:
            limit: number of samples that will be used. It has no effect, because a tar is always read in full.
        """
        return self.files

    def read(self, store: Store) -> Iterator[Sample]:
        """Yield the samples in tar order.

        If the tar is damaged or has fewer than `samples` samples, a final extra sample is yielded. It has no image and
        no caption, only an error message.
        """
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
        """Return a list with one item: the shard's Parquet table.

        The item is None if the shard has no table, or if the table has no `key` column. The result is a list because
        a shard that is merged from several input shards has several tables.
        """
        return [read_shard_table(store, self)]


def list_image_shards(store: Store) -> list[ImageShard]:
    """Return the image shards in a folder, sorted by number.

    The folder can be the output of the `download` stage, or of another tool, such as img2dataset, that writes no
    manifest.

    Raises:
        InputError: the folder contains no image shards, or its manifest was written by another stage. Also raised if a
            file listed in the manifest is missing or has another size, or if a tar is compressed, misnamed or missing.
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
    """Return True if a file name has the extension of a compressed tar."""
    return name.lower().endswith(_COMPRESSED_ENDINGS)


def _tar_names(store: Store) -> list[str]:
    """Return the names of the tar files in a folder without a manifest.

    Raises:
        InputError: a tar is compressed, its name is not a number, or another tar has the same number. Also raised if a
            Parquet table such as `00012.parquet` has no matching tar (`00012.tar`).
    """
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
    return ImageShard(name, mark, count_samples(store, shard.tar_name), files)


def read_samples(store: Store, shard: ImageShard) -> Iterator[Sample]:
    """Yield the samples of a shard in tar order, reading the tar as a stream.

    Raises:
        InputError: the file is truncated or not a tar.
    """
    return read_tar(store, shard.tar_name, hashed=bool(shard.files))


def read_shard_table(store: Store, shard: ImageShard) -> pa.Table | None:
    """Return the Parquet table of a shard, which has one row per URL, including the URLs that failed.

    Returns:
        The table; None if the shard has no table, or if the table has no `key` column.

    Raises:
        InputError: the table is damaged, or a column cannot be read or copied.
    """
    table = _read_parquet(store, shard.table_name)
    if table is None or "key" not in table.schema.names:
        return None
    return carried(table, f"{store.url}/{shard.table_name}")


def _read_parquet(store: Store, name: str, columns: list[str] | None = None) -> pa.Table | None:
    """Return the table in a Parquet file, or None if the file does not exist.

    Args:
        columns: names of the columns to read; columns that the file lacks are ignored. None reads all columns.

    Raises:
        InputError: the file is damaged, or several columns have the same name.
    """
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
