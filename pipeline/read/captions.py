"""Reader for the captions of consecutive rows in a shard's metadata file.

`embed` writes Parquet row groups of 4,096 rows. Other programs write one row group per shard, so reading a few captions
costs as much as reading the whole shard. The captions of such a shard are copied once, in small row groups, to
`selections/captions_MARK/`, where MARK is a fingerprint of the data. If the embeddings folder is not writable, the copy
goes to a temporary folder, which is deleted when the reader is garbage-collected.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..contract.arrow.columns import as_text
from ..contract.arrow.parquet import open_parquet
from ..contract.arrow.types import column_fault
from ..contract.manifest import READ_BLOCK_ROWS, fingerprint
from ..contract.storage import Store
from ..errors import InputError
from .cached_array import FOLDER
from .shards import EmbeddingShard

_COLUMN = "caption"
_GROUP_ROWS = 4 * READ_BLOCK_ROWS
"""Maximum size, in rows, of a row group that is read directly.

If a shard has a larger row group, its captions are first copied to a file with small row groups.
"""
_OPEN_SHARDS = 64
"""Number of shards whose Parquet footers are cached."""
_STREAM_BYTES = 1 << 20
"""Size, in bytes, of the buffer for reading captions while they are copied."""


@dataclass(frozen=True)
class _Source:
    """Location and cached footer of a Parquet file that contains captions."""

    store: Store
    name: str
    metadata: pq.FileMetaData
    group_starts: np.ndarray
    """`[groups + 1]`: index of the first row of each row group, followed by the total number of rows."""


class CaptionReader:
    """Thread-safe reader for the captions of one embeddings folder.

    If a shard's metadata has large row groups, the captions are first copied to a file with small row groups. A few
    captions can then be read without reading the whole shard.

    Args:
        store: embeddings folder.
        mark: fingerprint of the folder's data. It is part of the path of the copies, so copies of earlier data are not
            used.
    """

    def __init__(self, store: Store, mark: str) -> None:
        self._store, self._mark = store, mark
        self._copies = store
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: EmbeddingShard, first: int, count: int) -> pa.Array:
        """Return the captions of `count` rows of a shard, starting at row `first`. Null becomes an empty string.

        Raises:
            InputError: the shard has no metadata, or its metadata is damaged.
        """
        if not shard.has("metadata"):
            raise InputError(f"{self._store.url} has no metadata: its rows have neither keys nor captions")
        name = shard.files["metadata"]
        try:
            source = self._source(shard)
            groups = np.searchsorted(source.group_starts, [first, first + count - 1], side="right") - 1
            with source.store.open(source.name) as file:
                parquet = open_parquet(file, metadata=source.metadata)
                table = parquet.read_row_groups(range(groups[0], groups[1] + 1), columns=[_COLUMN], use_threads=False)
            start = first - int(source.group_starts[groups[0]])
            return _as_strings(table.column(_COLUMN).slice(start, count).combine_chunks())
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self._store.url}/{name} is damaged ({error}); fetch or embed it again") from error

    def _source(self, shard: EmbeddingShard) -> _Source:
        """Return the file to read a shard's captions from: its metadata file, or a copy with small row groups.

        The footers of the 64 most recently used files are cached.

        Raises:
            InputError: the metadata file does not have exactly one caption column, the column is not text, or the
                number of rows differs from that of the shard.
        """
        name = shard.files["metadata"]
        with self._lock:
            if name in self._sources:
                self._sources.move_to_end(name)
                return self._sources[name]
        source = _open(self._store, name)
        if source.metadata.num_rows != shard.rows:
            raise InputError(f"{self._store.url}/{name} has {source.metadata.num_rows} rows instead of {shard.rows}")
        if np.diff(source.group_starts).max(initial=0) > _GROUP_ROWS:
            source = self._small_groups(source, shard)
        with self._lock:
            self._sources[name] = source
            while len(self._sources) > _OPEN_SHARDS:
                self._sources.popitem(last=False)
        return source

    def _small_groups(self, source: _Source, shard: EmbeddingShard) -> _Source:
        """Return a copy of a shard's captions in small row groups; create the copy if it does not exist."""
        name = shard.files["metadata"]
        plain = re.fullmatch(r"metadata/metadata_([0-9]+)\.parquet", name)
        number = plain[1] if plain else fingerprint(name)[:16]  # files adopted in place have names of any kind
        name = f"{FOLDER}/captions_{self._mark}/captions_{number}.parquet"
        with contextlib.suppress(OSError, pa.ArrowException, InputError):  # missing or damaged: copy it again
            copy = _open(self._copies, name)
            if copy.metadata.num_rows == shard.rows:
                return copy
        try:
            _copy(source, self._copies, name)
        except OSError:
            self._use_temporary_folder()
            _copy(source, self._copies, name)
        return _open(self._copies, name)

    def _use_temporary_folder(self) -> None:
        """Write all further copies of captions to a temporary folder instead of the embeddings folder.

        The folder is deleted when the reader is garbage-collected.
        """
        with self._lock:
            if self._copies is self._store:
                folder = tempfile.mkdtemp(prefix="priorkit-captions-")
                weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                self._copies = Store(folder)


def _open(store: Store, name: str) -> _Source:
    """Open a Parquet file that contains captions, and read its footer.

    Raises:
        InputError: the file does not have exactly one caption column, or the column is not text.
    """
    with store.open(name) as file:
        parquet = open_parquet(file)
        metadata, schema = parquet.metadata, parquet.schema_arrow
    if fault := column_fault(schema, _COLUMN, text=True):
        raise InputError(f"{store.url}/{name}{fault}")
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return _Source(store, name, metadata, np.cumsum([0, *rows]))


def _copy(source: _Source, store: Store, name: str) -> None:
    """Copy captions to a Parquet file with small row groups, and replace null with an empty string.

    Args:
        source: file to read the captions from.
        store: folder to write to.
        name: path, within `store`, of the file to write.
    """
    schema = pa.schema([(_COLUMN, pa.string())])
    with source.store.open(source.name) as file, store.create(name) as target:
        parquet = open_parquet(file, buffer_size=_STREAM_BYTES)
        with pq.ParquetWriter(target, schema) as writer:
            for batch in parquet.iter_batches(READ_BLOCK_ROWS, columns=[_COLUMN], use_threads=False):
                writer.write_table(pa.table([_as_strings(batch.column(0))], schema))


def _as_strings(captions: pa.Array) -> pa.Array:
    """Convert an array of captions to the string type, and replace null with an empty string."""
    return as_text(captions).fill_null("")
