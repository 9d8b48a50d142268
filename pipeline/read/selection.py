"""Selections: which rows of a dataset are in which split, in blocks, built shard by shard and kept in the folder.

What is kept is a `.npy` file under `selections/`, named by a fingerprint of all that it follows from. It is mapped, not
read: of two billion rows the splits are 2 GB. A folder that cannot be written to does without keeping.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..contract.storage import Store
from ..contract.vectors.arrays import read_array_start
from ..contract.vectors.spool import RowSpool
from ..errors import InputError
from .settings import ReadSettings
from .shards import EmbeddingShard
from .shuffle import hash_key, mix

FOLDER = "selections"
_SPLIT_SALT = b"priorkit split\0"
_DOUBLE_VALUES = 1 << 53
_COPY_BYTES = 1 << 20
_CHUNK_ROWS = 1 << 24
"""Rows of a mapped array that are looked at together."""
_GROUP_PARTS = 256
"""Parts of all groups, of which one is in memory at a time."""


def kept_rows(
    store: Store,
    name: str,
    rows: int | None,
    dtype: np.dtype,
    row_shape: tuple[int, ...],
    make: Callable[[], Iterable[np.ndarray]],
) -> np.ndarray:
    """An array `[rows, *row_shape]`, mapped: as it is kept under `selections/NAME.npy`, or else made and kept there.

    Args:
        rows: that it must have; None if that is not known before it is made.
        make: gives it part by part.
    """
    file_name = f"{FOLDER}/{name}.npy"
    with contextlib.suppress(OSError, EOFError, ValueError):  # absent or damaged: made anew
        found = _load(store, file_name)
        if found.dtype == dtype and found.shape[1:] == row_shape and rows in (None, len(found)):
            return found
    with contextlib.closing(RowSpool(dtype, row_shape)) as spool:
        for part in make():
            spool.append(part)
        with contextlib.suppress(OSError), store.create(file_name) as file:  # a read-only folder does without
            spool.save(file)  # type: ignore[arg-type]
        return spool.mapped()


def _load(store: Store, name: str) -> np.ndarray:
    """A kept array, mapped; of a remote one a copy that has no name and ends with the process."""
    if store.is_local:
        with store.open(name) as file:
            shape, _, dtype = read_array_start(store, name, file)
        return np.load(store.path(name), mmap_mode="r") if np.prod(shape) else np.empty(shape, dtype)
    with store.open(name) as file:
        shape, _, dtype = read_array_start(store, name, file)
        with contextlib.closing(RowSpool(dtype, shape[1:])) as spool:
            row_bytes = max(1, int(np.prod(shape[1:], dtype=np.int64))) * dtype.itemsize
            while data := file.read(max(1, _COPY_BYTES // row_bytes) * row_bytes):
                spool.append(np.frombuffer(data, dtype).reshape(-1, *shape[1:]))
            if spool.rows != shape[0]:
                raise InputError(f"{store.url}/{name} ends early, in row {spool.rows} of {shape[0]}")
            return spool.mapped()


def select_splits(shards: Iterable[EmbeddingShard], settings: ReadSettings) -> Iterator[np.ndarray]:
    """`[count]` uint8 in parts: 0 for train, 1 for validation, 2 for test, by a hash of each row's content group."""
    validation, test = settings.validation_fraction, settings.test_fraction
    for digests in _group_digests(shards):
        place = (digests[:, 0] >> np.uint64(11)).astype(np.float64) / _DOUBLE_VALUES  # uniform in [0, 1)
        # test first: its rows stay the same whatever the share of validation
        yield np.where(place < test, 2, np.where(place < test + validation, 1, 0)).astype(np.uint8)


def identify_rows(shards: Iterable[EmbeddingShard]) -> Iterator[np.ndarray]:
    """`[count]` uint64 in parts: a hash of what each row holds, its image and its text."""
    for shard in shards:
        first = 0
        for groups in shard.content_groups():
            names = groups
            if shard.has("text_emb"):
                texts = shard.read("text_emb", first, len(groups))
                names = [group + text.tobytes() for group, text in zip(groups, texts, strict=True)]
            digests = b"".join(hashlib.sha256(name).digest()[:8] for name in names)
            yield np.frombuffer(digests, "<u8").astype(np.uint64)
            first += len(groups)


def identify_groups(shards: Iterable[EmbeddingShard]) -> Iterator[np.ndarray]:
    """`[count]` uint64 in parts: a hash of each row's content group."""
    for digests in _group_digests(shards):
        yield digests[:, 0]


def _group_digests(shards: Iterable[EmbeddingShard]) -> Iterator[np.ndarray]:
    """`[n, 4]` uint64: the hash of each row's content group."""
    for shard in shards:
        for groups in shard.content_groups():
            digests = b"".join(hashlib.sha256(_SPLIT_SALT + group).digest() for group in groups)
            yield np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 4)


@dataclass(frozen=True)
class Blocks:
    """Blocks of consecutive rows, each of one shard; shards without rows have none."""

    starts: np.ndarray
    """`[blocks + 1]` int64: row number of the first row of each."""
    shards: np.ndarray
    """`[blocks]` int64: the shard that each is in."""

    @staticmethod
    def of_shards(shard_starts: np.ndarray, block_rows: int) -> Blocks:
        """Every `block_rows` rows of a shard, the last ones being fewer."""
        shard_rows = np.diff(shard_starts)
        per_shard = -(-shard_rows // block_rows)
        shards = np.repeat(np.arange(len(shard_rows)), per_shard)
        within = np.arange(len(shards)) - np.repeat(np.cumsum(per_shard) - per_shard, per_shard)
        return Blocks(np.append(shard_starts[:-1][shards] + within * block_rows, shard_starts[-1]), shards)

    @property
    def sizes(self) -> np.ndarray:
        """`[blocks]` rows of each."""
        return np.diff(self.starts)

    def count_splits(self, splits: np.ndarray, kinds: int) -> Iterator[np.ndarray]:
        """`[blocks, kinds]` uint32 in parts: how many rows of each block are in which split."""
        at, blocks = 0, len(self.shards)
        while at < blocks:
            end = max(at + 1, int(np.searchsorted(self.starts, self.starts[at] + _CHUNK_ROWS, side="right")) - 1)
            rows = splits[self.starts[at] : self.starts[end]]
            firsts = self.starts[at:end] - self.starts[at]
            yield np.stack([np.add.reduceat(rows == kind, firsts, dtype=np.uint32) for kind in range(kinds)], axis=1)
            at = end


class Visits:
    """Which rows of a split an epoch visits, block by block.

    Args:
        splits: `[count]` uint8.
        counts: `[blocks]` rows of the split in each block.
        shared: of `find_shared_groups`, if one row of each group is visited; None to visit all.
    """

    def __init__(
        self, blocks: Blocks, splits: np.ndarray, split: int, counts: np.ndarray, shared: np.ndarray | None
    ) -> None:
        self._blocks, self._splits, self._split = blocks, splits, split
        self._counts, self._shared = counts.astype(np.int64), shared
        self._shared_bounds = np.zeros(len(counts) + 1, np.int64)
        self.rows = int(self._counts.sum())
        """Of any epoch."""
        for part in self._shared_parts():
            self._shared_bounds[1:] += self._per_block(part)
            self.rows -= int((part[:, 2] > 0)[splits[part[:, 0]] == split].sum())
        np.cumsum(self._shared_bounds, out=self._shared_bounds)

    def counts(self, seed: int, epoch: int) -> np.ndarray:
        """`[blocks]` int64: rows of each block that an epoch visits."""
        counts: np.ndarray = self._counts.copy()
        for part in self._shared_parts():
            left_out = part[~_drawn(part, seed, epoch)]
            counts -= self._per_block(left_out[self._splits[left_out[:, 0]] == self._split])
        return counts

    def rows_of(self, block: int, seed: int, epoch: int) -> np.ndarray:
        """Row numbers of a block that an epoch visits, ascending: `[n]` int64."""
        start, end = (int(at) for at in self._blocks.starts[block : block + 2])
        visited = self._splits[start:end] == self._split
        if self._shared is not None:
            part = np.asarray(self._shared[slice(*self._shared_bounds[block : block + 2])])
            visited[part[~_drawn(part, seed, epoch), 0] - start] = False
        return start + np.flatnonzero(visited)

    def _shared_parts(self) -> Iterator[np.ndarray]:
        """The rows that share their group, in parts."""
        if self._shared is not None:
            for start in range(0, len(self._shared), _CHUNK_ROWS):
                yield np.asarray(self._shared[start : start + _CHUNK_ROWS])

    def _per_block(self, shared: np.ndarray) -> np.ndarray:
        blocks = np.searchsorted(self._blocks.starts, shared[:, 0], side="right") - 1
        counts: np.ndarray = np.bincount(blocks, minlength=len(self._counts))
        return counts


def _drawn(shared: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Which of some rows that share their group are the drawn ones of it: `[n]` bool."""
    _, group, number, size = shared.T
    return np.asarray(mix(group.astype(np.uint64), hash_key("caption", seed, epoch)) % size.astype(np.uint64) == number)


def find_shared_groups(shards: Iterable[EmbeddingShard]) -> Iterator[np.ndarray]:
    """`[n, 4]` int64: the rows whose content group other rows have too, ascending, with what a draw of one needs.

    Columns are the row number, 64 bits of the group's hash, the row's number within the group, and the group's rows.
    The groups are sorted in parts, on disk; in memory is one part, and 32 bytes for each row that shares its group.
    """
    with contextlib.ExitStack() as stack:
        spools = [stack.enter_context(contextlib.closing(RowSpool(np.int64, (2,)))) for _ in range(_GROUP_PARTS)]
        row = 0
        for digests in _group_digests(shards):
            groups = digests[:, 1]
            rows = np.stack([np.arange(row, row + len(groups)), groups.view(np.int64)], axis=1)
            parts = groups >> np.uint64(56)
            order = np.argsort(parts, kind="stable")
            bounds = np.searchsorted(parts[order], np.arange(_GROUP_PARTS + 1))
            for part, spool in enumerate(spools):
                if bounds[part] < bounds[part + 1]:
                    spool.append(rows[order[bounds[part] : bounds[part + 1]]])
            row += len(groups)
        found = np.concatenate([_number_within_groups(spool.mapped()) for spool in spools])
    yield found[np.argsort(found[:, 0])]


def _number_within_groups(rows: np.ndarray) -> np.ndarray:
    """Of rows `[n, 2]` with their groups: those of groups of several rows, as `find_shared_groups` gives them."""
    ordered = rows[np.lexsort((rows[:, 0], rows[:, 1]))]
    _, first, sizes = np.unique(ordered[:, 1], return_index=True, return_counts=True)
    number = np.arange(len(ordered)) - np.repeat(first, sizes)
    size = np.repeat(sizes, sizes)
    return np.column_stack([ordered, number, size])[size > 1]
