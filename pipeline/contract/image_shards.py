"""Functions that list and read the image shards in a folder written by `download`, img2dataset or another program."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from ..errors import InputError, SettingsError
from ..explain import one_line
from .arrow.captions import captions_of, holds_captions
from .arrow.columns import carried, key_texts
from .arrow.parquet import open_parquet
from .arrow.types import is_text, require_distinct
from .file_marks import note_file
from .known_rows import RowCaptions
from .manifest import Manifest, damaged_shards, fingerprint, read_manifest
from .samples import DEFAULT_FILES, Sample, SampleFiles
from .storage import Store
from .tar_names import START_BYTES, is_tar, number_tars, same_but_number, tar_stem, unpack_command
from .tar_samples import count_keys, count_samples, read_tar


@dataclass(frozen=True)
class ImageShard:
    """Tar file of images and captions in webdataset format, usually with a Parquet table that has one row per URL."""

    name: str
    """Shard number as a string of digits, such as `00012`. It is the tar's name if that is a number."""
    fingerprint: str
    """Hash that identifies the shard's content, computed from its file hashes in the manifest. In a folder without a
    manifest, it is a hash of the tar's name only, and the module `file_marks` detects changed content. The name of
    `caption_column` is also part of it, unless it is None."""
    samples: int
    """Number of samples in the shard, not counting the URLs that failed."""
    files: tuple[str, ...] = ()
    """Names of the shard's files in a folder without a manifest; empty if a manifest contains their hashes."""
    tar: str = ""
    """Name of the tar; empty if it is the shard number with the extension `.tar`."""
    rules: SampleFiles = DEFAULT_FILES
    """Rules that identify the image and the captions of a sample."""
    caption_column: str | None = None
    """Column of the shard's table that contains the captions; None to read them from the tar."""

    @property
    def tar_name(self) -> str:
        return self.tar or f"{self.name}.tar"

    @property
    def title(self) -> str:
        return self.tar_name

    @property
    def table_name(self) -> str:
        return f"{tar_stem(self.tar_name)}.parquet"

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
        captions = None if self.caption_column is None else _table_captions(store, self, self.caption_column)
        proposal, count = None, 0
        try:
            for sample in read_samples(store, self):
                count += 1
                if captions is not None:
                    yield captions.add_to(sample)
                elif sample.caption is None and self.table_name in self.files:
                    proposal = _proposed_column(store, self) if proposal is None else proposal
                    yield replace(sample, instead=f"{sample.instead}{proposal}")
                else:
                    yield sample
        except InputError as error:
            yield Sample(self.tar_name, None, None, f"damaged_shard: {error}")
            return
        if count < self.samples:
            reason = f"damaged_shard: {self.tar_name} has {count:,} of the {self.samples:,} samples that it should have"
            yield Sample(self.tar_name, None, None, reason)

    def tables(self, store: Store) -> list[pa.Table | None]:
        """Return a list with one item: the shard's Parquet table, without the column that contains the captions.

        The item is None if the shard has no table, or if the table has no `key` column. The result is a list because
        a shard that is merged from several input shards has several tables.
        """
        table = read_shard_table(store, self)
        if table is not None and self.caption_column is not None:
            table = table.drop_columns([self.caption_column])
        return [table]


def list_image_shards(
    store: Store,
    only: Sequence[str] | None = None,
    rules: SampleFiles = DEFAULT_FILES,
    caption_column: str | None = None,
) -> list[ImageShard]:
    """Return the image shards in a folder, sorted by number.

    The folder can be the output of the `download` stage, or of another program, such as img2dataset, that writes no
    manifest. In a folder without a manifest, tars may have any name; see `number_tars` for their numbers.

    Args:
        store: folder that contains the tars.
        only: names of the tars to list; None for all.
        rules: rules that identify the image and the captions of a sample.
        caption_column: column of the table next to each tar that contains the captions; None to read them from the tar.

    Raises:
        InputError: the folder contains no image shards, or its manifest was written by another stage. Also raised if a
            file listed in the manifest is missing or has another size, if a tar is missing or has an unsupported
            compression, or if a tar has no table although `caption_column` is given.
        SettingsError: the first table has no column `caption_column` with text, or no column `key`.
    """
    manifest = read_manifest(store)
    if manifest is None:
        names = _tar_names(store) if only is None else _require_files(store, only)
        shards = [_foreign_shard(store, number, name) for number, name in number_tars(names)]
    elif manifest.stage != "download":
        raise InputError(
            f"{store.url} was written by `priorkit {manifest.stage}`; name the folder of downloaded images"
        )
    else:
        shards = _recorded_shards(store, manifest, only)
    if not shards:
        raise InputError(
            f"{store.url} holds no image shards (*.tar); run `priorkit download` first or name another folder"
        )
    shards = [replace(shard, rules=rules) for shard in sorted(shards, key=lambda shard: int(shard.name))]
    return shards if caption_column is None else _with_caption_column(store, shards, caption_column)


def _recorded_shards(store: Store, manifest: Manifest, only: Sequence[str] | None) -> list[ImageShard]:
    """Return the image shards in a folder that `download` wrote."""
    for name in manifest.shards:
        if not (name.isascii() and name.isdigit()):
            raise InputError(f"{store.url}/{name}.tar: image shards are named by number; rename it")
    if len({int(name) for name in manifest.shards}) < len(manifest.shards):
        raise InputError(f"{store.url}: two shards in the manifest have the same number; run `priorkit download` again")
    wanted = manifest.shards if only is None else [tar_stem(name) for name in only]
    if unknown := [name for name in wanted if name not in manifest.shards]:
        raise InputError(f"{store.url}/{unknown[0]}.tar is in no record; run `priorkit download` again")
    damaged = damaged_shards(store, manifest)
    shards = []
    for name in wanted:
        if name in damaged:
            raise InputError(f"{store.url}: {damaged[name][0]} is missing or damaged; run `priorkit download` again")
        record = manifest.shards[name]
        shards.append(ImageShard(name, fingerprint(record.content()), record.counts.get("success", 0)))
    return shards


def _tar_names(store: Store) -> list[str]:
    """Return the names of the tar files in a folder without a manifest.

    Raises:
        InputError: two tars differ only in their compression, or a Parquet table such as `00012.parquet` has no
            matching tar (`00012.tar`).
    """
    names = store.names()
    tars: dict[str, str] = {}
    for name in filter(is_tar, names):
        other = tars.setdefault(tar_stem(name), name)
        if other != name:
            raise InputError(f"{store.url} holds both {other} and {name}; move one of them away")
    for name in lost_tables(names, tars):
        stem = name[: -len(".parquet")]
        raise InputError(f"{store.url}/{stem}.tar is missing, though there is {name}; restore it, or move both away")
    return list(tars.values())


def lost_tables(names: Sequence[str], stems: Collection[str]) -> list[str]:
    """Return the Parquet tables that are named like the tables of tars, but whose tars are missing.

    Other tables, such as a list of all tars, are ignored.

    Args:
        names: names of all files in the folder.
        stems: names of the tars in the folder without their extensions; empty if there are none.
    """
    patterns = {same_but_number(stem) for stem in stems}
    has_numbers = any(stem.isdigit() for stem in stems)
    return [
        name
        for name in names
        if name.endswith(".parquet")
        and (stem := name[: -len(".parquet")]) not in stems
        and any(map(str.isdigit, stem))
        and ((stem.isdigit() and has_numbers) or same_but_number(stem) in patterns)
    ]


def _require_files(store: Store, names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if store.size(name) is None:
            raise InputError(f"{store.url}/{name}: no such file; restore it, or name the tars that there are")
    return names


def _foreign_shard(store: Store, number: str, tar_name: str) -> ImageShard:
    with store.open(tar_name) as file:
        start = file.read(START_BYTES)
    if command := unpack_command(tar_name, start) or unpack_command(tar_name):
        raise InputError(f"{store.url}/{tar_name}: its compression is not read; unpack it by `{command} {tar_name}`")
    mark = fingerprint([tar_name])
    shard = ImageShard(number, mark, 0, (tar_name,), "" if tar_name == f"{number}.tar" else tar_name)
    status = _read_parquet(store, shard.table_name, columns=["status"])
    files = shard.files if status is None else (tar_name, shard.table_name)
    if status is not None and status.num_columns and is_text(status.column("status").type):
        successes = key_texts(status.column("status"), shard.table_name).count("success")
        if successes or not status.num_rows:
            return replace(shard, samples=successes, files=files)
    return replace(shard, samples=count_samples(store, shard.tar_name), files=files)


def _with_caption_column(store: Store, shards: list[ImageShard], column: str) -> list[ImageShard]:
    """Return shards whose captions are in a column of the table next to each tar, after checking the tables.

    Only the columns of the first table are checked here. The columns of the others are checked when they are read.
    """
    names = set(store.names())
    for shard in shards:
        if shard.table_name not in names:
            raise InputError(
                f"embed.caption_column={column}: {store.url}/{shard.table_name} is missing; each tar needs a table of "
                "the same name with the columns key and caption, or leave the setting out"
            )
    _caption_rows(store, shards[0], column)
    return [
        replace(shard, fingerprint=fingerprint([shard.fingerprint, column]), caption_column=column) for shard in shards
    ]


def _table_captions(store: Store, shard: ImageShard, column: str) -> RowCaptions:
    """Read the captions of a shard from its table.

    If a key is stored several times, the tar's headers are read too, because these rows can be captions of one sample
    or of several samples with the same key.
    """
    keys, captions = _caption_rows(store, shard, column)
    samples = count_keys(store, shard.tar_name) if len(set(keys)) < len(keys) else {}
    return RowCaptions(keys, captions, samples, shard.table_name)


def _caption_rows(store: Store, shard: ImageShard, column: str) -> tuple[list[str | None], list[tuple[bytes, ...]]]:
    """Return the key and the captions of each row of a shard's table."""
    table = _read_parquet(store, shard.table_name, columns=["key", column])
    where = f"{store.url}/{shard.table_name}"
    schema = None if table is None else table.schema
    for name in ("key", column):
        if schema is None or name not in schema.names:
            stored = ", ".join(_column_names(store, shard.table_name)) or "no columns"
            raise SettingsError(f"embed.caption_column={column}: {where} has no column {name!r}; it has {stored}")
    assert table is not None
    if not holds_captions(table.column(column).type):
        raise SettingsError(
            f"embed.caption_column={column}: {where} has {table.column(column).type} there, needed is text"
        )
    return key_texts(table.column("key"), f"{where}: column 'key'"), captions_of(table.column(column))


def _column_names(store: Store, name: str) -> list[str]:
    """Return the names of the columns of a Parquet file; none if the file does not exist."""
    if store.size(name) is None:
        return []
    with store.open(name) as file:
        return list(open_parquet(file).schema_arrow.names)


def _proposed_column(store: Store, shard: ImageShard) -> str:
    """Return a proposal to read captions from the shard's table; empty if no column looks like captions."""
    names = _column_names(store, shard.table_name)
    likely = [name for name in names if name.lower() in ("caption", "captions", "text")]
    if not likely or "key" not in names:
        return ""
    return f"; for captions in {shard.table_name}, set embed.caption_column={likely[0]}"


def read_samples(store: Store, shard: ImageShard) -> Iterator[Sample]:
    """Yield the samples of a shard in tar order, reading the tar as a stream.

    Raises:
        InputError: the file is truncated or not a tar.
    """
    return read_tar(store, shard.tar_name, hashed=bool(shard.files), rules=shard.rules)


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
