"""Rows of one shuffle window in memory. Threads read the rows in blocks, and batches are then filled from the window.

The code uses these row indices:

- *row*: row number in the dataset.
- *place*: position in the epoch before rows are shuffled; see the module `shuffle`. The rows of a batch are
  specified as places.
- *offset*: place relative to the first place of the window.
- *slot*: index in the window's buffers, which contain the rows read from each block, one block after another.
- *position*: index in a rank's batch.
"""

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
from .dataset import EmbeddingDataset, EmbeddingKind, Split
from .shuffle import EpochPlan, Share
from .token_states import StateRanges

_NORM_VALUES = (1 << 15) - 1
"""Maximum number of values per norm computation. For more values, torch starts threads that slow down training."""


@dataclass(frozen=True)
class Columns:
    """Columns to read in addition to the image embedding."""

    text_embed: bool = True
    max_text_len: int = 0
    """Maximum number of token states to read per row; 0 to read none."""
    captions: bool = False
    raw_image: bool = False
    """True to read the norms that the image embeddings had before normalisation."""
    raw_text: bool = False
    """True to read the norms that the text embeddings had before normalisation."""

    @property
    def norms(self) -> tuple[EmbeddingKind, ...]:
        """Kinds of embeddings whose norms before normalisation are requested."""
        wanted: tuple[tuple[EmbeddingKind, bool], ...] = (("img_emb", self.raw_image), ("text_emb", self.raw_text))
        return tuple(kind for kind, is_wanted in wanted if is_wanted)

    @property
    def embeds(self) -> tuple[str, ...]:
        """Kinds of embeddings to read: `img_emb` and, if requested, `text_emb`."""
        return ("img_emb", "text_emb") if self.text_embed else ("img_emb",)

    @property
    def varying_size(self) -> bool:
        """True if token states or captions are requested. Their sizes vary between rows."""
        return self.captions or self.max_text_len > 0


@dataclass(frozen=True)
class TrainBatch:
    """One rank's rows of a global batch (the rows that all ranks together process in one step).

    In the array shapes, b is the number of rows (possibly 0), D is the embedding size, T is the maximum number of token
    states (the text encoder's output for each token) per row, and W is the width of a token state.
    """

    rows: np.ndarray
    """Row numbers, `[b]` int64."""
    image_embed: np.ndarray
    """`[b, D]` embeddings of norm 1; float16 if the dataset stores all image embeddings as float16, else float32."""
    text_embed: np.ndarray | None
    """`[b, S]` embeddings of norm 1, whose size S usually equals D; float16 if all text embeddings are stored as
    float16, else float32. None if not requested."""
    token_states: np.ndarray | None
    """`[b, T, W]` float16, padded with zeros; None if not requested."""
    captions: list[str] | None
    """`[b]` captions; None if not requested."""
    first: int
    """Position of this rank's first row in the global batch."""
    global_rows: int
    """Number of rows in the global batch."""
    image_norm: np.ndarray | None = None
    """`[b]` float32 norms that the image embeddings had before normalisation; None if not requested."""
    text_norm: np.ndarray | None = None
    """`[b]` float32 norms that the text embeddings had before normalisation; None if not requested."""


@dataclass
class _Part:
    """Consecutive rows that are read from one block, with their token states and captions.

    The embeddings of the rows are in `Buffers`. `states` and `captions` are None until the rows are read, and stay None
    if they are not requested.
    """

    slot: int
    """Index of the part's first row in the window's embedding buffers."""
    states: StateRanges | None = None
    captions: pa.Array | None = None


class Buffers:
    """Arrays that store the embeddings of one shuffle window.

    They are reused for later windows, because allocating new arrays takes longer than reading the rows.

    Args:
        dataset: dataset from which the rows are read.
        columns: columns to read, which determine whether there is an array for text embeddings.
    """

    def __init__(self, dataset: EmbeddingDataset, columns: Columns) -> None:
        rows = min(dataset.count, dataset.settings.shuffle_window + dataset.settings.block_rows - 1)
        self.embeds = {kind: np.empty((rows, dataset.dim(kind)), dataset.embed_dtype(kind)) for kind in columns.embeds}


class BlockReader:
    """Reader that copies rows of a dataset into buffers, and creates and validates training batches.

    Args:
        dataset: dataset to read.
        split: split to read.
        columns: columns to read in addition to the image embeddings.

    Raises:
        InputError: the folder lacks a requested column, or a requested norm is not a positive finite number.
    """

    def __init__(self, dataset: EmbeddingDataset, split: Split, columns: Columns) -> None:
        dataset.require(text_embed=columns.text_embed, token_states=columns.max_text_len > 0)
        self.dataset, self.columns = dataset, columns
        self.visits = dataset.visits(split)
        self._norms: dict[str, np.ndarray] = {kind: dataset.norms(kind) for kind in columns.norms}
        self._dtypes = {kind: dataset.embed_dtype(kind) for kind in columns.embeds}
        mark = fingerprint([dataset.content_fingerprint, "captions"])[:16]
        self._captions = CaptionReader(dataset.store, mark) if columns.captions else None

    def read(self, start: int, end: int, part: _Part, buffers: Buffers) -> None:
        """Read rows `start` to `end - 1` into the buffers, starting at index `part.slot` of the buffers.

        Args:
            start: row number of the first row.
            end: row number after the last row; all rows must be in one shard.
            part: part of the window that receives the token states and captions.
            buffers: arrays that receive the embeddings.
        """
        index = int(np.searchsorted(self.dataset.shard_starts, start, side="right")) - 1
        shard, first = self.dataset.shards[index], start - int(self.dataset.shard_starts[index])
        slots = slice(part.slot, part.slot + end - start)
        for kind, embeds in buffers.embeds.items():
            shard.read_into(kind, first, embeds[slots])
        if self.columns.max_text_len:
            part.states = StateRanges(shard, first, end - start)
        if self._captions is not None:
            part.captions = self._captions.read(shard, first, end - start)

    def new_batch(self, share: Share) -> TrainBatch:
        """Allocate a batch for a share, which is the part of a global batch that this rank reads.

        `ShuffleWindow.fill` later copies the rows into the batch.
        """
        count = len(share.places)
        embeds = {kind: np.empty((count, self.dataset.dim(kind)), dtype) for kind, dtype in self._dtypes.items()}
        norms = {kind: np.empty(count, np.float32) for kind in self._norms}
        length, width = self.columns.max_text_len, self.dataset.token_width or 0
        return TrainBatch(
            rows=np.empty(count, np.int64),
            image_embed=embeds["img_emb"],
            text_embed=embeds.get("text_emb"),
            token_states=np.zeros((count, length, width), np.float16) if length else None,
            captions=[""] * count if self.columns.captions else None,
            first=share.first,
            global_rows=share.global_rows,
            image_norm=norms.get("img_emb"),
            text_norm=norms.get("text_emb"),
        )

    def fill_norms(self, batch: TrainBatch, positions: np.ndarray) -> None:
        """Copy the requested norms of the rows at the indices `positions` of a batch to the batch."""
        for kind, target in (("img_emb", batch.image_norm), ("text_emb", batch.text_norm)):
            if target is not None:
                target[positions] = self._norms[kind][batch.rows[positions]]

    def require_sound(self, batch: TrainBatch) -> None:
        """Validate a batch. Embeddings whose norms differ slightly from 1 because of rounding are normalised in place.

        Raises:
            InputError: an embedding is not a unit vector, or a token state is not finite.
        """
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
        """Normalise, in place, the embeddings whose norms differ slightly from 1 because of rounding.

        Args:
            kind: `img_emb` or `text_emb`.
            embeds: `[n, D]` embeddings of size D.

        Returns:
            `[n]` bool: True for the rows that are unit vectors, apart from rounding.
        """
        norms = _norms(embeds)
        verdict = judge_norms(norms)
        if verdict.rounded.any():
            normalise_rows(embeds, norms, verdict.rounded)
            self.dataset.count_rounded(kind, verdict.rounded)
        return ~verdict.bad


def _norms(embeds: np.ndarray) -> np.ndarray:
    """Return the norm of each embedding, computed in float32 for any floating-point dtype.

    Args:
        embeds: `[n, D]` array of n embeddings of size D.

    Returns:
        `[n]` float32 norms.
    """
    step = max(1, _NORM_VALUES // embeds.shape[1])
    parts = [torch.from_numpy(embeds[at : at + step]) for at in range(0, len(embeds), step)]
    return torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float32) for part in parts]).numpy()


@dataclass(frozen=True)
class BlockSpan:
    """Range of rows to read from one block of a window: from the first row that a rank needs through the last."""

    block: int
    """Index of the block within the window."""
    first: int
    """Index of the first required row, counted from the start of the window."""
    last: int
    """Index of the last required row, counted from the start of the window. This row is included in the range."""


def needed_spans(offsets: np.ndarray, block_offsets: np.ndarray) -> list[BlockSpan]:
    """Return the range of rows to read from each block of a window. Blocks without required rows are omitted.

    Args:
        offsets: `[n]` indices of the required rows within the window, in any order.
        block_offsets: `[blocks + 1]` index of each block's first row within the window, followed by the number of rows
            in the window.
    """
    ordered = np.sort(offsets)
    bounds = np.searchsorted(ordered, block_offsets)
    return [
        BlockSpan(block, int(ordered[low]), int(ordered[high - 1]))
        for block, (low, high) in enumerate(itertools.pairwise(bounds))
        if low < high
    ]


class ShuffleWindow:
    """Part of a shuffle window that one rank needs. A shuffle window is a group of rows that are shuffled together.

    Call `read` and `wait` first, then `fill` for each batch that has rows in the window, and `close` at the end.

    Args:
        plan: row order of the epoch.
        window: index of the window in the epoch.
        places: `[n]` positions of the required rows in the epoch, before rows are shuffled. They can be in any order.
    """

    def __init__(self, plan: EpochPlan, window: int, places: np.ndarray) -> None:
        self._plan = plan
        self.start, self.end = int(plan.window_starts[window]), int(plan.window_starts[window + 1])
        """Range of the window's positions in the epoch: `start` is inclusive, `end` is exclusive."""
        first_block, end_block = plan.windows[window : window + 2]
        self._blocks = plan.blocks[first_block:end_block]
        self._block_offsets = plan.starts[first_block : end_block + 1] - self.start
        self._spans = needed_spans(places - self.start, self._block_offsets)
        self._row_at_offset = np.empty(self.end - self.start, np.int64)
        self._slot_at_offset = np.empty(self.end - self.start, np.int64)
        self._parts: list[_Part] = []
        self._futures: list[Future[None]] = []
        self.buffers: Buffers

    def read(self, reader: BlockReader, buffers: Buffers, pool: ThreadPoolExecutor) -> None:
        """Start reading the required rows of every block into the buffers, in the threads of `pool`.

        Return without waiting for the reads; see `wait`.
        """
        self.buffers = buffers
        slot = 0
        for span in self._spans:
            block_start, block_end = self._block_offsets[span.block : span.block + 2]
            block = int(self._blocks[span.block])
            rows = reader.visits.rows_in_block(block, self._plan.seed, self._plan.epoch)  # in ascending order
            first_row, end_row = int(rows[span.first - block_start]), int(rows[span.last - block_start]) + 1
            self._row_at_offset[block_start:block_end] = rows
            self._slot_at_offset[block_start:block_end] = slot + (rows - first_row)
            part = _Part(slot)
            self._parts.append(part)
            self._futures.append(pool.submit(reader.read, first_row, end_row, part, buffers))
            slot += end_row - first_row

    def wait(self) -> None:
        """Wait until all reads have finished. If a read failed, raise the error that occurred in its thread."""
        for future in self._futures:
            future.result()

    def fill(self, batch: TrainBatch, places: np.ndarray, reader: BlockReader) -> None:
        """Copy into a batch the rows that it needs from this window.

        Args:
            batch: batch to fill.
            places: `[b]` positions of the batch's rows in the epoch, before rows are shuffled. Rows that belong to
                other windows are skipped.
            reader: reader that read the window.
        """
        positions = np.flatnonzero((places >= self.start) & (places < self.end))
        if not len(positions):
            return
        offsets = places[positions] - self.start
        slots = self._slot_at_offset[offsets]
        batch.rows[positions] = self._row_at_offset[offsets]
        self._fill_embeds(batch, positions, slots)
        reader.fill_norms(batch, positions)
        if reader.columns.varying_size:
            self._fill_varying(batch, positions, slots)

    def _fill_embeds(self, batch: TrainBatch, positions: np.ndarray, slots: np.ndarray) -> None:
        """Copy embeddings from the window's buffers to a batch.

        Args:
            batch: batch to fill.
            positions: `[n]` indices of the target rows in the batch.
            slots: `[n]` indices of the source rows in the window's buffers.
        """
        whole_batch = len(positions) == len(batch.rows)
        for kind, target in (("img_emb", batch.image_embed), ("text_emb", batch.text_embed)):
            if target is None:
                continue
            if whole_batch:  # avoids the temporary copy that indexing makes
                np.take(self.buffers.embeds[kind], slots, axis=0, out=target, mode="clip")
            else:
                target[positions] = self.buffers.embeds[kind][slots]

    def _fill_varying(self, batch: TrainBatch, positions: np.ndarray, slots: np.ndarray) -> None:
        """Copy token states and captions, row by row, to the indices `positions` of the batch.

        Args:
            batch: batch to fill.
            positions: `[n]` indices of the target rows in the batch.
            slots: `[n]` indices of the source rows in the window's buffers.
        """
        part_of_slot = np.searchsorted([part.slot for part in self._parts], slots, side="right") - 1
        for position, slot, index in zip(positions, slots, part_of_slot, strict=True):
            part = self._parts[index]
            if batch.token_states is not None and part.states is not None:
                part.states.fill(slot - part.slot, batch.token_states[position])
            if batch.captions is not None and part.captions is not None:
                batch.captions[position] = part.captions[slot - part.slot].as_py()

    def close(self) -> Buffers:
        """Cancel pending reads, wait for running reads, close all files, and return the buffers for the next window."""
        for future in self._futures:
            future.cancel()
        for future in self._futures:
            with contextlib.suppress(Exception, CancelledError):
                future.result()
        for part in self._parts:
            if part.states is not None:
                part.states.close()
        return self.buffers
