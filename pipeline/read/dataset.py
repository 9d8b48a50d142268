"""Embedding shards -> rows by number, and which of them train, validate and test.

A row has a number: shards in order of theirs, rows in order of the shard. A *selection* says for every row which split
it belongs to; it depends on the row's content group and the settings alone, so that copies of an image stay on one side
and rows stay put when data is added. `batches` reads the rows of a split in the shuffled order of its epochs.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ..contract.arrow.columns import as_text, column_of
from ..contract.arrow.types import can_be_text
from ..contract.file_marks import FileMark, Tell, content_fingerprint, identify, read_marks, to_json
from ..contract.manifest import Manifest, fingerprint, read_manifest, require_stage
from ..contract.other_layouts import require_known_layout
from ..contract.storage import TEMPORARY_SUFFIX, Store
from ..contract.vectors.rules import ROUNDED, WORDS, common_dtype, judge_norms, normalise_rows, row_fault, row_norms
from ..errors import InputError
from .selection import (
    FOLDER,
    Blocks,
    Visits,
    find_shared_groups,
    identify_groups,
    identify_rows,
    kept_rows,
    select_splits,
)
from .settings import ReadSettings
from .shards import EmbeddingShard, find_shards
from .shuffle import hash_key

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_DATA_FOLDERS = ("img_emb", "text_emb", "metadata", "token_states")
_MARKS_NAME = f"{FOLDER}/files.json"
_WIDEST = 1 << 20
"""More values than any embedding or token state has: above, a manifest is damaged."""
_NAMED_ROWS = 5
"""Number of rows that a message names at most."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
"""Multiplying by it spreads a change of any bit over those above (Knuth, volume 3, section 6.4)."""


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
    """The embedding shards of one folder, checked against their manifest, or else against each other.

    Args:
        url: folder that `embed` or clip-retrieval wrote, or that LAION published.
        settings: how rows are split.
        known_files: marks of the files of a folder without a manifest, where another folder has recorded them.
        hash_files: False never reads such files to identify them, so that `content_fingerprint` is of no use.
        tell: told of the progress of hashing that takes long.

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
        self.token_width: int | None = None
        """Width of the stored token states; None where none are stored."""
        self._about: dict[str, Any] = {}
        self._opening_notes: list[str] = []
        self.rounded = Counter[str]()
        """Number of rows that were normalised on reading, by kind; a row that is read twice counts twice."""
        manifest = read_manifest(self.store)
        found = find_shards(self.store) if manifest is None else None
        self._known_files, self._hash_files, self._tell = known_files or {}, hash_files, tell
        self._foreign_files = () if found is None else found.files
        self._recorded_fingerprint = ""
        if found is not None:
            self.shards, self.embed_dim = found.shards, found.embed_dim
            self._opening_notes = found.notes
        else:
            if manifest is None:
                require_known_layout(self.store)
            self._open_recorded(require_stage(self.store, manifest, "embed"))
        self.shard_starts = np.cumsum([0] + [shard.rows for shard in self.shards])
        """`[shards + 1]`: row number of the first row of each shard."""
        self.count = int(self.shard_starts[-1])
        """Rows of all splits."""
        self.has_text_embed = all(shard.has("text_emb") for shard in self.shards)
        if self.count == 0:
            raise InputError(f"{url} holds no embeddings; run `priorkit embed` again")

    def _open_recorded(self, manifest: Manifest) -> None:
        if not {"clip", "clip_settings"} <= manifest.about.keys():
            raise InputError(f"{self.store.url} does not say which CLIP made it; run `priorkit embed` again")
        self._about = manifest.about
        self.embed_dim = self._recorded_width("embed_dim")
        sizes = {name: size for folder in _DATA_FOLDERS for name, size in self.store.sizes(folder).items()}
        rest = {name.partition("/")[0] for record in manifest.shards.values() for name in record.files}
        for folder in sorted(rest - set(_DATA_FOLDERS)):
            sizes.update(self.store.sizes(folder))
        self.shards = [
            EmbeddingShard.of_record(self.store, manifest.shards[name], sizes, self.embed_dim)
            for name in sorted(manifest.shards)
        ]
        self._refuse_unfinished(manifest, sizes)
        if self.shards and self.shards[0].has("token_states"):
            self.token_width = self._recorded_width("token_width")
        self._recorded_fingerprint = manifest.content_fingerprint()

    def _recorded_width(self, name: str) -> int:
        """A number of values that the manifest states about its CLIP."""
        width = self.clip.get(name) if isinstance(self.clip, dict) else None
        if type(width) is not int or not 0 < width <= _WIDEST:
            raise InputError(
                f"{self.store.url}: its manifest gives {width!r} as the CLIP's {name}; restore it, or run "
                "`priorkit embed` into another folder"
            )
        return width

    @functools.cached_property
    def content_fingerprint(self) -> str:
        """Fingerprint of all data: of the recorded hashes, or of those of the files of a folder without a manifest."""
        if self._foreign_files and self._hash_files:
            return content_fingerprint(self.file_marks)
        return self._recorded_fingerprint

    @functools.cached_property
    def file_marks(self) -> dict[str, FileMark]:
        """Marks of the files of a folder without a manifest, kept in the folder; none where they are not hashed.

        Raises:
            InputError: a file is missing or cannot be read.
        """
        if not (self._foreign_files and self._hash_files):
            return {}
        kept = read_marks(self.store, _MARKS_NAME)
        marks = identify(self.store, self._foreign_files, {**self._known_files, **kept}, self._tell)
        if marks != kept:
            with contextlib.suppress(OSError, NotImplementedError):  # a read-only folder does without
                self.store.write_json(_MARKS_NAME, to_json(marks))
        return marks

    @property
    def clip(self) -> dict[str, Any]:
        """Identity of the CLIP that made the embeddings; InputError if the folder has no manifest to name it."""
        return self._named("clip")

    @property
    def clip_if_known(self) -> dict[str, Any]:
        """Identity of the CLIP that made the embeddings; empty if the folder has no manifest to name it."""
        return dict(self._about.get("clip", {}))

    @property
    def notes(self) -> list[str]:
        """What is unusual in the folder and was met so far, a sentence each."""
        counts = sorted(self.rounded.items())
        found = [f"{number:,} {kind} embeddings that were read have {ROUNDED}" for kind, number in counts]
        return [f"{self.store.url}: {note}" for note in [*self._opening_notes, *found]]

    def embed_dtype(self, kind: str) -> np.dtype[Any]:
        """The type that image or text embeddings are read in: float16 where all files are, else float32."""
        return common_dtype({shard.embed_dtype(kind) for shard in self.shards})

    @property
    def clip_settings(self) -> dict[str, Any]:
        """Where that CLIP is to be had; InputError as for `clip`."""
        return self._named("clip_settings")

    def _named(self, what: str) -> dict[str, Any]:
        if what not in self._about:
            raise InputError(
                f"{self.store.url} does not name its CLIP: it has no manifest. Name it in the recipe (embed.clip), or "
                "make the folder with `priorkit embed`"
            )
        named: dict[str, Any] = self._about[what]
        return named

    @functools.cached_property
    def selection(self) -> np.ndarray:
        """`[count]` uint8: the split of each row, as its position in `SPLITS`. Built once, kept in the folder."""
        make = functools.partial(select_splits, self.shards, self.settings)
        return kept_rows(self.store, f"selection_{self._mark(split=True)}", self.count, np.dtype(np.uint8), (), make)

    @functools.cached_property
    def row_ids(self) -> np.ndarray:
        """`[count]` uint64: a hash of what each row holds, wherever it stands. Built once, kept in the folder."""
        make = functools.partial(identify_rows, self.shards)
        return kept_rows(self.store, f"row_ids_{self._mark()}", self.count, np.dtype(np.uint64), (), make)

    @functools.cached_property
    def group_ids(self) -> np.ndarray:
        """`[count]` uint64: a hash of each row's content group, the same for all captions and copies of an image."""
        make = functools.partial(identify_groups, self.shards)
        return kept_rows(self.store, f"group_ids_{self._mark()}", self.count, np.dtype(np.uint64), (), make)

    @functools.cached_property
    def blocks(self) -> Blocks:
        """The blocks of rows that are read at once."""
        return Blocks.of_shards(self.shard_starts, self.settings.block_rows)

    def visits(self, split: Split) -> Visits:
        """Which rows of a split are visited in an epoch."""
        name = f"counts_{self._mark(self.settings.block_rows, split=True)}"
        count = functools.partial(self.blocks.count_splits, self.selection, len(SPLITS))
        counts = kept_rows(self.store, name, len(self.blocks.shards), np.dtype(np.uint32), (len(SPLITS),), count)
        shared = None
        if self.settings.captions == "one":
            find = functools.partial(find_shared_groups, self.shards)
            shared = kept_rows(self.store, f"shared_{self._mark()}", None, np.dtype(np.int64), (4,), find)
        code = SPLITS.index(split)
        return Visits(self.blocks, self.selection, code, counts[:, code], shared)

    def _mark(self, *what: Any, split: bool = False) -> str:
        """Names what is kept: by the data, and what else it follows from."""
        parts = [self.content_fingerprint, *([self.settings.splits()] if split else []), *what]
        return fingerprint(parts if len(parts) > 1 else parts[0])[:16]

    def rows(self, split: Split) -> np.ndarray:
        """Row numbers of a split, ascending: `[n]` int64."""
        return np.flatnonzero(self.selection == SPLITS.index(split))

    def epoch_order(self, split: Split, seed: int, epoch: int) -> np.ndarray:
        """Row numbers of a split in the order of one epoch: a pure function of selection, seed and epoch."""
        return np.random.default_rng([seed, epoch]).permutation(self.rows(split))

    def content_order(self, split: Split, seed: int) -> np.ndarray:
        """Row numbers of a split in an order that follows from what the rows hold and the seed, not from the shards."""
        rows = self.rows(split)
        mixed = (self.row_ids[rows] ^ hash_key("order", seed)) * _ODD
        return rows[np.argsort(mixed ^ (mixed >> np.uint64(32)), kind="stable")]

    def take(self, rows: np.ndarray, max_text_len: int = 0) -> EmbeddingBatch:
        """Read rows by number, in the order given.

        Args:
            rows: `[B]` row numbers.
            max_text_len: token states of each row that are read at most; 0 reads none.
        """
        self.require(text_embed=True, token_states=max_text_len > 0)
        image, text = self.embeds("img_emb", rows), self.embeds("text_emb", rows)
        states = np.zeros((len(rows), max_text_len, self.token_width or 0), np.float32) if max_text_len else None
        if states is not None:
            shard_of = np.searchsorted(self.shard_starts, rows, side="right") - 1
            for index in np.unique(shard_of):
                at = np.flatnonzero(shard_of == index)
                self.shards[index].fill_token_states(states, at, rows[at] - self.shard_starts[index])
        return EmbeddingBatch(rows, image, text, states)

    def embeds(self, kind: Literal["img_emb", "text_emb"], rows: np.ndarray) -> np.ndarray:
        """Image or text embeddings of rows by number: `[B, D]` float32 of norm 1.

        Raises:
            InputError: a row is not a unit vector; see `vector_rules`.
        """
        found = np.empty((len(rows), self.embed_dim), np.float32)
        shard_of = np.searchsorted(self.shard_starts, rows, side="right") - 1
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            for index in np.unique(shard_of):
                at = np.flatnonzero(shard_of == index)
                found[at] = self.shards[index].array(kind)[rows[at] - self.shard_starts[index]]
        norms = row_norms(found)
        verdict = judge_norms(norms)
        if verdict.bad.any():
            first = int(np.argmax(verdict.bad))
            raise InputError(
                f"{self.store.url}: {self.describe_rows(rows[verdict.bad])}: the {WORDS[kind]} embedding "
                f"{row_fault(found[first], norms[first])}; `priorkit inspect` names all such rows; embed their shards "
                "again, or leave them out"
            )
        if verdict.rounded.any():
            normalise_rows(found, norms, verdict.rounded)
            self.count_rounded(kind, verdict.rounded)
        return found

    def count_rounded(self, kind: str, rounded: np.ndarray) -> None:
        """Count rows `[n]` that were normalised on reading."""
        self.rounded[WORDS[kind]] += int(rounded.sum())

    def describe_rows(self, rows: Sequence[int] | np.ndarray) -> str:
        """Numbers of the first of some rows, and their keys where the folder has them, for messages."""
        named = np.asarray(rows[:_NAMED_ROWS], np.int64)
        keys = ""
        with contextlib.suppress(InputError):  # others' folders may have none
            found = self.metadata(named, ["key"]).column("key").to_pylist()
            keys = f", keys {', '.join('none' if key is None else key for key in found)}"
        more = f" and {len(rows) - len(named)} more" if len(rows) > len(named) else ""
        return f"rows {', '.join(map(str, named))}{more}{keys}"

    def require(self, *, text_embed: bool = False, token_states: bool = False) -> None:
        """InputError unless the folder has what is asked for."""
        if text_embed and not self.has_text_embed:
            raise InputError(
                f"{self.store.url} stores no text embeddings; embed with embed.text=true, or train with "
                "train.text_condition=online, which computes them from captions"
            )
        if token_states and self.token_width is None:
            raise InputError(f"{self.store.url} stores no token states; embed with token_states: true")

    def metadata(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Columns of the metadata for rows by number, in the order given."""
        shard_of = np.searchsorted(self.shard_starts, rows, side="right") - 1
        parts, positions = [], []
        for index in np.unique(shard_of):
            at = np.flatnonzero(shard_of == index)
            table = self.shards[index].metadata(list(columns))
            parts.append(table.take(pa.array(rows[at] - self.shard_starts[index])))
            positions.append(at)
        if not parts:
            return pa.table({name: [] for name in columns})
        order = np.argsort(np.concatenate(positions))
        return self._joined(parts).take(pa.array(order))

    def _joined(self, parts: list[pa.Table]) -> pa.Table:
        """Tables of several shards as one; columns whose types cannot be joined become text."""
        try:
            return pa.concat_tables(parts, promote_options="permissive")
        except pa.ArrowException:
            pass
        for name in parts[0].column_names:
            types = {part.schema.field(name).type for part in parts}
            if len(types) == 1:
                continue
            if not all(map(can_be_text, types)):
                named = ", ".join(sorted(map(str, types)))
                raise InputError(f"{self.store.url}: column {name!r} holds {named}, which cannot be joined")
            at = parts[0].column_names.index(name)
            parts = [part.set_column(at, name, as_text(column_of(part, name))) for part in parts]
        return pa.concat_tables(parts, promote_options="permissive")

    def _refuse_unfinished(self, manifest: Manifest, sizes: Mapping[str, int]) -> None:
        planned = manifest.input.get("shards", 0)
        if len(manifest.shards) < planned:
            raise InputError(
                f"{self.store.url} holds {len(manifest.shards):,} of {planned:,} shards; "
                "`priorkit embed` is still running or was killed: run it again"
            )
        recorded = {name for record in manifest.shards.values() for name in record.files}
        for name in sizes:
            extra = name.partition("/")[0] in _DATA_FOLDERS and name not in recorded
            if extra and not name.endswith(TEMPORARY_SUFFIX):
                raise InputError(
                    f"{self.store.url}/{name} is in no record: `priorkit embed` is still running or was killed "
                    "(run it again), or the file is not its own (remove it)"
                )


def read_embeddings(url: str = "data/embeddings", settings: ReadSettings | None = None) -> EmbeddingDataset:
    """Open a folder of embedding shards; see `EmbeddingDataset`."""
    return EmbeddingDataset(url, settings)
