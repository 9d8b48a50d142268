"""What can be embedded: webdataset shards, tables of captions or of images, and folders of image and caption files."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import pyarrow as pa

from .config import EmbedSettings
from .errors import InputError
from .file_pairs import list_file_shards
from .samples import Sample
from .shards import fingerprint, read_manifest
from .storage import Store
from .tables import list_table_shards
from .webdataset import list_image_shards

_ROWS_PER_SHARD = 10_000
"""Of inputs that are no shards themselves; as img2dataset's default."""


class InputShard(Protocol):
    """Samples that become one embedding shard."""

    @property
    def name(self) -> str:
        """Digits that number the shard."""

    @property
    def fingerprint(self) -> str:
        """Changes when the samples do."""

    @property
    def samples(self) -> int:
        """How many there are."""

    @property
    def title(self) -> str:
        """The file it comes from, for messages."""

    def read(self, store: Store) -> Iterator[Sample]:
        """The samples in order; what cannot be read is a sample with an error."""

    def table(self, store: Store) -> pa.Table | None:
        """What is known of the samples besides, one row each, by `key`; None if nothing."""


@dataclass(frozen=True)
class MergedShard:
    """Several shards that become one."""

    name: str
    parts: tuple[InputShard, ...]

    @property
    def fingerprint(self) -> str:
        return fingerprint([part.fingerprint for part in self.parts])

    @property
    def samples(self) -> int:
        return sum(part.samples for part in self.parts)

    @property
    def title(self) -> str:
        return " and ".join(part.title for part in self.parts)

    def read(self, store: Store) -> Iterator[Sample]:
        for part in self.parts:
            yield from part.read(store)

    def table(self, store: Store) -> pa.Table | None:
        tables = [table for part in self.parts if (table := part.table(store)) is not None]
        return pa.concat_tables(tables, promote_options="permissive") if tables else None


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
        only = posixpath.basename(url) if url.endswith(".parquet") else None
        columns = (
            settings.caption_column if settings.text else None,
            settings.image_column if settings.image else None,
        )
        return list(list_table_shards(store, only, *columns, rows))
    if kind == "files":
        return list(list_file_shards(store, rows, image=settings.image))
    shards: list[InputShard] = list(list_image_shards(store))
    return shards if settings.rows_per_shard is None else _merge(shards, rows)


def _kind_of(store: Store, url: str) -> Literal["webdataset", "files", "parquet"]:
    if url.endswith(".parquet") and not store.fs.isdir(Store(url).root):
        return "parquet"
    names = store.names()
    if read_manifest(store) is not None or any(name.endswith(".tar") for name in names):
        return "webdataset"
    if any(name.endswith(".parquet") for name in names):
        return "parquet"
    if not names:
        raise InputError(f"{store.url} holds nothing to embed; run `priorkit download` first or name another folder")
    return "files"


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
