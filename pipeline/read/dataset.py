"""Dataset of embedding shards: rows by number, and the split of each row.

Rows are numbered from 0: shard by shard in order of their names, and row by row in a shard. The split plan states for
every row whether it trains, validates or tests; see `split_plan`. `batches` reads a split in shuffled epochs.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ..contract.file_marks import FileMark, Tell, content_fingerprint, identify, read_marks, to_json
from ..contract.manifest import fingerprint
from ..contract.storage import Store
from ..contract.vectors.rules import ROUNDED, WORDS, common_dtype, judge_norms, normalise_rows, row_fault, row_norms
from ..errors import InputError
from .cached_array import FOLDER, cached_array
from .folder import open_folder
from .metadata import join_tables
from .settings import ReadSettings
from .shards import EmbeddingShard
from .shuffle import hash_key
from .split_plan import SPLITS, Split, identify_groups, identify_rows, plan_splits
from .visits import Blocks, Visits, find_shared_groups

__all__ = ["SPLITS", "EmbeddingBatch", "EmbeddingDataset", "Split", "read_embeddings"]

_MARKS_NAME = f"{FOLDER}/files.json"
"""Cached marks of the files of a folder without a manifest."""
_NAMED_ROWS = 5
"""Largest number of rows that a message names."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
"""Odd factor that spreads a change of any bit over the bits above it (Knuth, volume 3, section 6.4)."""


@dataclass(frozen=True)
class EmbeddingBatch:
    """Rows of a dataset. B rows, D the embedding's size, T token states of width W."""

    rows: np.ndarray
    """`[B]` int64: row numbers."""
    image_embed: np.ndarray
    """`[B, D]` float32, L2-normalised."""
    text_embed: np.ndarray
    """`[B, D]` float32, L2-normalised."""
    token_states: np.ndarray | None
    """`[B, T, W]` float32, padded with zeros; None unless asked for."""


class EmbeddingDataset:
    """Embedding shards of one folder, checked against their manifest, or else against each other.

    Args:
        url: folder that `embed` or clip-retrieval wrote, or that LAION published.
        settings: splits and order of rows.
        known_files: marks of the files of a folder without a manifest, as another folder has recorded them.
        hash_files: False to skip hashing the files of a folder without a manifest; `content_fingerprint` is then
            empty.
        tell: called with the progress of hashing that takes long.

    Raises:
        InputError: the folder holds no embeddings, or a file is missing, short or misaligned.
    """

    def __init__(
        self,
        url: str,
        settings: ReadSettings | None = None,
        *,
        known_files: Mapping[str, FileMark] | None = None,
        hash_files: bool = True,
        tell: Tell = None,
    ) -> None:
        self.store = Store(url)
        self.settings = settings or ReadSettings()
        self.rounded = Counter[str]()
        """Number of rows that were normalised on reading, by kind; a row that is read twice counts twice."""
        self._known_files, self._hash_files, self._tell = known_files or {}, hash_files, tell
        self._folder = open_folder(self.store)
        self.shards = self._folder.shards
        self.embed_dim = self._folder.embed_dim
        self.token_width = self._folder.token_width
        """Width of the stored token states; None if none are stored."""
        self.shard_starts = np.cumsum([0] + [shard.rows for shard in self.shards])
        """`[shards + 1]`: row number of the first row of each shard, then the number of rows."""
        self.count = int(self.shard_starts[-1])
        """Number of rows of all splits."""
        self.has_text_embed = all(shard.has("text_emb") for shard in self.shards)
        if self.count == 0:
            raise InputError(f"{url} holds no embeddings; run `priorkit embed` again")

    @functools.cached_property
    def content_fingerprint(self) -> str:
        """Fingerprint of all data: of the recorded hashes, or of the hashes of the files if there is no manifest."""
        if self._folder.foreign_files and self._hash_files:
            return content_fingerprint(self.file_marks)
        return self._folder.recorded_fingerprint

    @functools.cached_property
    def file_marks(self) -> dict[str, FileMark]:
        """Marks of the files of a folder without a manifest, cached in the folder; empty if files are not hashed.

        Raises:
            InputError: a file is missing or cannot be read.
        """
        if not (self._folder.foreign_files and self._hash_files):
            return {}
        cached = read_marks(self.store, _MARKS_NAME)
        marks = identify(self.store, self._folder.foreign_files, {**self._known_files, **cached}, self._tell)
        if marks != cached:
            with contextlib.suppress(OSError, NotImplementedError):  # the folder may be read-only
                self.store.write_json(_MARKS_NAME, to_json(marks))
        return marks

    @property
    def clip(self) -> dict[str, Any]:
        """Identity of the CLIP that made the embeddings; InputError without a manifest, which names it."""
        return self._about("clip")

    @property
    def clip_if_known(self) -> dict[str, Any]:
        """Identity of the CLIP that made the embeddings; empty without a manifest, which names it."""
        return dict(self._folder.about.get("clip", {}))

    @property
    def clip_settings(self) -> dict[str, Any]:
        """Settings that load that CLIP; InputError without a manifest, which holds them."""
        return self._about("clip_settings")

    def _about(self, name: str) -> dict[str, Any]:
        """Return a value that the manifest states about the embeddings."""
        if name not in self._folder.about:
            raise InputError(
                f"{self.store.url} does not name its CLIP: it has no manifest. Name it in the recipe (embed.clip), or "
                "make the folder with `priorkit embed`"
            )
        value: dict[str, Any] = self._folder.about[name]
        return value

    @property
    def notes(self) -> list[str]:
        """Unusual properties of the folder that are known so far, a sentence each."""
        counts = sorted(self.rounded.items())
        rounded = [f"{number:,} {kind} embeddings that were read have {ROUNDED}" for kind, number in counts]
        return [f"{self.store.url}: {note}" for note in [*self._folder.notes, *rounded]]

    def embed_dtype(self, kind: str) -> np.dtype[Any]:
        """Return the type that image or text embeddings are read in: float16 if all files are, else float32."""
        return common_dtype({shard.embed_dtype(kind) for shard in self.shards})

    @functools.cached_property
    def split_plan(self) -> np.ndarray:
        """Split of each row, as its position in `SPLITS`: `[count]` uint8. Cached in the folder."""
        make = functools.partial(plan_splits, self.shards, self.settings)
        name = f"selection_{self._mark(split=True)}"  # part of the disk format
        return cached_array(self.store, name, self.count, np.dtype(np.uint8), (), make)

    @functools.cached_property
    def row_ids(self) -> np.ndarray:
        """Hash of each row's content, which does not depend on its row number: `[count]` uint64. Cached."""
        make = functools.partial(identify_rows, self.shards)
        return cached_array(self.store, f"row_ids_{self._mark()}", self.count, np.dtype(np.uint64), (), make)

    @functools.cached_property
    def group_ids(self) -> np.ndarray:
        """Hash of each row's content group, equal for all captions and copies of an image: `[count]` uint64. Cached."""
        make = functools.partial(identify_groups, self.shards)
        return cached_array(self.store, f"group_ids_{self._mark()}", self.count, np.dtype(np.uint64), (), make)

    @functools.cached_property
    def blocks(self) -> Blocks:
        """Blocks of rows that are read at once."""
        return Blocks.from_shards(self.shard_starts, self.settings.block_rows)

    def visits(self, split: Split) -> Visits:
        """Return the rows of a split that each epoch visits."""
        name = f"counts_{self._mark(self.settings.block_rows, split=True)}"
        count = functools.partial(self.blocks.count_splits, self.split_plan, len(SPLITS))
        counts = cached_array(self.store, name, len(self.blocks.shards), np.dtype(np.uint32), (len(SPLITS),), count)
        shared = None
        if self.settings.captions == "one":
            find = functools.partial(find_shared_groups, self.shards)
            shared = cached_array(self.store, f"shared_{self._mark()}", None, np.dtype(np.int64), (4,), find)
        code = SPLITS.index(split)
        return Visits(self.blocks, self.split_plan, code, counts[:, code], shared)

    def _mark(self, *values: Any, split: bool = False) -> str:
        """Return the fingerprint in the name of a cached array, of the data and the values that it depends on."""
        parts = [self.content_fingerprint, *([self.settings.splits()] if split else []), *values]
        return fingerprint(parts if len(parts) > 1 else parts[0])[:16]

    def rows(self, split: Split) -> np.ndarray:
        """Return the row numbers of a split, ascending: `[n]` int64."""
        return np.flatnonzero(self.split_plan == SPLITS.index(split))

    def epoch_order(self, split: Split, seed: int, epoch: int) -> np.ndarray:
        """Return the row numbers of a split in a random order: a pure function of split plan, seed and epoch."""
        return np.random.default_rng([seed, epoch]).permutation(self.rows(split))

    def content_order(self, split: Split, seed: int) -> np.ndarray:
        """Return the row numbers of a split in a random order that depends on content and seed, not on the shards."""
        rows = self.rows(split)
        mixed = (self.row_ids[rows] ^ hash_key("order", seed)) * _ODD
        return rows[np.argsort(mixed ^ (mixed >> np.uint64(32)), kind="stable")]

    def take(self, rows: np.ndarray, max_text_len: int = 0) -> EmbeddingBatch:
        """Read rows by number, in the given order.

        Args:
            rows: `[B]` row numbers.
            max_text_len: largest number of token states to read of each row; 0 reads none.
        """
        self.require(text_embed=True, token_states=max_text_len > 0)
        image, text = self.embeds("img_emb", rows), self.embeds("text_emb", rows)
        states = np.zeros((len(rows), max_text_len, self.token_width or 0), np.float32) if max_text_len else None
        if states is not None:
            for shard, positions, local_rows in self._rows_by_shard(rows):
                shard.fill_token_states(states, positions, local_rows)
        return EmbeddingBatch(rows, image, text, states)

    def embeds(self, kind: Literal["img_emb", "text_emb"], rows: np.ndarray) -> np.ndarray:
        """Read image or text embeddings of rows by number: `[B, D]` float32 of norm 1.

        Raises:
            InputError: a row is not a unit vector; see `contract.vectors.rules`.
        """
        embeds = np.empty((len(rows), self.embed_dim), np.float32)
        with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are refused below
            for shard, positions, local_rows in self._rows_by_shard(rows):
                embeds[positions] = shard.array(kind)[local_rows]
        norms = row_norms(embeds)
        verdict = judge_norms(norms)
        if verdict.bad.any():
            first = int(np.argmax(verdict.bad))
            raise InputError(
                f"{self.store.url}: {self.describe_rows(rows[verdict.bad])}: the {WORDS[kind]} embedding "
                f"{row_fault(embeds[first], norms[first])}; `priorkit inspect` names all such rows; embed their shards "
                "again, or leave them out"
            )
        if verdict.rounded.any():
            normalise_rows(embeds, norms, verdict.rounded)
            self.count_rounded(kind, verdict.rounded)
        return embeds

    def metadata(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Read columns of the metadata of rows by number, in the given order."""
        tables, parts = [], []
        for shard, positions, local_rows in self._rows_by_shard(rows):
            tables.append(shard.metadata(list(columns)).take(pa.array(local_rows)))
            parts.append(positions)
        if not tables:
            return pa.table({name: [] for name in columns})
        order = np.argsort(np.concatenate(parts))
        return join_tables(tables, self.store.url).take(pa.array(order))

    def _rows_by_shard(self, rows: np.ndarray) -> Iterator[tuple[EmbeddingShard, np.ndarray, np.ndarray]]:
        """Yield each shard that has some of the rows, with their positions in `rows` and their rows in the shard."""
        shard_of_row = np.searchsorted(self.shard_starts, rows, side="right") - 1
        for index in np.unique(shard_of_row):
            positions = np.flatnonzero(shard_of_row == index)
            yield self.shards[index], positions, rows[positions] - self.shard_starts[index]

    def count_rounded(self, kind: str, rounded: np.ndarray) -> None:
        """Count the rows that were normalised on reading: `[n]` bool."""
        self.rounded[WORDS[kind]] += int(rounded.sum())

    def describe_rows(self, rows: Sequence[int] | np.ndarray) -> str:
        """Describe rows for a message: the first numbers, and their keys if the folder has keys."""
        listed = np.asarray(rows[:_NAMED_ROWS], np.int64)
        keys = ""
        with contextlib.suppress(InputError):  # foreign folders may have no keys
            values = self.metadata(listed, ["key"]).column("key").to_pylist()
            keys = f", keys {', '.join('none' if key is None else key for key in values)}"
        more = f" and {len(rows) - len(listed)} more" if len(rows) > len(listed) else ""
        return f"rows {', '.join(map(str, listed))}{more}{keys}"

    def require(self, *, text_embed: bool = False, token_states: bool = False) -> None:
        """Raise InputError unless the folder stores what is asked for."""
        if text_embed and not self.has_text_embed:
            raise InputError(
                f"{self.store.url} stores no text embeddings; embed with embed.text=true, or train with "
                "train.text_condition=online, which computes them from captions"
            )
        if token_states and self.token_width is None:
            raise InputError(f"{self.store.url} stores no token states; embed with token_states: true")


def read_embeddings(url: str = "data/embeddings", settings: ReadSettings | None = None) -> EmbeddingDataset:
    """Open a folder of embedding shards; see `EmbeddingDataset`."""
    return EmbeddingDataset(url, settings)
