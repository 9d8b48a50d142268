"""Split plan by group: rows that share an image, or a value in a column of `read.group_column`, are in one split.

Rows are linked if they have the same image or equal values in one of the columns. A group consists of all rows that are
connected by such links, directly or through other rows. Null and empty values link nothing.

Each row has one *key* per column, the hash of its value, and one for its image. A group's split depends on the lowest
key of its rows in the first column in which one of them has a value. Without such a column, the group is a content
group, whose split is the same as without `read.group_column`. A group therefore stays in its split when rows are added
to it, unless the new rows join it to another group.

Per row, temporary files take about 24 bytes, and as much again for each column and for the image. Of them, 24 bytes per
row are accessed at random and may stay in memory while there is room. Other memory use is bounded by the number of
different values, divided by 256.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import mmap
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..contract.vectors.spool import RowSpool
from ..errors import InputError
from .settings import ReadSettings
from .shards import EmbeddingShard
from .split_plan import group_digests, split_codes

_CHUNK_ROWS = 1 << 20
"""Number of rows of a memory-mapped array that are processed at a time. As int64, they take 8 MiB."""
_PARTS = 256
"""Number of parts into which rows are divided by key, so that the different keys of one part fit in memory."""
_NULL = np.uint64(0)
"""Key of a row that has no value."""
_NONE_YET = np.uint64(np.iinfo(np.uint64).max)
"""Initial value of a minimum over keys."""
_SALT = b"priorkit group\0"
"""Prefix of the bytes that are hashed to compute the key of a value. A different prefix would change the splits."""


def plan_group_splits(shards: Sequence[EmbeddingShard], settings: ReadSettings) -> Iterator[np.ndarray]:
    """Yield the split of each row, in chunks, with all rows of a group in the same split.

    Yields:
        `[n]` uint8 array for the next `n` rows: the split of each row, as an index into `SPLITS`.

    Raises:
        InputError: a shard has no metadata or lacks one of the columns.
    """
    with contextlib.ExitStack() as stack:
        # columns first, since the first key that is known decides a group's split
        sources = [*(_column_keys(shards, column) for column in settings.group_columns), _image_keys(shards)]
        keys = [_spooled(stack, source, np.dtype(np.uint64), ()) for source in sources]
        links = _spooled(stack, (pairs for key in keys for pairs in _links(key)), np.dtype(np.int64), (2,))
        roots = find_roots(links, len(keys[0]))
        for hashes in _deciding_keys(keys, roots):
            yield split_codes(hashes, settings)


def _spooled(
    stack: contextlib.ExitStack, parts: Iterable[np.ndarray], dtype: np.dtype, row_shape: tuple[int, ...]
) -> np.ndarray:
    """Write the parts of an array to a temporary file, and return the array memory-mapped."""
    spool = stack.enter_context(contextlib.closing(RowSpool(dtype, row_shape)))
    for part in parts:
        spool.append(part)
    return spool.mapped()


def _image_keys(shards: Iterable[EmbeddingShard]) -> Iterator[np.ndarray]:
    """Yield the key of each row's image, which decides its split if no column does."""
    for digests in group_digests(shards):
        yield np.maximum(digests[:, 0], _NULL + np.uint64(1))


def _column_keys(shards: Iterable[EmbeddingShard], column: str) -> Iterator[np.ndarray]:
    """Yield the key of each row's value in a metadata column. Null, NaN and empty values have the key `_NULL`.

    Raises:
        InputError: a shard has no metadata or lacks the column. The message names the setting.
    """
    for shard in shards:
        try:
            for values in shard.column_values(column):
                known = {value: hash_value(value) for value in set(values) if value}
                yield np.array([known[value] if value else 0 for value in values], np.uint64)
        except InputError as error:
            raise InputError(f"read.group_column={column}: {error}") from error


def hash_value(value: str) -> int:
    """Return the key of a value: a 64-bit hash that is not 0.

    Whole numbers have the same key with and without `.0`, because a column of whole numbers is stored as floating-point
    numbers in shards in which it has null values.
    """
    if value.endswith(".0") and value[:-2].removeprefix("-").isdigit():
        value = value[:-2]
    digest = hashlib.sha256(_SALT + value.encode("utf-8", "surrogatepass")).digest()
    return max(1, int.from_bytes(digest[:8], "big"))


def _links(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Yield a link from each row to the first row with the same key. Rows without a key have no links.

    To save memory, rows are first divided by key into parts on disk.

    Args:
        keys: `[N]` uint64, the key of each row.

    Yields:
        `[n, 2]` int64 array: pairs of row numbers, the larger one first.
    """
    with contextlib.ExitStack() as stack:
        spools = [stack.enter_context(contextlib.closing(RowSpool(np.int64, (2,)))) for _ in range(_PARTS)]
        for first, part in _chunks(keys):
            rows = np.flatnonzero(part != _NULL)
            numbers = (part[rows] >> np.uint64(56)).astype(np.int64)
            order = np.argsort(numbers, kind="stable")
            bounds = np.searchsorted(numbers[order], np.arange(_PARTS + 1))
            table = np.stack([first + rows, part[rows].view(np.int64)], axis=1)[order]
            for spool, (start, end) in zip(spools, itertools.pairwise(bounds), strict=True):
                if start < end:
                    spool.append(table[start:end])
        for spool in spools:
            known, first_rows = np.empty(0, np.int64), np.empty(0, np.int64)
            for _, table in _chunks(spool.mapped()):
                rows, part = table[:, 0], table[:, 1]
                known, index = np.unique(np.concatenate([known, part]), return_index=True)
                first_rows = np.concatenate([first_rows, rows])[index]
                first_of_row = first_rows[np.searchsorted(known, part)]
                is_later = first_of_row != rows
                yield np.stack([rows[is_later], first_of_row[is_later]], axis=1)


def find_roots(links: np.ndarray, count: int) -> np.ndarray:
    """Return the lowest row number of each row's group.

    In each pass over the links, the roots of two linked rows are joined: the higher root points to the lower one. The
    passes end when all links are inside groups (Shiloach and Vishkin 1982).

    Args:
        links: `[n, 2]` pairs of row numbers.
        count: number of rows, N.

    Returns:
        `[N]` int64, memory-mapped from a temporary file.
    """
    parents = _writable(count, np.dtype(np.int64))
    for first, part in _chunks(parents):
        parents[first : first + len(part)] = np.arange(first, first + len(part))
    joined = True
    while joined:
        joined = False
        for _, pairs in _chunks(links):
            ends = _follow(parents, pairs)
            low, high = ends.min(axis=1), ends.max(axis=1)
            apart = low != high
            if apart.any():
                joined = True
                np.minimum.at(parents, high[apart], low[apart])
        for first, part in _chunks(parents):
            parents[first : first + len(part)] = _follow(parents, part)
    return parents


def _follow(parents: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the root of each row, by following `parents` until it points to itself."""
    roots = parents[rows]
    while True:
        further = parents[roots]
        if np.array_equal(further, roots):
            return np.asarray(roots)
        roots = further


def _deciding_keys(keys: Sequence[np.ndarray], roots: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the key that decides the split of each row's group, in chunks of rows.

    It is the lowest key of the group's rows in the first array of `keys` in which one of them has a key.

    Args:
        keys: arrays of keys `[N]`. In the last one, every row has a key.
        roots: `[N]` lowest row number of each row's group.
    """
    decided = _writable(len(roots), np.dtype(np.uint64))
    for key in keys:
        lowest = _writable(len(roots), np.dtype(np.uint64))
        lowest[:] = _NONE_YET
        for first, part in _chunks(key):
            known = np.flatnonzero(part != _NULL)
            np.minimum.at(lowest, roots[first + known], part[known])
        for first, part in _chunks(lowest):
            before = decided[first : first + len(part)]
            decided[first : first + len(part)] = np.where((before == _NULL) & (part != _NONE_YET), part, before)
    for _, part in _chunks(roots):
        yield np.asarray(decided[part])


def _writable(count: int, dtype: np.dtype) -> np.ndarray:
    """Return a writable array of `count` zeros, memory-mapped from a temporary file."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype, "w+", shape=(count,))


def _chunks(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield consecutive parts of an array, each with the index of its first row.

    After each part, the pages of a memory-mapped array are released, so that they do not count as memory of the
    process. Their content stays in the file.
    """
    mapping: mmap.mmap | None = getattr(array, "_mmap", None)
    for first in range(0, len(array), _CHUNK_ROWS):
        yield first, np.asarray(array[first : first + _CHUNK_ROWS])
        if mapping is not None:
            mapping.madvise(mmap.MADV_DONTNEED)
