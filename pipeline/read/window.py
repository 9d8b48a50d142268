"""The rows of one shuffle window in memory: read by blocks in threads, put into batches, and checked there."""

from __future__ import annotations

import contextlib
import itertools
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from ..contract.manifest import fingerprint
from ..contract.vectors.rules import judge_norms, normalise_rows
from ..errors import InputError
from .captions import CaptionReader
from .dataset import EmbeddingDataset, Split
from .shuffle import EpochPlan, Share
from .token_states import StateRanges

_NORM_VALUES = (1 << 15) - 1
"""Values whose norms are computed at once: so few that torch does not wake its threads, which training needs."""


@dataclass(frozen=True)
class Columns:
    """What is read of each row, beside its image embedding."""

    text_embed: bool = True
    max_text_len: int = 0
    """Token states of each row that are read at most; 0 reads none."""
    captions: bool = False

    @property
    def embeds(self) -> tuple[str, ...]:
        """Kinds of arrays of embeddings."""
        return ("img_emb", "text_emb") if self.text_embed else ("img_emb",)

    @property
    def by_row(self) -> bool:
        """Whether something is read that is not of one size."""
        return self.captions or self.max_text_len > 0


@dataclass(frozen=True)
class TrainBatch:
    """What one rank has of a global batch. b rows, D the embedding's size, T token states of width W; b may be 0."""

    rows: np.ndarray
    """`[b]` int64: row numbers."""
    image_embed: np.ndarray
    """`[b, D]` float16 as stored, or float32 where any file has another type; of norm 1."""
    text_embed: np.ndarray | None
    """`[b, D]` as stored; None unless asked for."""
    token_states: np.ndarray | None
    """`[b, T, W]` as stored, padded with zeros; None unless asked for."""
    captions: list[str] | None
    """`[b]`; None unless asked for."""
    first: int
    """Place of its first row in the global batch."""
    global_rows: int
    """Rows of the global batch."""


@dataclass
class _Part:
    """Consecutive rows of one block in a window."""

    slot: int
    """Where they begin in the window's arrays."""
    states: StateRanges | None = None
    captions: pa.Array | None = None


class Buffers:
    """The arrays of a window, used again by a later one: fresh memory costs more than the reading."""

    def __init__(self, dataset: EmbeddingDataset, columns: Columns) -> None:
        rows = min(dataset.count, dataset.settings.shuffle_window + dataset.settings.block_rows - 1)
        size = dataset.embed_dim
        self.embeds = {kind: np.empty((rows, size), dataset.embed_dtype(kind)) for kind in columns.embeds}


class BlockReader:
    """Reads rows of one split, of which an epoch visits some, and says which are unsound."""

    def __init__(self, dataset: EmbeddingDataset, split: Split, columns: Columns) -> None:
        dataset.require(text_embed=columns.text_embed, token_states=columns.max_text_len > 0)
        self.dataset, self.columns = dataset, columns
        self.visits = dataset.visits(split)
        self._dtypes = {kind: dataset.embed_dtype(kind) for kind in columns.embeds}
        mark = fingerprint([dataset.content_fingerprint, "captions"])[:16]
        self._captions = CaptionReader(dataset.store, mark) if columns.captions else None

    def read(self, start: int, end: int, part: _Part, buffers: Buffers) -> None:
        """Read rows `start` to `end`, which are of one shard."""
        index = int(np.searchsorted(self.dataset.shard_starts, start, side="right")) - 1
        shard, first = self.dataset.shards[index], start - int(self.dataset.shard_starts[index])
        here = slice(part.slot, part.slot + end - start)
        for kind, rows in buffers.embeds.items():
            shard.read_into(kind, first, rows[here])
        if self.columns.max_text_len:
            part.states = StateRanges(shard, first, end - start)
        if self._captions is not None:
            part.captions = self._captions.read(shard, first, end - start)

    def new_batch(self, share: Share) -> TrainBatch:
        """The batch of a share, to be filled."""
        count = len(share.places)
        size = self.dataset.embed_dim
        embeds = {kind: np.empty((count, size), dtype) for kind, dtype in self._dtypes.items()}
        length, width = self.columns.max_text_len, self.dataset.token_width or 0
        return TrainBatch(
            rows=np.empty(count, np.int64),
            image_embed=embeds["img_emb"],
            text_embed=embeds.get("text_emb"),
            token_states=np.zeros((count, length, width), np.float16) if length else None,
            captions=[""] * count if self.columns.captions else None,
            first=share.first,
            global_rows=share.global_rows,
        )

    def require_sound(self, batch: TrainBatch) -> None:
        """Normalise those rows of a batch that were rounded; InputError that names the ones that are not sound."""
        sound = np.ones(len(batch.rows), bool)
        for kind, embeds in (("img_emb", batch.image_embed), ("text_emb", batch.text_embed)):
            if embeds is not None and len(embeds):
                sound &= self._normalise(kind, embeds)
        if batch.token_states is not None:
            sound &= np.isfinite(batch.token_states).all(axis=(1, 2))
        bad = batch.rows[~sound]
        if not len(bad):
            return
        raise InputError(
            f"{self.dataset.store.url}: {self.dataset.describe_rows(bad)}: embeddings are not unit "
            "vectors, or they or their token states hold NaN or infinity; `priorkit inspect` names all such rows: "
            "embed their shards again"
        )

    def _normalise(self, kind: str, embeds: np.ndarray) -> np.ndarray:
        """Normalise the rows `[n, D]` that were rounded, in place; returns which rows are valid."""
        norms = _norms(embeds)
        verdict = judge_norms(norms)
        if verdict.rounded.any():
            normalise_rows(embeds, norms, verdict.rounded)
            self.dataset.count_rounded(kind, verdict.rounded)
        return ~verdict.bad


def _norms(embeds: np.ndarray) -> np.ndarray:
    """Norms `[n]` float32 of rows `[n, D]` in any type."""
    step = max(1, _NORM_VALUES // embeds.shape[1])
    parts = [torch.from_numpy(embeds[at : at + step]) for at in range(0, len(embeds), step)]
    return torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float32) for part in parts]).numpy()


class Window:
    """Those rows of a window that one rank needs.

    Args:
        places: `[n]` places in the epoch of the rows that are needed, in any order.
    """

    def __init__(self, plan: EpochPlan, window: int, places: np.ndarray) -> None:
        self._plan = plan
        self.start, self.end = int(plan.window_starts[window]), int(plan.window_starts[window + 1])
        """Places of its rows in the epoch."""
        first, last = plan.windows[window : window + 2]
        self._block_starts = plan.starts[first : last + 1] - self.start
        self._blocks = plan.blocks[first:last]
        wanted = np.sort(places) - self.start
        bounds = np.searchsorted(wanted, self._block_starts)
        self._wanted = [
            (index, int(wanted[low]), int(wanted[high - 1]))
            for index, (low, high) in enumerate(itertools.pairwise(bounds))
            if low < high
        ]
        self._rows = np.empty(self.end - self.start, np.int64)
        self._slots = np.empty(self.end - self.start, np.int64)
        self._parts: list[_Part] = []
        self._futures: list[Future[None]] = []
        self.buffers: Buffers

    def read(self, reader: BlockReader, buffers: Buffers, pool: ThreadPoolExecutor) -> None:
        """Begin to read all blocks that are needed."""
        self.buffers = buffers
        slot = 0
        for index, first, last in self._wanted:
            block_start, block_end = self._block_starts[index : index + 2]
            rows = reader.visits.rows_of(int(self._blocks[index]), self._plan.seed, self._plan.epoch)
            self._rows[block_start:block_end] = rows
            start, end = int(rows[first - block_start]), int(rows[last - block_start]) + 1
            self._slots[block_start:block_end] = rows - start + slot
            part = _Part(slot)
            self._parts.append(part)
            self._futures.append(pool.submit(reader.read, start, end, part, buffers))
            slot += end - start

    def wait(self) -> None:
        """Until all is read; raises what a thread has met."""
        for future in self._futures:
            future.result()

    def fill(self, batch: TrainBatch, places: np.ndarray, reader: BlockReader) -> None:
        """Put the rows that a batch, of `places` `[b]` in the epoch, has in this window into it."""
        mine = np.flatnonzero((places >= self.start) & (places < self.end))
        if not len(mine):
            return
        slots = self._slots[places[mine] - self.start]
        batch.rows[mine] = self._rows[places[mine] - self.start]
        whole = len(mine) == len(places)
        for kind, target in (("img_emb", batch.image_embed), ("text_emb", batch.text_embed)):
            if target is None:
                continue
            if whole:
                np.take(self.buffers.embeds[kind], slots, axis=0, out=target, mode="clip")
            else:
                target[mine] = self.buffers.embeds[kind][slots]
        part_of = np.searchsorted([part.slot for part in self._parts], slots, side="right") - 1
        states, captions = batch.token_states, batch.captions
        for at, slot, index in zip(mine, slots, part_of, strict=True) if reader.columns.by_row else ():
            part = self._parts[index]
            if states is not None and part.states is not None:
                part.states.fill(slot - part.slot, states[at])
            if captions is not None and part.captions is not None:
                captions[at] = part.captions[slot - part.slot].as_py()

    def close(self) -> Buffers:
        """Let go of files; reads that have not begun do not begin. Returns the arrays, which may be used again."""
        for future in self._futures:
            future.cancel()
        for future in self._futures:
            with contextlib.suppress(Exception, CancelledError):
                future.result()
        for part in self._parts:
            if part.states is not None:
                part.states.close()
        return self.buffers
