"""Parquet tables of captions, of encoded images, or of both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import InputError, SettingsError
from .samples import Sample
from .shards import fingerprint
from .storage import Store

_FOOTER_BYTES = 1 << 16
_READ_ROWS = 256


@dataclass(frozen=True)
class TableShard:
    """Neighbouring rows of a parquet file."""

    name: str
    fingerprint: str
    path: str
    """Of the file system."""
    stem: str
    """Path in the folder, without the extension."""
    first: int
    """Row of the file that it begins with."""
    samples: int
    caption_column: str | None
    image_column: str | None

    @property
    def title(self) -> str:
        return f"{self.path}, rows {self.first:,} to {self.first + self.samples - 1:,}"

    def read(self, store: Store) -> Iterator[Sample]:
        columns = {self.caption_column, self.image_column} - {None}
        row = self.first
        try:
            for table in self._parts(store, lambda field: field.name in columns or field.name == "key"):
                keys = self._keys(table, row)
                captions = _binary(table, self.caption_column)
                images = _binary(table, self.image_column)
                row += table.num_rows
                for key, image, caption in zip(keys, images, captions, strict=True):
                    yield Sample(key, image, caption)
        except (pa.ArrowException, OSError) as error:
            yield Sample(self._key(row), None, None, f"damaged_shard: {error}")

    def table(self, store: Store) -> pa.Table | None:
        tables, row = [], self.first
        try:
            for table in self._parts(store, self._is_carried):
                keys = pa.array(self._keys(table, row), pa.string())
                row += table.num_rows
                rest = table.drop_columns(["key"]) if "key" in table.schema.names else table
                tables.append(rest.append_column("key", keys))
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self.path} is damaged at row {row:,} ({error}); write it again, or without the damaged column"
            ) from error
        return pa.concat_tables(tables) if tables else None

    def _is_carried(self, field: pa.Field) -> bool:
        return field.name != self.caption_column and not _holds_bytes(field)

    def _parts(self, store: Store, wanted: Callable[[pa.Field], bool]) -> Iterator[pa.Table]:
        """The rows in order, some at a time, of the columns that `wanted` accepts."""
        with store.fs.open(self.path, "rb") as file:
            parquet = pq.ParquetFile(file)
            columns = [field.name for field in parquet.schema_arrow if wanted(field)]
            start = 0
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if start + rows > self.first and start < self.first + self.samples:
                    at = start
                    for batch in parquet.iter_batches(_READ_ROWS, [group], columns, use_threads=False):
                        low, high = max(self.first - at, 0), min(self.first + self.samples - at, batch.num_rows)
                        at += batch.num_rows
                        if low < high:
                            yield pa.Table.from_batches([batch.slice(low, high - low)])
                start += rows

    def _keys(self, table: pa.Table, row: int) -> list[str]:
        if "key" in table.schema.names:
            return [str(key) for key in table.column("key").to_pylist()]
        return [self._key(row + offset) for offset in range(table.num_rows)]

    def _key(self, row: int) -> str:
        return f"{self.stem}_{row:09d}"


def _holds_bytes(field: pa.Field) -> bool:
    kind = field.type
    return bool(pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _binary(table: pa.Table, column: str | None) -> list[bytes | None]:
    """A column of text, bytes, or structures that hold `bytes`, as bytes."""
    if column is None:
        return [None] * table.num_rows
    values = table.column(column)
    if pa.types.is_struct(values.type):
        values = pa.chunked_array([chunk.field("bytes") for chunk in values.chunks], pa.binary())
    plain: list[bytes | None] = values.cast(pa.large_binary()).to_pylist()
    return plain


def list_table_shards(
    store: Store, only: str | None, caption_column: str | None, image_column: str | None, rows: int
) -> list[TableShard]:
    """The rows of the parquet files of a folder, by name of file, in shards of at most `rows`.

    Args:
        only: name of the one file that is meant; None for all.
        caption_column, image_column: None for what is not embedded.

    Raises:
        InputError: there is no such file, or one is damaged.
        SettingsError: a file has no such column, or it is of another type.
    """
    names = [f"{store.root}/{only}"] if only is not None else sorted(store.fs.find(store.root))
    shards: list[TableShard] = []
    for path in (name for name in names if name.endswith(".parquet")):
        try:
            with store.fs.open(path, "rb") as file:
                parquet = pq.ParquetFile(file)
                schema, count = parquet.schema_arrow, parquet.metadata.num_rows
                file.seek(0, 2)
                size = file.tell()
                file.seek(max(0, size - _FOOTER_BYTES))
                footer = hashlib.sha256(file.read()).hexdigest()
        except FileNotFoundError:
            raise InputError(f"{path}: no such table") from None
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is no parquet file ({error})") from error
        _check_columns(schema, path, caption_column, image_column)
        stem = path[len(store.root) :].lstrip("/").removesuffix(".parquet")
        for first in range(0, count, rows):
            taken = min(rows, count - first)
            mark = fingerprint([stem, size, footer, first, taken])
            shards.append(
                TableShard(f"{len(shards):05d}", mark, path, stem, first, taken, caption_column, image_column)
            )
    if not shards:
        raise InputError(f"{store.url} holds no table with rows (*.parquet)")
    return shards


def _check_columns(schema: pa.Schema, path: str, caption_column: str | None, image_column: str | None) -> None:
    def is_text(kind: pa.DataType) -> bool:
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    def is_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    for setting, column, fits, what in (
        ("caption_column", caption_column, is_text, "text"),
        ("image_column", image_column, is_bytes, "encoded images (binary)"),
    ):
        if column is None:
            continue
        if column not in schema.names:
            raise SettingsError(
                f"embed.{setting}={column}: {path} has no such column; it has {', '.join(schema.names)}; to embed "
                f"without, embed.{setting.partition('_')[0].replace('caption', 'text')}=false"
            )
        kind = schema.field(column).type
        if not fits(kind):
            raise SettingsError(f"embed.{setting}={column}: {path} has {kind} there, needed is {what}")
