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

from .array_files import HEADER_BYTES, ArrayLayout, FileHeader, read_header, read_layout, read_rows
from .embedding_files import pair_files, recorded_files
from .errors import InputError
from .shards import READ_BLOCK_ROWS, ShardRecord, fingerprint
from .storage import Store

_GROUP_COLUMNS = ("sha256", "md5", "url")
"""Columns that name the content of an image, the best first."""
_KEY_COLUMNS = ("key", "image_path")
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
    """

    def __init__(
        self,
        store: Store,
        rows: int,
        counted_by: str,
        files: Mapping[str, str],
        layouts: Mapping[str, ArrayLayout] | None = None,
    ) -> None:
        self._store, self._counted_by = store, counted_by
        self.rows = rows
        self.files = files
        self._layouts = dict(layouts or {})
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
        shard = EmbeddingShard(store, record.rows, "its record", files)
        for kind in ("img_emb", "text_emb"):
            whole = HEADER_BYTES + record.rows * embed_dim * _EMBED_DTYPE.itemsize
            if kind in files and record.files[files[kind]].bytes != whole:  # only then is the header worth a read
                shard.require_embeds(kind, read_header(store, files[kind]), embed_dim)
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

    def require_embeds(self, kind: str, header: FileHeader, embed_dim: int) -> None:
        """InputError unless an array holds as many embeddings as the shard, of that size, in float16."""
        name = self.files[kind]
        self._require_rows(name, header.rows, self.rows)
        layout = header.layout
        assert layout is not None
        if header.embed_dim != embed_dim or layout.dtype != _EMBED_DTYPE:
            raise InputError(
                f"{self._store.url}/{name} holds embeddings of {header.embed_dim} in {layout.dtype}, the manifest says "
                f"{embed_dim} in {_EMBED_DTYPE}; run `priorkit embed` again to restore it"
            )

    def layout(self, kind: str) -> ArrayLayout:
        """Where the rows of a stored array are, their number checked."""
        if kind not in self._layouts:
            name = self.files[kind]
            layout = read_layout(self._store, name)
            expected = {"offsets": self.rows + 1, "token_states": layout.rows}.get(kind, self.rows)
            self._require_rows(name, layout.rows, expected)
            self._layouts[kind] = layout
        return self._layouts[kind]

    def read_into(self, kind: str, first: int, target: np.ndarray) -> None:
        """Read rows of a stored array from `first` on into a contiguous array of its type."""
        layout = self.layout(kind)
        if (target.dtype, target.shape[1:]) != (layout.dtype, layout.row_shape):
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
        """Columns of the metadata; `key` is `image_path` where there is no such column, as in others' folders."""
        with self._open_metadata() as parquet:
            stored = parquet.schema_arrow.names
            source = {column: column for column in columns}
            if "key" in source and "key" not in stored and "image_path" in stored:
                source["key"] = "image_path"
            missing = [column for column in source.values() if column not in stored]
            if missing:
                raise InputError(f"{self._store.url}/{self.files['metadata']} has no column {missing[0]!r}")
            table = parquet.read(columns=list(dict.fromkeys(source.values())), use_threads=False)
            table.validate(full=True)  # text may be no UTF-8
        return pa.table({column: table.column(source[column]) for column in columns})

    def content_groups(self) -> Iterator[list[bytes]]:
        """What names the content of each row, in parts: image hash, else URL, else the bytes of the embedding."""
        first = 0
        for columns in self._group_columns():
            count = len(columns[0]) if columns else min(READ_BLOCK_ROWS, self.rows - first)
            named = [next((value for value in values if value), None) for values in zip(*columns, strict=True)]
            named = named or [None] * count
            if None in named:
                embeds = self.read("img_emb", first, count)
                yield [
                    str(name).encode() if name is not None else embeds[row].tobytes() for row, name in enumerate(named)
                ]
            else:
                yield [str(name).encode() for name in named]
            first += count

    def _group_columns(self) -> Iterator[list[list[Any]]]:
        """The columns that name content, best first, a block of rows at a time; no columns where there are none."""
        with self._open_metadata() as parquet:
            columns = [column for column in _GROUP_COLUMNS if column in parquet.schema_arrow.names]
            if not columns:
                yield from ([] for _ in range(0, self.rows, READ_BLOCK_ROWS))
                return
            for batch in parquet.iter_batches(READ_BLOCK_ROWS, columns=columns, use_threads=False):
                batch.validate(full=True)
                yield [batch.column(column).to_pylist() for column in columns]

    @contextlib.contextmanager
    def _open_metadata(self) -> Iterator[pq.ParquetFile]:
        """The metadata, its length checked; InputError if it turns out to be damaged while it is read."""
        name = self.files["metadata"]
        try:
            with self._store.open(name) as file:
                parquet = pq.ParquetFile(file, buffer_size=_STREAM_BYTES)  # row groups of others may be of any size
                self._require_rows(name, parquet.metadata.num_rows, self.rows)
                yield parquet
        except (pa.ArrowException, OSError) as error:
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
    fingerprint: str
    """Of the names, sizes and headers of all files."""


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
    first = next(iter(pairs.values()))
    embed_dim = headers[first["img_emb"]].embed_dim
    shards = []
    for files in pairs.values():
        image = files["img_emb"]
        for kind, name in files.items():
            header = headers[name]
            if header.rows != headers[image].rows:
                raise InputError(f"{store.url}/{name} has {header.rows} rows, {image} has {headers[image].rows}")
            if kind != "metadata" and header.embed_dim != embed_dim:
                raise InputError(
                    f"{store.url}/{name} holds embeddings of {header.embed_dim}, {first['img_emb']} of {embed_dim}"
                )
            _require_like(store.url, name, header, first[kind], headers[first[kind]])
        layouts = {kind: layout for kind, name in files.items() if (layout := headers[name].layout) is not None}
        shards.append(EmbeddingShard(store, headers[image].rows, f"the header of {image}", files, layouts))
    mark = fingerprint({name: [headers[name].size, headers[name].content] for name in names})
    return FoundShards(shards, embed_dim, mark)


def _require_like(url: str, name: str, header: FileHeader, first_name: str, first: FileHeader) -> None:
    """InputError unless a file has the type, or the columns of keys, of the first of its kind."""
    if header.layout is not None and first.layout is not None and header.layout.dtype != first.layout.dtype:
        raise InputError(
            f"{url}/{name} is of {header.layout.dtype}, {first_name} is of {first.layout.dtype}; save all files of one "
            "kind in one type"
        )
    for column in _KEY_COLUMNS:
        if (column in header.columns) != (column in first.columns):
            has, lacks = (name, first_name) if column in header.columns else (first_name, name)
            raise InputError(f"{url}/{lacks} has no column {column!r}, though {has} has; write both alike")
