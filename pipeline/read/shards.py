"""Embedding shards of a folder, each open for reading: ours by their records, others' by what their headers say."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..contract.arrow.columns import as_text, column_of, decoded, group_names
from ..contract.arrow.parquet import open_parquet
from ..contract.arrow.types import column_fault
from ..contract.embedding_files import pair_files, recorded_files
from ..contract.manifest import READ_BLOCK_ROWS, ShardRecord
from ..contract.storage import Store
from ..contract.vectors.arrays import HEADER_BYTES, ArrayLayout, read_header, read_layout, read_rows
from ..contract.vectors.embeddings import (
    CAPTION_COLUMN,
    GROUP_COLUMNS,
    KEY_COLUMNS,
    first_files,
    folder_notes,
    shard_faults,
)
from ..contract.vectors.rules import WORDS
from ..errors import InputError

_TEXT_COLUMNS = (*KEY_COLUMNS, CAPTION_COLUMN)
"""Columns that are read as text, whatever their type."""
_HEADER_THREADS = 16
_STREAM_BYTES = 1 << 20
_EMBED_DTYPE = np.dtype(np.float16)
"""What `embed` stores."""


class EmbeddingShard:
    """One embedding shard. Rows are read by range; `array` maps local files, and reads remote ones whole.

    Args:
        rows: of each of its files.
        counted_by: what says so, for messages.
        files: name of each file in the store, by kind.
        layouts: of those arrays whose headers are known; others are read when they are first needed.
        embed_dim: size of its embeddings, checked when an array is first read; None where the layouts are known.
    """

    def __init__(
        self,
        store: Store,
        rows: int,
        counted_by: str,
        files: Mapping[str, str],
        layouts: Mapping[str, ArrayLayout] | None = None,
        embed_dim: int | None = None,
    ) -> None:
        self._store, self._counted_by, self._embed_dim = store, counted_by, embed_dim
        self.rows = rows
        self.files = files
        self._layouts = dict(layouts or {})
        self._convertible = frozenset(self._layouts)
        """Kinds whose type the header has told, which others of the kind need not share."""
        self._arrays: dict[str, np.ndarray] = {}

    @staticmethod
    def of_record(store: Store, record: ShardRecord, sizes: Mapping[str, int], embed_dim: int) -> EmbeddingShard:
        """The shard that `embed` has recorded.

        Args:
            sizes: bytes of the files that there are, by name.

        Raises:
            InputError: a file is missing or not of the recorded size, holds other rows than the record, or there are
                no images in it.
        """
        files = recorded_files(record)
        if "img_emb" not in files:
            raise InputError(f"{store.url} holds no img_emb: it was embedded with embed.image=false")
        for name, entry in record.files.items():
            size = sizes.get(name)
            if size != entry.bytes:
                found = "is missing" if size is None else f"has {size} bytes instead of {entry.bytes}"
                raise InputError(f"{store.url}/{name} {found}; run `priorkit embed` again to restore it")
        shard = EmbeddingShard(store, record.rows, "its record", files, embed_dim=embed_dim)
        for kind in ("img_emb", "text_emb"):
            whole = HEADER_BYTES + record.rows * embed_dim * _EMBED_DTYPE.itemsize
            if kind in files and record.files[files[kind]].bytes != whole:  # only then is the header worth a read
                shard.layout(kind)
        return shard

    def has(self, kind: str) -> bool:
        """Whether the shard has a file of this kind."""
        return kind in self.files

    def title(self, kind: str) -> str:
        """How messages name its file of this kind."""
        return f"{self._store.url}/{self.files[kind]}"

    def local_path(self, kind: str) -> str | None:
        """Path of its file of this kind; None if that is remote."""
        return self._store.path(self.files[kind]) if self._store.is_local else None

    def layout(self, kind: str) -> ArrayLayout:
        """Where the rows of a stored array are, their number checked."""
        if kind not in self._layouts:
            name = self.files[kind]
            layout = read_layout(self._store, name)
            expected = {"offsets": self.rows + 1, "token_states": layout.rows}.get(kind, self.rows)
            self._require_rows(name, layout.rows, expected)
            width = self._embed_dim
            if width is not None and kind in WORDS and (layout.row_shape, layout.dtype) != ((width,), _EMBED_DTYPE):
                size = layout.row_shape[0] if len(layout.row_shape) == 1 else f"shape {list(layout.row_shape)}"
                raise InputError(
                    f"{self._store.url}/{name} holds embeddings of {size} in {layout.dtype}, the "
                    f"manifest says {width} in {_EMBED_DTYPE}; run `priorkit embed` again to restore it"
                )
            self._layouts[kind] = layout
        return self._layouts[kind]

    def embed_dtype(self, kind: str) -> np.dtype[Any]:
        """Type of a stored array of embeddings."""
        return self._layouts[kind].dtype if kind in self._convertible else _EMBED_DTYPE

    def read_into(self, kind: str, first: int, target: np.ndarray) -> None:
        """Read rows of a stored array from `first` on into a contiguous array, of its type or of the common one."""
        layout = self.layout(kind)
        fits = target.shape[1:] == layout.row_shape
        if fits and target.dtype != layout.dtype and kind in self._convertible:
            rows = self.read(kind, first, len(target))
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
                target[...] = rows
            return
        if not fits or target.dtype != layout.dtype:
            raise InputError(
                f"{self.title(kind)} has rows of {layout.row_shape} in {layout.dtype}, other files of its kind "
                f"{target.shape[1:]} in {target.dtype}; embed that shard again"
            )
        read_rows(self._store, self.files[kind], layout, first, target)

    def read(self, kind: str, first: int, count: int) -> np.ndarray:
        """`count` rows of a stored array from `first` on."""
        layout = self.layout(kind)
        rows = np.empty((count, *layout.row_shape), layout.dtype)
        self.read_into(kind, first, rows)
        return rows

    def array(self, kind: str) -> np.ndarray:
        """A stored array as a whole, its length checked."""
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

    def fill_token_states(self, states: np.ndarray, at: np.ndarray, local: np.ndarray) -> None:
        """Copy the first token states of rows `local` into `states[at]`."""
        offsets, flat = self.array("offsets"), self.array("token_states")
        for target, row in zip(at, local, strict=True):
            start = int(offsets[row])
            length = min(int(offsets[row + 1]) - start, states.shape[1])
            states[target, :length] = flat[start : start + length]

    def metadata(self, columns: list[str]) -> pa.Table:
        """Columns of the metadata; `key` is `image_path` where there is no such column, as in others' folders.

        Keys and captions are text. Other columns have a type that can be joined to that of other shards.
        """
        with self._open_metadata() as parquet:
            stored = parquet.schema_arrow.names
            source = {column: column for column in columns}
            if "key" in source and "key" not in stored and "image_path" in stored:
                source["key"] = "image_path"
            for column in source.values():
                self._require_column(parquet.schema_arrow, column)
            table = parquet.read(columns=list(dict.fromkeys(source.values())), use_threads=False)
            table.validate(full=True)  # text may be no UTF-8
            return pa.table(
                {
                    column: as_text(values) if column in _TEXT_COLUMNS else decoded(values)
                    for column in columns
                    for values in [column_of(table, source[column])]
                }
            )

    def _require_column(self, schema: pa.Schema, column: str) -> None:
        """InputError unless there is one column of that name, which can be read as text where it has to be."""
        if fault := column_fault(schema, column, text=column in _TEXT_COLUMNS):
            raise InputError(f"{self.title('metadata')}{fault}")

    def content_groups(self) -> Iterator[list[bytes]]:
        """What names the content of each row, in parts: image hash, else URL, else the bytes of the embedding."""
        first = 0
        for columns in self._group_columns():
            count = len(columns[0]) if columns else min(READ_BLOCK_ROWS, self.rows - first)
            named = [next((value for value in values if value), None) for values in zip(*columns, strict=True)]
            named = named or [None] * count
            if None in named:
                embeds = self.read("img_emb", first, count)
                yield [name.encode() if name is not None else embeds[row].tobytes() for row, name in enumerate(named)]
            else:
                yield [str(name).encode() for name in named]
            first += count

    def _group_columns(self) -> Iterator[list[list[str | None]]]:
        """The columns that name content as text, best first, by block of rows; no columns where there are none."""
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
                found = [column_of(batch, column) for column in columns]
                yield [group_names(values) for values in found]

    @contextlib.contextmanager
    def _open_metadata(self) -> Iterator[pq.ParquetFile]:
        """The metadata, its length checked; InputError if it turns out to be damaged while it is read."""
        if "metadata" not in self.files:
            raise InputError(f"{self._store.url} has no metadata: its rows have neither keys nor captions")
        name = self.files["metadata"]
        try:
            with self._store.open(name) as file:
                parquet = open_parquet(file, buffer_size=_STREAM_BYTES)  # row groups of others may be of any size
                self._require_rows(name, parquet.metadata.num_rows, self.rows)
                yield parquet
        except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError, OverflowError) as error:
            # the last two: a column twice, a date after the year 9999
            raise InputError(f"{self._store.url}/{name} is damaged ({error}); fetch or embed it again") from error

    def _require_rows(self, name: str, found: int, expected: int) -> None:
        if found != expected:
            raise InputError(f"{self._store.url}/{name} has {found} rows, {self._counted_by} says {expected}")


@dataclass(frozen=True)
class FoundShards:
    """What a folder without a manifest holds."""

    shards: list[EmbeddingShard]
    """By number."""
    embed_dim: int
    files: tuple[str, ...]
    """Names of all files of the shards."""
    notes: list[str]
    """What is unusual in it, a sentence each."""


def find_shards(store: Store) -> FoundShards | None:
    """The shards of a folder that clip-retrieval wrote, or LAION published; None where no file looks like one.

    Raises:
        InputError: a file is missing, without its like, damaged, or of other rows than the others of its number; or
            arrays of one kind are of several sizes or types.
    """
    pairs = pair_files(store.names(), store.url)
    if not pairs:
        return None
    names = [name for files in pairs.values() for name in files.values()]
    folders = sorted({name.partition("/")[0] for name in names})
    sizes = {name: size for folder in folders for name, size in store.sizes(folder).items()}
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        found = pool.map(lambda name: read_header(store, name, sizes.get(name)), names)
        headers = dict(zip(names, found, strict=True))
    first = first_files(pairs.values(), headers)
    shards = []
    for files in pairs.values():
        for _, fault in shard_faults(store.url, files, headers, first):
            raise InputError(fault)
        image = files["img_emb"]
        layouts = {kind: layout for kind, name in files.items() if (layout := headers[name].layout) is not None}
        shards.append(EmbeddingShard(store, headers[image].rows, f"the header of {image}", files, layouts))
    notes = folder_notes(pairs, headers)
    return FoundShards(shards, headers[first["img_emb"]].embed_dim, tuple(names), notes)
