"""Inputs of the embed stage: webdataset shards, Parquet tables, and folders of image and caption files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast

import pyarrow as pa

from ..contract.image_shards import ImageShard, list_image_shards
from ..contract.manifest import fingerprint, read_manifest
from ..contract.samples import IMAGE_EXTENSIONS, Place, Sample
from ..contract.storage import Store
from ..contract.tar_names import is_tar
from ..errors import InputError, SettingsError
from .file_pairs import list_file_shards
from .image_folder import ImageRows, metadata_names, read_image_rows
from .patterns import locate
from .settings import DEFAULT_CAPTION_COLUMN, DEFAULT_IMAGE_COLUMN, EmbedSettings
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
    """Open the input folder, or the folder of the files if the input is a tar, a Parquet file or a pattern."""
    return locate(url)[0]


def list_input_shards(url: str, settings: EmbedSettings) -> list[InputShard]:
    """Divide an input into shards, each of which becomes one embedding shard.

    Image shards are used as they are, or joined if `rows_per_shard` is set. Image files, caption files and tables are
    divided into shards of `rows_per_shard` samples, or `_ROWS_PER_SHARD` if it is not set.

    Args:
        url: folder, tar, Parquet file, or pattern that names several tars or Parquet files.
        settings: embed settings, which determine the input format and the number of samples per shard.

    Returns:
        Input shards, ordered by number.

    Raises:
        InputError: the input contains nothing to embed, or the folder was written by a stage other than `download`.
        SettingsError: a setting has no effect on this kind of input, or a table lacks a column.
    """
    store, only = locate(url)
    rows = settings.rows_per_shard or _ROWS_PER_SHARD
    kind = _kind_of(store, only, url, settings.input_format)
    if kind == "parquet":
        for name in ("image_extensions", "caption_extension", "caption_key"):
            if getattr(settings, name) is not None:
                raise SettingsError(
                    f"embed.{name} has no effect on tables such as {url}; name their columns by embed.caption_column "
                    "and embed.image_column"
                )
        columns = (
            (settings.caption_column or DEFAULT_CAPTION_COLUMN) if settings.text else None,
            (settings.image_column or DEFAULT_IMAGE_COLUMN) if settings.image else None,
        )
        return list(list_table_shards(store, only, *columns, rows))
    if settings.image_column is not None:
        raise SettingsError(
            f"embed.image_column={settings.image_column} has no effect on tars and image files such as {url}; leave it "
            "out"
        )
    rules = settings.sample_files()
    if kind == "files":
        image_rows = _image_rows(store, settings)
        return list(list_file_shards(store, rows, image=settings.image, rules=rules, image_rows=image_rows))
    caption_column = settings.caption_column if settings.text else None
    shards = list_image_shards(store, only, rules, caption_column)
    if settings.rows_per_shard is None:
        return list(shards)
    _require_tables_of_all_or_none(store, shards)
    return _merge(shards, rows)


def _image_rows(store: Store, settings: EmbedSettings) -> ImageRows | None:
    """Read the metadata files of a Hugging Face image folder; return None if captions come from caption files.

    The metadata files are used if `caption_column` is set, or if the folder has no caption file of any image.
    """
    if not settings.text:
        return None
    names, rules = store.names(), settings.sample_files()
    column = settings.caption_column
    if column is None:
        if settings.caption_key is not None or settings.caption_extension is not None:
            return None
        split = [rules.split(name) for name in names]
        images = {stem for stem, extension in split if rules.is_image(extension)}
        if any(stem in images for stem, extension in split if extension.lower() == rules.caption_extension):
            return None
    metadata = metadata_names(names)
    if column is not None and not metadata:
        raise SettingsError(
            f"embed.caption_column={column}: {store.url} has no metadata.jsonl, metadata.csv or metadata.parquet; "
            "leave the setting out to read captions from .txt files"
        )
    return read_image_rows(store, metadata, column or DEFAULT_CAPTION_COLUMN, ignore_others=column is None)


def _kind_of(store: Store, only: Sequence[str] | None, url: str, wanted: str) -> _Kind:
    """Return the input format, and detect it if the settings ask for `auto`.

    Tars are `webdataset`, Parquet files are `parquet`, and a folder with a manifest is `webdataset`. For any other
    folder, the file names decide: `webdataset` if there are tar files, otherwise `parquet` if there are Parquet tables,
    otherwise `files`.

    Metadata tables are ignored. Tables next to tar files contain the metadata of the tar files. If every table has the
    same name as a subfolder with images, the tables contain the metadata of these subfolders. A table
    `metadata.parquet` next to images contains their metadata.

    Args:
        store: input folder.
        only: names of the files to embed; None for the whole folder.
        url: input as the user named it.
        wanted: value of the setting `input_format`.

    Raises:
        InputError: the folder is empty, the input is a single file that is neither a tar nor a Parquet table, or the
            folder contains image files together with tar files or with tables other than metadata tables.
        SettingsError: the named files have another format than the settings ask for.
    """
    if only is not None:
        kind: _Kind = "webdataset" if all(map(is_tar, only)) else "parquet"
        if kind == "parquet" and (other := [name for name in only if not name.lower().endswith(".parquet")]):
            raise InputError(f"{url} names {other[0]}; name tars (*.tar) alone, tables (*.parquet) alone, or a folder")
        if wanted not in ("auto", kind):
            raise SettingsError(f"embed.input_format={wanted} does not fit {url}; set it to {kind}, or leave it out")
        return kind
    if wanted != "auto":
        return cast(_Kind, wanted)
    if read_manifest(store) is not None:
        return "webdataset"
    names = store.names()
    if not names:
        if store.fs.isfile(store.root):
            raise InputError(f"{store.url} is a file; name the folder that it is in, a tar, or a table (*.parquet)")
        raise InputError(f"{store.url} holds nothing to embed; run `priorkit download` first or name another folder")
    images = [name for name in names if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS]
    tars = list(filter(is_tar, names))
    tables = [name for name in names if name.lower().endswith(".parquet")]
    if images:
        tables = [name for name in tables if not metadata_names([name])]
    if images and all(any(name.startswith(f"{table[: -len('.parquet')]}/") for name in images) for table in tables):
        tables = []  # img2dataset's tables: each describes the folder of the same name next to it
    if images and (tars or tables):
        raise InputError(
            f"{store.url} holds images ({images[0]}) and {(tars or tables)[0]}; say which are meant by "
            f"embed.input_format=files or embed.input_format={'webdataset' if tars else 'parquet'}"
        )
    return "webdataset" if tars else "parquet" if tables else "files"


def _require_tables_of_all_or_none(store: Store, shards: Sequence[ImageShard]) -> None:
    """Check that all image shards have a metadata table (`NAME.parquet` next to `NAME.tar`), or that none has one.

    Otherwise, the shards cannot be joined.

    Raises:
        InputError: some shards have a table and others do not.
    """
    names = set(store.names())
    lacking = [shard.table_name for shard in shards if shard.table_name not in names]
    if lacking and len(lacking) < len(shards):
        raise InputError(
            f"{store.url}: {lacking[0]} is missing, others are there; shards that are joined have a table each or none "
            "has: restore it, or leave embed.rows_per_shard out"
        )


def _merge(shards: Sequence[InputShard], rows: int) -> list[InputShard]:
    """Join consecutive shards into groups of at least `rows` samples; the last group may be smaller."""
    merged: list[InputShard] = []
    parts: list[InputShard] = []
    for shard in shards:
        parts.append(shard)
        if sum(part.samples for part in parts) >= rows or shard is shards[-1]:
            merged.append(MergedShard(f"{len(merged):05d}", tuple(parts)))
            parts = []
    return merged
