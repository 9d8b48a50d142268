"""Reader for one embedding shard: its arrays, its metadata, and an identifier of each row's image."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..contract.arrow.columns import as_text, column_of, decoded, group_names
from ..contract.arrow.parquet import open_parquet
from ..contract.arrow.types import column_fault
from ..contract.embedding_files import recorded_files
from ..contract.manifest import READ_BLOCK_ROWS, ShardRecord
from ..contract.storage import Store
from ..contract.vectors.arrays import HEADER_BYTES, ArrayLayout, read_layout, read_rows
from ..contract.vectors.embeddings import (
    CAPTION_COLUMN,
    GROUP_COLUMNS,
    KEY_COLUMNS,
)
from ..errors import InputError

_TEXT_COLUMNS = (*KEY_COLUMNS, CAPTION_COLUMN)
"""Columns that are converted to text when read, whatever their stored type."""
_STREAM_BYTES = 1 << 20
"""Buffer size in bytes for streaming row groups, which can be of any size in files not written by priorkit."""
_EMBED_DTYPE = np.dtype(np.float16)
"""Dtype of the embeddings that `embed` and `adopt` store."""


class EmbeddingShard:
    """One embedding shard, with methods that read ranges of its rows or whole arrays.

    Args:
        store: embeddings folder.
        rows: number of rows in the shard.
        counted_by: file or record that states the number of rows, for error messages.
        files: path of each file relative to the embeddings folder, keyed by kind, such as `img_emb` or `metadata`.
        layouts: layouts (row count, row shape, dtype and byte offset) of the arrays whose headers have already been
            read, keyed by kind. The header of any other array is read on first use.
        dims: expected embedding size by kind, checked in each header that is read later; None to skip the check.
        stage: stage that wrote the shard, for messages.
    """

    def __init__(
        self,
        store: Store,
        rows: int,
        counted_by: str,
        files: Mapping[str, str],
        layouts: Mapping[str, ArrayLayout] | None = None,
        dims: Mapping[str, int] | None = None,
        stage: str = "embed",
    ) -> None:
        self._store, self._counted_by, self._dims, self._stage = store, counted_by, dims or {}, stage
        self.rows = rows
        self.files = files
        self._layouts = dict(layouts or {})
        self._convertible = frozenset(self._layouts)
        """Kinds of arrays, such as `img_emb`, whose layout was passed to the constructor.

        In a folder without a manifest, the dtype of such an array may differ between shards. `read_into` therefore
        converts such arrays to the dtype of its argument `target`.
        """
        self._arrays: dict[str, np.ndarray] = {}

    @staticmethod
    def from_record(
        store: Store, record: ShardRecord, sizes: Mapping[str, int], dims: Mapping[str, int], stage: str = "embed"
    ) -> EmbeddingShard:
        """Open a shard that `embed` or `adopt` recorded in a manifest.

        Args:
            store: embeddings folder.
            record: the shard's record in the manifest.
            sizes: file sizes in bytes, keyed by path in the folder.
            dims: embedding sizes from the manifest, by kind.
            stage: stage that wrote the folder, for messages.

        Raises:
            InputError: a file is missing, its size or number of rows differs from the record, or the shard has no
                image embeddings.
        """
        files = recorded_files(record)
        EmbeddingShard.require_files(store, record, files, sizes, stage)
        shard = EmbeddingShard(store, record.rows, "its record", files, dims=dims, stage=stage)
        for kind in ("img_emb", "text_emb"):
            expected_bytes = HEADER_BYTES + record.rows * dims[kind] * _EMBED_DTYPE.itemsize
            if (
                kind in files and record.files[files[kind]].bytes != expected_bytes
            ):  # the header is read only if the file size is unexpected
                shard.layout(kind)
        return shard

    @staticmethod
    def require_files(
        store: Store, record: ShardRecord, files: Mapping[str, str], sizes: Mapping[str, int], stage: str
    ) -> None:
        """Check that a recorded shard has image embeddings, and that its files exist with the recorded sizes.

        Args:
            store: embeddings folder.
            record: the shard's record in the manifest.
            files: path of each file in the folder, by kind.
            sizes: file sizes in bytes, keyed by path in the folder.
            stage: stage that wrote the folder, for messages.

        Raises:
            InputError: the shard has no image embeddings, or a file is missing or its size differs from the record.
        """
        if "img_emb" not in files:
            raise InputError(f"{store.url} holds no img_emb: it was embedded with embed.image=false")
        for name, entry in record.files.items():
            size = sizes.get(name)
            if size != entry.bytes:
                state = "is missing" if size is None else f"has {size} bytes instead of {entry.bytes}"
                raise InputError(f"{store.url}/{name} {state}; run `priorkit {stage}` again to restore it")

    def has(self, kind: str) -> bool:
        """Return True if the shard has a file of the given kind, such as `text_emb`."""
        return kind in self.files

    def title(self, kind: str) -> str:
        """Return the URL of the shard's file of the given kind, for messages."""
        return f"{self._store.url}/{self.files[kind]}"

    def local_path(self, kind: str) -> str | None:
        """Return the local path of the shard's file of the given kind; None if the store is remote."""
        return self._store.path(self.files[kind]) if self._store.is_local else None

    def layout(self, kind: str) -> ArrayLayout:
        """Return the row count, row shape, dtype and byte offset of a stored array, read from its header on first use.

        Raises:
            InputError: the header states a different number of rows, embedding size or dtype than expected.
        """
        if kind not in self._layouts:
            name = self.files[kind]
            layout = read_layout(self._store, name)
            expected = {"offsets": self.rows + 1, "token_states": layout.rows}.get(kind, self.rows)
            self._require_rows(name, layout.rows, expected)
            width = self._dims.get(kind)
            if width is not None and (layout.row_shape, layout.dtype) != ((width,), _EMBED_DTYPE):
                size = layout.row_shape[0] if len(layout.row_shape) == 1 else f"shape {list(layout.row_shape)}"
                raise InputError(
                    f"{self._store.url}/{name} holds embeddings of {size} in {layout.dtype}, the "
                    f"manifest says {width} in {_EMBED_DTYPE}; run `priorkit {self._stage}` again to restore it"
                )
            self._layouts[kind] = layout
        return self._layouts[kind]

    def embed_dtype(self, kind: str) -> np.dtype[Any]:
        """Return the dtype in which embeddings of the given kind are stored."""
        return self._layouts[kind].dtype if kind in self._convertible else _EMBED_DTYPE

    def read_into(self, kind: str, first: int, target: np.ndarray) -> None:
        """Read consecutive rows of a stored array into `target`, until `target` is full.

        If the array's layout was passed to the constructor, the rows are converted to the dtype of `target`. Otherwise,
        the dtypes must be equal.

        Args:
            kind: kind of the stored array, such as `img_emb`.
            first: index of the first row to read, counted from the start of the shard.
            target: contiguous array that receives the rows. Its length is the number of rows to read.

        Raises:
            InputError: the shape of the stored rows differs from that of the rows of `target`, their dtypes differ
                although they must be equal, or the file is truncated.
        """
        layout = self.layout(kind)
        fits = target.shape[1:] == layout.row_shape
        if fits and target.dtype != layout.dtype and kind in self._convertible:
            rows = self.read(kind, first, len(target))
            with np.errstate(over="ignore"):  # values too large for float32 become infinite and are rejected later
                target[...] = rows
            return
        if not fits or target.dtype != layout.dtype:
            raise InputError(
                f"{self.title(kind)} has rows of {layout.row_shape} in {layout.dtype}, other files of its kind "
                f"{target.shape[1:]} in {target.dtype}; embed that shard again"
            )
        read_rows(self._store, self.files[kind], layout, first, target)

    def read(self, kind: str, first: int, count: int) -> np.ndarray:
        """Return `count` rows of a stored array, starting at row `first`."""
        layout = self.layout(kind)
        rows = np.empty((count, *layout.row_shape), layout.dtype)
        self.read_into(kind, first, rows)
        return rows

    def array(self, kind: str) -> np.ndarray:
        """Return a whole stored array, after checking its number of rows. Later calls return the same array.

        A local file is memory-mapped; a remote file is read into memory.
        """
        if kind not in self._arrays:
            name = self.files[kind]
            expected = self.layout(kind).rows
            if self._store.is_local:
                array = np.load(self._store.path(name), mmap_mode="r", allow_pickle=False)
            else:
                with self._store.open(name) as file:
                    array = np.load(io.BytesIO(file.read()), allow_pickle=False)
            self._require_rows(name, len(array), expected)
            self._arrays[kind] = array
        return self._arrays[kind]

    def fill_token_states(self, states: np.ndarray, positions: np.ndarray, rows: np.ndarray) -> None:
        """Copy the token states (the text encoder's output for each token) of the given rows into `states`.

        Args:
            states: `[B, T, W]` array to write to, initially zero: B rows with room for T token states of width W. If a
                row has more than T token states, only the first T are copied. If it has fewer, the rest of its entry
                is unchanged.
            positions: `[n]` indices of the target rows in `states`.
            rows: `[n]` indices of the source rows in this shard.
        """
        offsets, flat = self.array("offsets"), self.array("token_states")
        for position, row in zip(positions, rows, strict=True):
            start = int(offsets[row])
            length = min(int(offsets[row + 1]) - start, states.shape[1])
            states[position, :length] = flat[start : start + length]

    def metadata(self, columns: list[str]) -> pa.Table:
        """Read metadata columns.

        Files that other tools write may have no column `key`. The column `image_path` then supplies the keys.

        Keys and captions are returned as text. Dictionary-encoded columns are decoded, so that they can be joined with
        columns of other shards.

        Raises:
            InputError: a column is missing or appears twice, or the metadata is missing or damaged.
        """
        with self._open_metadata() as parquet:
            stored = parquet.schema_arrow.names
            source = {column: column for column in columns}
            if "key" in source and "key" not in stored and "image_path" in stored:
                source["key"] = "image_path"
            for column in source.values():
                self._require_column(parquet.schema_arrow, column)
            table = parquet.read(columns=list(dict.fromkeys(source.values())), use_threads=False)
            table.validate(full=True)  # rejects text that is not valid UTF-8
            return pa.table(
                {
                    column: as_text(values) if column in _TEXT_COLUMNS else decoded(values)
                    for column in columns
                    for values in [column_of(table, source[column])]
                }
            )

    def _require_column(self, schema: pa.Schema, column: str) -> None:
        """Check that a column exists exactly once, and that a key or caption column can be read as text.

        Raises:
            InputError: the column is missing, duplicated or not text.
        """
        if fault := column_fault(schema, column, text=column in _TEXT_COLUMNS):
            raise InputError(f"{self.title('metadata')}{fault}")

    def column_values(self, column: str) -> Iterator[list[str | None]]:
        """Yield the values of a metadata column as text, in row order, as one list for each block of rows.

        Null and NaN become None.
        """
        yield from map(group_names, self.column_blocks(column))

    def has_column(self, column: str) -> bool:
        """Return True if the shard has metadata with a column of the given name.

        Raises:
            InputError: the metadata is damaged.
        """
        if not self.has("metadata"):
            return False
        with self._open_metadata() as parquet:
            return column in parquet.schema_arrow.names

    def column_blocks(self, column: str) -> Iterator[pa.Array]:
        """Yield the values of a metadata column, in row order, as one array for each block of rows.

        Raises:
            InputError: the column is missing or appears twice, or the metadata is missing or damaged.
        """
        with self._open_metadata() as parquet:
            names = parquet.schema_arrow.names
            if column not in names:
                raise InputError(f"{self.title('metadata')} has no column {column!r}; it has {', '.join(names)}")
            self._require_column(parquet.schema_arrow, column)
            for batch in parquet.iter_batches(READ_BLOCK_ROWS, columns=[column], use_threads=False):
                batch.validate(full=True)
                yield column_of(batch, column)

    def content_groups(self) -> Iterator[list[bytes]]:
        """Yield an identifier of each row's image, in row order, as one list for each block of rows.

        Rows with equal identifiers form a content group. The identifier is the hash of the image as recorded in the
        metadata. Without a hash, it is the image's URL. Without a URL, it consists of the bytes of the image embedding.
        """
        first = 0
        for columns in self._group_columns():
            count = len(columns[0]) if columns else min(READ_BLOCK_ROWS, self.rows - first)
            names = [next((value for value in values if value), None) for values in zip(*columns, strict=True)]
            names = names or [None] * count
            if None in names:
                embeds = self.read("img_emb", first, count)
                yield [name.encode() if name is not None else embeds[row].tobytes() for row, name in enumerate(names)]
            else:
                yield [str(name).encode() for name in names]
            first += count

    def _group_columns(self) -> Iterator[list[list[str | None]]]:
        """Yield the values of the metadata columns that can identify images (`sha256`, `md5` and `url`).

        Yields:
            One list for each block of rows. It contains one inner list for each of these columns that exists, with the
            values of that column in the block. The outer list is empty if none of the columns exists, or if the shard
            has no metadata.
        """
        if "metadata" not in self.files:
            yield from ([] for _ in range(0, self.rows, READ_BLOCK_ROWS))
            return
        with self._open_metadata() as parquet:
            columns = [column for column in GROUP_COLUMNS if column in parquet.schema_arrow.names]
            for column in columns:
                self._require_column(parquet.schema_arrow, column)
            if not columns:
                yield from ([] for _ in range(0, self.rows, READ_BLOCK_ROWS))
                return
            for batch in parquet.iter_batches(READ_BLOCK_ROWS, columns=columns, use_threads=False):
                batch.validate(full=True)
                yield [group_names(column_of(batch, column)) for column in columns]

    @contextlib.contextmanager
    def _open_metadata(self) -> Iterator[pq.ParquetFile]:
        """Context manager that opens the metadata file and checks its number of rows.

        Raises:
            InputError: the shard has no metadata, or the file is damaged. This also covers damage that is found only
                when the body of the `with` statement reads the file.
        """
        if "metadata" not in self.files:
            raise InputError(f"{self._store.url} has no metadata: its rows have neither keys nor captions")
        name = self.files["metadata"]
        try:
            with self._store.open(name) as file:
                parquet = open_parquet(file, buffer_size=_STREAM_BYTES)
                self._require_rows(name, parquet.metadata.num_rows, self.rows)
                yield parquet
        except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError, OverflowError) as error:
            # KeyError: a duplicate column; OverflowError: a date after the year 9999
            raise InputError(f"{self._store.url}/{name} is damaged ({error}); fetch or embed it again") from error

    def _require_rows(self, name: str, rows: int, expected: int) -> None:
        """Check the number of rows in a file.

        Raises:
            InputError: the number of rows differs from `expected`.
        """
        if rows != expected:
            raise InputError(f"{self._store.url}/{name} has {rows} rows, {self._counted_by} says {expected}")


@dataclass(frozen=True)
class FolderShards:
    """Shards and properties of one embeddings folder."""

    shards: list[EmbeddingShard]
    """All shards, ordered by name or number."""
    embed_dim: int
    """Size of the image embeddings, which are the target of a prior."""
    text_dim: int
    """Size of the text embeddings, which are the source of a prior."""
    token_width: int | None = None
    """Width of the stored token states; None if none are stored."""
    about: dict[str, Any] = field(default_factory=dict)
    """Facts that the manifest records about the embeddings, such as the CLIP model; empty without a manifest."""
    recorded_fingerprint: str = ""
    """Fingerprint computed from the file hashes in the manifest; empty without a manifest."""
    foreign_files: tuple[str, ...] = ()
    """Paths of all shard files if the folder has no manifest; otherwise empty."""
    notes: list[str] = field(default_factory=list)
    """Unusual properties of the folder, one sentence each."""
