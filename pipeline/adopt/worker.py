"""Adopt stage worker: streams the rows of one shard from the source files to the shard's own files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..compute.read_ahead import DecodeAhead
from ..contract.arrow.types import plain_type
from ..contract.commit import ShardCommit
from ..contract.hashing import HashingFile
from ..contract.manifest import READ_BLOCK_ROWS, Manifest, ShardRecord
from ..contract.storage import Store
from ..contract.vectors.embeddings import NORM_COLUMNS
from ..contract.vectors.rules import WORDS, judge_norms, row_norms
from ..errors import InputError
from .find import AdoptTask, FileSet
from .parts import Table, Vectors
from .rows import MadeRows, TableColumns, TableRows, choose_columns
from .settings import AdoptSettings
from .vectors import block_rows, read_vectors, vector_fault

INVALID = "invalid_embedding"
"""Outcome of rows that `skip_invalid` leaves out."""
_FAILURES = pa.schema([("key", pa.string()), ("error", pa.string())])
_READY_BLOCKS = 2
"""Number of blocks that each reading thread reads ahead."""
Item = TypeVar("Item")


@dataclass
class Norms:
    """Smallest, largest and mean norm of embeddings before normalisation."""

    low: float = np.inf
    high: float = -np.inf
    total: float = 0.0
    rows: int = 0

    def add(self, norms: np.ndarray) -> None:
        """Add the norms `[n]` of a block of rows."""
        if len(norms):
            self.low, self.high = min(self.low, float(norms.min())), max(self.high, float(norms.max()))
            self.total += float(norms.sum(dtype=np.float64))
            self.rows += len(norms)

    def to_json(self) -> dict[str, float]:
        """Return the norms as plain JSON values; empty if there are none."""
        return {"low": self.low, "high": self.high, "total": self.total, "rows": self.rows} if self.rows else {}


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a file set."""

    first: int
    """Index of the first row in the files."""
    embeds: Mapping[str, np.ndarray]
    """`[n, D]` float32 embeddings by kind, as stored in the source files."""
    norms: Mapping[str, np.ndarray]
    """`[n]` float32 norms by kind."""
    rows: Mapping[str, pa.Array]
    """Metadata columns by name; empty if they were not requested."""


def read_blocks(files: FileSet, first: int, count: int, rows: TableRows | MadeRows | None) -> Iterator[Block]:
    """Yield consecutive rows of a file set in blocks. Threads read ahead.

    Args:
        files: files to read.
        first: index of the first row.
        count: number of rows to read.
        rows: reader for the metadata; None to read none.
    """
    size = block_rows(*(part.dim for part in files.parts.values()))
    with contextlib.ExitStack() as stack:

        def ahead(part: Vectors) -> Iterator[np.ndarray]:
            reader: DecodeAhead[None, np.ndarray, np.ndarray] = DecodeAhead(
                lambda _: read_vectors(part, first, count, size), _unchanged, threads=1, depth=_READY_BLOCKS
            )
            stack.callback(reader.close)
            return stack.enter_context(contextlib.closing(_samples(reader)))

        streams = {kind: ahead(part) for kind, part in files.parts.items()}
        tables = None if rows is None else rows.blocks(first, count, size)
        for start in range(first, first + count, size):
            embeds = {kind: next(stream) for kind, stream in streams.items()}
            norms = {kind: row_norms(values) for kind, values in embeds.items()}
            yield Block(start, embeds, norms, {} if tables is None else next(tables))


def _samples(reader: DecodeAhead[None, np.ndarray, np.ndarray]) -> Generator[np.ndarray, None, None]:
    yield from reader.samples(None, None)


def _unchanged(item: Item) -> Item:
    """Return the item unchanged. `DecodeAhead` requires a decoding function, but blocks need no decoding."""
    return item


class AdoptWorker:
    """Callable that writes one shard per call, and returns its record.

    Args:
        store: folder to write to.
        settings: adopt settings.
        manifest: manifest of the folder.
    """

    def __init__(self, store: Store, settings: AdoptSettings, manifest: Manifest) -> None:
        self._store, self._settings = store, settings
        self._settings_fingerprint = manifest.settings_fingerprint

    def __call__(self, task: AdoptTask, following: AdoptTask | None = None) -> ShardRecord:
        start = time.time()
        commit = ShardCommit(self._store, task.name, input=task.input, settings=self._settings_fingerprint)
        rows = _row_reader(task.files, self._settings)
        _compare_keys(task, self._settings)
        faults = self._invalid_rows(task) if self._settings.skip_invalid else {}
        written = _Written()
        with contextlib.ExitStack() as stack:
            shard = stack.enter_context(contextlib.closing(_ShardFiles(stack, commit, task, len(faults))))
            for block in read_blocks(task.files, task.first, task.rows, rows):
                self._write(task, block, faults, shard, written)
            shard.finish()
        counts = {"success": task.rows - len(faults)}
        if faults:
            counts[INVALID] = len(faults)
            with commit.create(f"failures/failures_{task.name}.parquet") as file:
                pq.write_table(pa.Table.from_pylist(written.failures, _FAILURES), file)
        seconds = time.time() - start
        rate = task.rows / seconds if seconds else None
        norms = {kind: values.to_json() for kind, values in written.norms.items()}
        log = {"rows": task.rows, "seconds": seconds, "rows_per_second": rate, "norms": norms}
        commit.write_log(stats_name(task.name), log)
        return commit.commit(rows=counts["success"], counts=counts)

    def _write(
        self, task: AdoptTask, block: Block, faults: Mapping[int, str], shard: _ShardFiles, written: _Written
    ) -> None:
        """Check a block of rows, and write it without the rows in `faults`."""
        count = len(next(iter(block.embeds.values())))
        skipped = [row - block.first for row in faults if block.first <= row < block.first + count] if faults else []
        keep = np.ones(count, bool)
        keep[skipped] = False
        rows = dict(block.rows)
        for position in skipped:
            key = rows["key"][position].as_py()
            written.failures.append({"key": key, "error": faults[block.first + position]})
        for kind, embeds in block.embeds.items():
            norms = block.norms[kind]
            if skipped:
                embeds, norms = embeds[keep], norms[keep]
            _require_norms(task.files.parts[kind], kind, embeds, norms, np.flatnonzero(keep) + block.first, self)
            if self._settings.normalise:
                embeds /= norms[:, None]
            written.norms[kind].add(norms)
            shard.write(kind, embeds.astype(np.float16))
            name = NORM_COLUMNS[kind]
            if name not in rows or self._settings.normalise:  # a table of `embed` has the norms of the encoder
                rows[name] = pa.array(block.norms[kind], pa.float32())
        table = pa.table(rows)
        shard.add_rows(table.filter(pa.array(keep)) if skipped else table)

    @property
    def normalises(self) -> bool:
        """True if embeddings are scaled to norm 1."""
        return self._settings.normalise

    def _invalid_rows(self, task: AdoptTask) -> dict[int, str]:
        """Return the rows of a shard that cannot be used, with the reason for each, by index in the files."""
        faults: dict[int, str] = {}
        for block in read_blocks(task.files, task.first, task.rows, None):
            for kind, embeds in block.embeds.items():
                norms = block.norms[kind]
                for at in np.flatnonzero(~(np.isfinite(norms) & (norms > 0))):
                    fault = vector_fault(task.files.parts[kind], embeds[at], norms[at])
                    faults.setdefault(block.first + int(at), f"{INVALID}: the {WORDS[kind]} embedding {fault}")
        return faults


def stats_name(shard: str) -> str:
    """Return the name of the log with the norms and the speed of a shard."""
    return f"stats/stats_{shard}.json"


@dataclass
class _Written:
    """Statistics and failures collected while a shard is written."""

    norms: dict[str, Norms] = field(default_factory=lambda: {kind: Norms() for kind in NORM_COLUMNS})
    failures: list[dict[str, Any]] = field(default_factory=list)


def _row_reader(files: FileSet, settings: AdoptSettings) -> TableRows | MadeRows:
    if files.table is None:
        return MadeRows(files.target.name.rpartition(".")[0])
    columns = choose_columns(files.table, settings)
    return TableRows(files.table, replace(columns, names=_without_null_embeddings(files, files.table, columns.names)))


def _without_null_embeddings(files: FileSet, table: Table, names: Mapping[str, str]) -> dict[str, str]:
    """Return the columns to copy without columns of embeddings that have the Arrow type null.

    `choose_columns` leaves out all other embeddings, but this type does not show that a column holds embeddings.
    """
    empty = {
        part.column
        for part in files.parts.values()
        if (part.store.url, part.name) == (table.store.url, table.name)
        and pa.types.is_null(plain_type(table.schema.field(part.column).type))
    }
    return {name: column for name, column in names.items() if column not in empty}


def _compare_keys(task: AdoptTask, settings: AdoptSettings) -> None:
    """Check that two tables, one with the target and one with the source, have the same keys in the same order.

    Nothing is checked if there is only one table, or if the table of the source has no column of the same name. The
    stored keys are compared, because the keys that are made for rows without one contain the name of the file.

    Raises:
        InputError: the keys of a row differ.
    """
    files = task.files
    if files.table is None or files.source_table is None:
        return
    column = choose_columns(files.table, settings).names.get("key")
    if column is None or column not in files.source_table.schema.names:
        return
    keys = TableColumns({"key": column}, {"key": pa.string()}, ())
    streams = [
        TableRows(table, keys).stored_keys(task.first, task.rows, READ_BLOCK_ROWS)
        for table in (files.table, files.source_table)
    ]
    first = task.first
    for one, other in zip(*streams, strict=True):
        if not one.equals(other):
            ours, theirs = one.to_pylist(), other.to_pylist()
            at = next(at for at, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            raise InputError(
                f"{files.source_table.title}, row {first + at}: {column} is {theirs[at]!r}, and {ours[at]!r} in "
                f"{files.table.title}; sort both tables by {column}, with the same rows"
            )
        first += len(one)


def _require_norms(
    part: Vectors, kind: str, embeds: np.ndarray, norms: np.ndarray, rows: np.ndarray, worker: AdoptWorker
) -> None:
    """Raise InputError if an embedding is not a unit vector, or cannot be made one.

    Args:
        rows: `[n]` index of each row in the file, for the message.
    """
    bad = ~(np.isfinite(norms) & (norms > 0)) if worker.normalises else judge_norms(norms).bad
    if not bad.any():
        return
    at = int(np.argmax(bad))
    usable = np.isfinite(norms[at]) and norms[at] > 0
    advice = (
        "--normalise scales each to norm 1, and keeps the norms in the metadata" if usable
        else "--skip-invalid leaves such rows out, and lists them"
    )  # fmt: skip
    fault = vector_fault(part, embeds[at], float(norms[at]))
    raise InputError(f"{part.title}, row {int(rows[at])}: the {WORDS[kind]} embedding {fault}; {advice}")


class _ShardFiles:
    """Files of one shard that are being written. A thread writes and hashes each file.

    Args:
        stack: stack that closes the files.
        commit: writer for the files.
        task: shard to write.
        skipped: number of rows that are left out.
    """

    def __init__(self, stack: contextlib.ExitStack, commit: ShardCommit, task: AdoptTask, skipped: int) -> None:
        self._files = {
            kind: stack.enter_context(commit.create(f"{kind}/{kind}_{task.name}.npy")) for kind in task.files.parts
        }
        self._metadata = stack.enter_context(commit.create(f"metadata/metadata_{task.name}.parquet"))
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[pa.Table] = []
        self._held = 0
        self._threads = ThreadPoolExecutor(len(self._files) + 1, thread_name_prefix="write")
        self._running: dict[str, Future[Any]] = {}
        for kind, file in self._files.items():
            shape = (task.rows - skipped, task.files.parts[kind].dim)
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(_binary(file), {**header, "shape": shape})

    def write(self, kind: str, rows: np.ndarray) -> None:
        """Append rows to an array, after its earlier rows have been written."""
        self._submit(kind, self._files[kind].write, rows.reshape(-1).view(np.uint8).data if rows.size else b"")

    def add_rows(self, table: pa.Table) -> None:
        """Append metadata rows. They are written in row groups of `READ_BLOCK_ROWS` rows."""
        self._rows.append(table)
        self._held += table.num_rows
        whole = self._held // READ_BLOCK_ROWS * READ_BLOCK_ROWS
        if whole:
            joined = pa.concat_tables(self._rows)
            self._submit("metadata", self._write_table, joined.slice(0, whole))
            self._rows, self._held = [joined.slice(whole)], self._held - whole

    def _write_table(self, table: pa.Table) -> None:
        if self._writer is None:
            # keys and norms hardly repeat, so a dictionary would only cost time
            self._writer = pq.ParquetWriter(_binary(self._metadata), table.schema, use_dictionary=_repeating(table))
        self._writer.write_table(table, row_group_size=READ_BLOCK_ROWS)

    def _submit(self, name: str, write: Any, data: Any) -> None:
        if (running := self._running.get(name)) is not None:
            running.result()
        self._running[name] = self._threads.submit(write, data)

    def finish(self) -> None:
        """Write what is left, and wait until everything is written."""
        if self._rows:
            self._submit("metadata", self._write_table, pa.concat_tables(self._rows))
        for running in self._running.values():
            running.result()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        """Wait until no thread writes any more."""
        self._threads.shutdown(cancel_futures=True)
        if self._writer is not None:
            with contextlib.suppress(Exception):  # the file is discarded
                self._writer.close()


def _repeating(table: pa.Table) -> list[str]:
    """Return the names of the columns that are worth a dictionary: all text except keys."""
    return [field.name for field in table.schema if field.name != "key" and not pa.types.is_floating(field.type)]


def _binary(file: HashingFile) -> BinaryIO:
    return file  # type: ignore[return-value]
