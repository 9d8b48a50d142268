"""Input format `parquet`: tables with captions, encoded images, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ..contract.arrow.captions import captions_of, holds_captions
from ..contract.arrow.columns import carried, key_texts
from ..contract.arrow.parquet import open_parquet
from ..contract.arrow.types import is_bytes, is_text, plain_type, require_distinct
from ..contract.file_marks import note_file
from ..contract.manifest import fingerprint
from ..contract.samples import Sample, encodable
from ..contract.storage import Store
from ..errors import InputError, SettingsError

_READ_ROWS = 256
"""Number of rows decoded at a time. It is small because a row may contain an image of several megabytes."""

_CAPTION_NAMES = {"caption", "text", "txt", "alt", "title", "prompt"}
"""Names of columns that are proposed first if the column of captions is missing."""


@dataclass(frozen=True)
class TableShard:
    """Input shard of consecutive rows of a Parquet file; implements `InputShard`."""

    name: str
    fingerprint: str
    """Hash of the file name and the row range. Changes to the content of the file are detected by a file mark, which
    records its size, modification time and hash; see `file_marks`."""
    path: str
    """Path of the Parquet file on the file system."""
    stem: str
    """Path of the Parquet file relative to the input folder, without the extension."""
    first: int
    """Position of the shard's first row in the file."""
    samples: int
    caption_column: str | None
    image_column: str | None

    @property
    def title(self) -> str:
        return f"{self.path}, rows {self.first:,} to {self.first + self.samples - 1:,}"

    def sources(self, limit: int | None) -> tuple[str, ...]:
        """Return the path of the Parquet file relative to the input folder. `limit` has no effect; see `InputShard`."""
        return (f"{self.stem}.parquet",)

    def read(self, store: Store) -> Iterator[Sample]:
        note_file(store, self.sources(None)[0])
        columns = {self.caption_column, self.image_column} - {None}
        row = self.first
        try:
            for table in self._parts(store, lambda field: field.name in columns or field.name == "key"):
                keys = self._keys(table, row)
                captions = _captions(table, self.caption_column)
                images = _images(table, self.image_column)
                paths = _paths(table, self.image_column)
                row += table.num_rows
                for key, image, texts, path in zip(keys, images, captions, paths, strict=True):
                    instead = f"the table holds the path {path!r}, not the image" if path and image is None else ""
                    first = texts[0] if texts else None
                    yield Sample(key, image, first, instead=instead, other_captions=texts[1:])
        except (pa.ArrowException, OSError) as error:
            yield Sample(self._key(row), None, None, f"damaged_shard: {error}")

    def tables(self, store: Store) -> list[pa.Table | None]:
        tables, row = [], self.first
        try:
            for table in self._parts(store, self._is_carried):
                keys = pa.array(self._keys(table, row), pa.string())
                row += table.num_rows
                rest = table.drop_columns(["key"]) if "key" in table.schema.names else table
                tables.append(carried(rest, self.path).append_column("key", keys))
            return [pa.concat_tables(tables, promote_options="permissive") if tables else None]
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self.path} is damaged at row {row:,} ({error}); write it again, or without the damaged column"
            ) from error

    def _is_carried(self, field: pa.Field) -> bool:
        return field.name != self.caption_column and not _holds_bytes(field)

    def _parts(self, store: Store, wanted: Callable[[pa.Field], bool]) -> Iterator[pa.Table]:
        """Yield the shard's rows in order, at most `_READ_ROWS` at a time, with the columns that `wanted` accepts."""
        with store.fs.open(self.path, "rb") as file:
            parquet = open_parquet(file)
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
        """Return the key of each row. A row without a key is given a key made from the file name and the row number.

        Args:
            table: consecutive rows of the file.
            row: position of the first row of `table` in the file.
        """
        if "key" in table.schema.names:
            given = key_texts(table.column("key"), f"{self.path}: column 'key'")
            return [self._key(row + offset) if key is None else key for offset, key in enumerate(given)]
        return [self._key(row + offset) for offset in range(table.num_rows)]

    def _key(self, row: int) -> str:
        return f"{encodable(self.stem)}_{row:09d}"


def _holds_bytes(field: pa.Field) -> bool:
    return bool(pa.types.is_struct(plain_type(field.type)) or is_bytes(field.type))


def _captions(table: pa.Table, column: str | None) -> list[tuple[bytes, ...]]:
    """Return the captions of each row, or no caption for every row if `column` is None."""
    return [()] * table.num_rows if column is None else captions_of(table.column(column))


def _images(table: pa.Table, column: str | None) -> list[bytes | None]:
    """Return the image of each row, or None for every row if `column` is None.

    The column contains bytes, or structs with a field `bytes`.
    """
    if column is None:
        return [None] * table.num_rows
    values = table.column(column)
    if pa.types.is_struct(values.type):
        values = pc.struct_field(values, "bytes")
    plain: list[bytes | None] = values.cast(pa.large_binary()).to_pylist()
    return plain


def _paths(table: pa.Table, column: str | None) -> list[str | None]:
    """Return the path that is stored for each row's image, or None for a row without a path.

    Hugging Face datasets store each image as a struct with its path, its bytes, or both. For any other kind of column,
    or if `column` is None, return None for every row.
    """
    values = None if column is None else table.column(column)
    if values is None or not pa.types.is_struct(values.type) or "path" not in [field.name for field in values.type]:
        return [None] * table.num_rows
    paths = pc.struct_field(values, "path")
    return key_texts(paths, "path") if is_text(paths.type) else [None] * table.num_rows


def _has_image(store: Store, path: str, column: str) -> bool:
    """Return True if any row of a table has image bytes. Reading stops once such a row is found.

    The column statistics in the footer are not used. If they were damaged, pyarrow would abort the process, because it
    does not catch a C++ exception in ColumnChunkMetaData.
    """
    with store.fs.open(path, "rb") as file:
        parquet = open_parquet(file)
        kind = parquet.schema_arrow.field(column).type
        leaf = column
        if pa.types.is_struct(kind):
            kind, leaf = kind.field("bytes").type, f"{column}.bytes"
        if pa.types.is_null(kind):
            return False
        for batch in parquet.iter_batches(_READ_ROWS, columns=[leaf], use_threads=False):
            values = batch.column(0)
            if pa.types.is_struct(values.type):
                values = pc.struct_field(values, "bytes")
            if values.null_count < len(values):
                return True
    return False


def _any_image(store: Store, paths: Sequence[str], column: str) -> bool:
    """Return True if any table has image bytes or is damaged. Damage is reported later, when the shard is read."""
    for path in dict.fromkeys(paths):
        try:
            if _has_image(store, path, column):
                return True
        except (pa.ArrowException, OSError):
            return True  # the damage is reported when the shard is read
    return False


def list_table_shards(
    store: Store, only: Sequence[str] | None, caption_column: str | None, image_column: str | None, rows: int
) -> list[TableShard]:
    """Divide the Parquet files of a folder, ordered by file name, into shards of at most `rows` rows.

    Args:
        store: folder that contains the files.
        only: names of the files to read; None for all files.
        caption_column: column with the captions; None if captions are not embedded.
        image_column: column with the images; None if images are not embedded.
        rows: maximum number of rows per shard.

    Raises:
        InputError: a file is missing or damaged, no file has any rows, or no row has an image.
        SettingsError: a file lacks a column, or the column has an unsuitable type.
    """
    names = only if only is not None else [name for name in store.names() if name.lower().endswith(".parquet")]
    shards: list[TableShard] = []
    for path in map(store.path, names):
        try:
            with store.fs.open(path, "rb") as file:
                parquet = open_parquet(file)
                schema, count = parquet.schema_arrow, parquet.metadata.num_rows
        except FileNotFoundError:
            raise InputError(f"{path}: no such table") from None
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is no parquet file ({error})") from error
        require_distinct(schema, path)
        _check_columns(schema, path, caption_column, image_column)
        stem = path[len(store.root) :].lstrip("/")[: -len(".parquet")]
        for first in range(0, count, rows):
            taken = min(rows, count - first)
            mark = fingerprint([stem, first, taken])
            shards.append(
                TableShard(f"{len(shards):05d}", mark, path, stem, first, taken, caption_column, image_column)
            )
    if not shards:
        raise InputError(f"{store.url} holds no table with rows (*.parquet)")
    if image_column is not None and not _any_image(store, [shard.path for shard in shards], image_column):
        raise InputError(
            f"{shards[0].path}: column {image_column!r} has no image in any row; if the table holds paths, not images, "
            "embed the folder of the image files"
        )
    return shards


def _check_columns(schema: pa.Schema, path: str, caption_column: str | None, image_column: str | None) -> None:
    """Check that a table has the columns to embed, with types suitable for captions or images.

    A column of type null is accepted. Its values are all missing, so each row is reported as failed during embedding.

    Args:
        schema: schema of the table.
        path: path of the table, for error messages.
        caption_column: column with the captions; None if captions are not embedded.
        image_column: column with the images; None if images are not embedded.

    Raises:
        SettingsError: a column is missing or has an unsuitable type.
    """

    def is_image(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(
                field.name == "bytes" and (is_bytes(field.type) or pa.types.is_null(field.type)) for field in kind
            )
        return is_bytes(kind)

    for setting, column, fits, what in (
        ("caption_column", caption_column, holds_captions, "text, or lists of text"),
        ("image_column", image_column, is_image, "encoded images (binary)"),
    ):
        if column is None:
            continue
        if column not in schema.names:
            usable = [field.name for field in schema if fits(field.type) and field.name != "key"]
            usable.sort(key=lambda name: name.lower() not in _CAPTION_NAMES)
            more = " or another of them" if usable[1:] else ""
            advice = f"set embed.{setting}={usable[0]}{more}; " if usable else ""
            raise SettingsError(
                f"embed.{setting}={column}: {path} has no such column; it has {', '.join(schema.names)}; {advice}"
                f"to embed without, embed.{setting.partition('_')[0].replace('caption', 'text')}=false"
            )
        kind = schema.field(column).type
        if not fits(kind) and not pa.types.is_null(kind):  # an all-null column is accepted; its rows fail one by one
            paths = "; if these are paths, embed the folder of the image files" if is_text(kind) else ""
            raise SettingsError(f"embed.{setting}={column}: {path} has {kind} there, needed is {what}{paths}")
