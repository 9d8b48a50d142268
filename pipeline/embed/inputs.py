"""Inputs of the embed stage: webdataset shards, Parquet tables, and folders of image and caption files."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import pyarrow as pa

from ..contract.image_shards import is_compressed_tar, list_image_shards
from ..contract.manifest import fingerprint, read_manifest
from ..contract.samples import IMAGE_EXTENSIONS, Place, Sample
from ..contract.storage import Store
from ..errors import InputError
from .file_pairs import list_file_shards
from .settings import EmbedSettings
from .tables import list_table_shards

_Kind = Literal["webdataset", "files", "parquet"]
_ROWS_PER_SHARD = 10_000
"""Default number of samples per shard for files and tables, as in img2dataset."""


class InputShard(Protocol):
    """Interface of an input shard, whose samples become one embedding shard."""

    @property
    def name(self) -> str:
        """Shard number as a string of digits."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the samples, excluding the contents of the files that `sources` returns.

        Changes to those contents are detected by file marks (recorded size, modification time and hash).
        """

    def sources(self, limit: int | None) -> tuple[str, ...]:
        """Return the source files whose changes are detected by file marks (recorded size, modification time and hash).

        Files whose hashes are in the manifest of the input folder are left out, because `fingerprint` covers their
        contents.

        Args:
            limit: number of samples to include, starting with the first; None for all.

        Returns:
            Paths relative to the input folder.
        """

    @property
    def samples(self) -> int:
        """Number of samples in the shard."""

    @property
    def title(self) -> str:
        """Description of the shard's source, such as a file name, for messages."""

    def read(self, store: Store) -> Iterator[Sample]:
        """Yield the samples in order. If a sample cannot be read, its `error` gives the reason."""

    def tables(self, store: Store) -> list[pa.Table | None]:
        """Return a list with one item per part of the shard: the part's metadata table, or None if it has no table.

        The parts of a `MergedShard` are the input shards that it joins. Any other shard has one part. Each table has a
        column `key`, which contains the sample keys.
        """


@dataclass(frozen=True)
class MergedShard:
    """Input shard that joins several input shards, called its parts; implements `InputShard`."""

    name: str
    parts: tuple[InputShard, ...]

    @property
    def fingerprint(self) -> str:
        return fingerprint([part.fingerprint for part in self.parts])

    def sources(self, limit: int | None) -> tuple[str, ...]:
        names: list[str] = []
        for part in self.parts:
            if limit is not None and limit <= 0:
                break
            names += part.sources(limit)
            limit = None if limit is None else limit - part.samples
        return tuple(names)

    @property
    def samples(self) -> int:
        return sum(part.samples for part in self.parts)

    @property
    def title(self) -> str:
        return " and ".join(part.title for part in self.parts)

    def read(self, store: Store) -> Iterator[Sample]:
        for number, part in enumerate(self.parts):
            for sample in part.read(store):
                yield replace(sample, place=Place(part=number))

    def tables(self, store: Store) -> list[pa.Table | None]:
        return [table for part in self.parts for table in part.tables(store)]


def open_input(url: str) -> Store:
    """Open the input folder, or the parent folder if the input is a single Parquet file."""
    store = Store(url)
    if url.endswith(".parquet") and store.fs.isfile(store.root):
        return Store(posixpath.dirname(store.url))
    return store


def list_input_shards(url: str, settings: EmbedSettings) -> list[InputShard]:
    """Divide an input into shards, each of which becomes one embedding shard.

    Image shards are used as they are, or joined if `rows_per_shard` is set. Image files, caption files and tables are
    divided into shards of `rows_per_shard` samples, or `_ROWS_PER_SHARD` if it is not set.

    Args:
        url: folder, or a single Parquet file.
        settings: embed settings, which determine the input format and the number of samples per shard.

    Returns:
        Input shards, ordered by number.

    Raises:
        InputError: the input contains nothing to embed, or the folder was written by a stage other than `download`.
    """
    store = open_input(url)
    rows = settings.rows_per_shard or _ROWS_PER_SHARD
    kind = settings.input_format if settings.input_format != "auto" else _kind_of(store, url)
    if kind == "parquet":
        # Spark writes a table as a folder whose name ends in .parquet
        is_file = url.endswith(".parquet") and not store.fs.isdir(Store(url).root)
        only = posixpath.basename(url) if is_file else None
        columns = (
            settings.caption_column if settings.text else None,
            settings.image_column if settings.image else None,
        )
        return list(list_table_shards(store, only, *columns, rows))
    if kind == "files":
        return list(list_file_shards(store, rows, image=settings.image))
    shards: list[InputShard] = list(list_image_shards(store))
    if settings.rows_per_shard is None:
        return shards
    _require_tables_of_all_or_none(store, shards)
    return _merge(shards, rows)


def _kind_of(store: Store, url: str) -> _Kind:
    """Detect the input format.

    A Parquet file is `parquet`, and a folder with a manifest is `webdataset`. For any other folder, the file names
    decide: `webdataset` if there are tar files, otherwise `parquet` if there are Parquet tables, otherwise `files`.

    Metadata tables are ignored. Tables next to tar files contain the metadata of the tar files. If every table has the
    same name as a subfolder with images, the tables contain the metadata of these subfolders.

    Raises:
        InputError: the folder is empty, the input is a single file that is not a Parquet table, or the folder contains
            image files together with tar files or with tables other than metadata tables.
    """
    if url.endswith(".parquet") and not store.fs.isdir(Store(url).root):
        return "parquet"
    if read_manifest(store) is not None:
        return "webdataset"
    names = store.names()
    if not names:
        if store.fs.isfile(store.root):
            raise InputError(f"{store.url} is a file; name the folder that it is in, or a table (*.parquet)")
        raise InputError(f"{store.url} holds nothing to embed; run `priorkit download` first or name another folder")
    images = [name for name in names if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS]
    tars = [name for name in names if name.lower().endswith(".tar") or is_compressed_tar(name)]
    tables = [name for name in names if name.lower().endswith(".parquet")]
    if images and all(any(name.startswith(f"{table[: -len('.parquet')]}/") for name in images) for table in tables):
        tables = []  # img2dataset's tables: each describes the folder of the same name next to it
    if images and (tars or tables):
        raise InputError(
            f"{store.url} holds images ({images[0]}) and {(tars or tables)[0]}; say which are meant by "
            f"embed.input_format=files or embed.input_format={'webdataset' if tars else 'parquet'}"
        )
    return "webdataset" if tars else "parquet" if tables else "files"


def _require_tables_of_all_or_none(store: Store, shards: Sequence[InputShard]) -> None:
    """Check that all image shards have a metadata table (`NAME.parquet` next to `NAME.tar`), or that none has one.

    Otherwise, the shards cannot be joined.

    Raises:
        InputError: some shards have a table and others do not.
    """
    names = set(store.names())
    lacking = [shard for shard in shards if f"{shard.name}.parquet" not in names]
    if lacking and len(lacking) < len(shards):
        raise InputError(
            f"{store.url}: {lacking[0].name}.parquet is missing, others are there; shards that are joined have a table "
            "each or none has: restore it, or leave embed.rows_per_shard out"
        )


def _merge(shards: list[InputShard], rows: int) -> list[InputShard]:
    """Join consecutive shards into groups of at least `rows` samples; the last group may be smaller."""
    merged: list[InputShard] = []
    parts: list[InputShard] = []
    for shard in shards:
        parts.append(shard)
        if sum(part.samples for part in parts) >= rows or shard is shards[-1]:
            merged.append(MergedShard(f"{len(merged):05d}", tuple(parts)))
            parts = []
    return merged
