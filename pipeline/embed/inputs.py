"""What can be embedded: webdataset shards, tables of captions or of images, and folders of image and caption files."""

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
"""Of inputs that are no shards themselves; as img2dataset's default."""


class InputShard(Protocol):
    """Samples that become one embedding shard."""

    @property
    def name(self) -> str:
        """Digits that number the shard."""

    @property
    def fingerprint(self) -> str:
        """Changes when the samples do, or when the content of its `sources` does."""

    def sources(self, limit: int | None) -> tuple[str, ...]:
        """Files that the first samples are read from and whose content no manifest names.

        Args:
            limit: number of samples; None for all.

        Returns:
            Paths below the input's folder.
        """

    @property
    def samples(self) -> int:
        """How many there are."""

    @property
    def title(self) -> str:
        """The file it comes from, for messages."""

    def read(self, store: Store) -> Iterator[Sample]:
        """The samples in order; what cannot be read is a sample with an error."""

    def tables(self, store: Store) -> list[pa.Table | None]:
        """What else is known of the samples, by `key`, for each part of the shard; None where nothing is."""


@dataclass(frozen=True)
class MergedShard:
    """Several shards that become one."""

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
    """The folder of an input, which may also be one parquet file."""
    store = Store(url)
    if url.endswith(".parquet") and store.fs.isfile(store.root):
        return Store(posixpath.dirname(store.url))
    return store


def list_input_shards(url: str, settings: EmbedSettings) -> list[InputShard]:
    """The shards of an input, by number.

    Args:
        url: a folder, or one parquet file.

    Raises:
        InputError: there is nothing to embed, or it is of another stage.
    """
    store = open_input(url)
    rows = settings.rows_per_shard or _ROWS_PER_SHARD
    kind = settings.input_format if settings.input_format != "auto" else _kind_of(store, url)
    if kind == "parquet":
        is_file = url.endswith(".parquet") and not store.fs.isdir(Store(url).root)  # Spark names folders so too
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
    """What a folder holds, by its names; of image shards and tables the tables are about the shards."""
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
        tables = []  # img2dataset's, which are beside the folders of files that they are about
    if images and (tars or tables):
        raise InputError(
            f"{store.url} holds images ({images[0]}) and {(tars or tables)[0]}; say which are meant by "
            f"embed.input_format=files or embed.input_format={'webdataset' if tars else 'parquet'}"
        )
    return "webdataset" if tars else "parquet" if tables else "files"


def _require_tables_of_all_or_none(store: Store, shards: Sequence[InputShard]) -> None:
    names = set(store.names())
    lacking = [shard for shard in shards if f"{shard.name}.parquet" not in names]
    if lacking and len(lacking) < len(shards):
        raise InputError(
            f"{store.url}: {lacking[0].name}.parquet is missing, others are there; shards that are joined have a table "
            "each or none has: restore it, or leave embed.rows_per_shard out"
        )


def _merge(shards: list[InputShard], rows: int) -> list[InputShard]:
    """Neighbouring shards joined until they have `rows` samples."""
    merged: list[InputShard] = []
    parts: list[InputShard] = []
    for shard in shards:
        parts.append(shard)
        if sum(part.samples for part in parts) >= rows or shard is shards[-1]:
            merged.append(MergedShard(f"{len(merged):05d}", tuple(parts)))
            parts = []
    return merged
