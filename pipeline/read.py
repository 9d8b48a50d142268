"""Embedding shards -> deterministic, shuffled, resumable batches.

A row has a number: shards in order of name, rows in order of the shard. A *selection* says for every row which split it
belongs to; it depends on the row's content group and the settings alone, so that copies of an image stay on one side
and rows stay put when data is added.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .config import ReadSettings
from .errors import InputError
from .shards import Manifest, ShardRecord, fingerprint, require_manifest
from .storage import TEMPORARY_SUFFIX, Store

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_DATA_FOLDERS = ("img_emb", "text_emb", "metadata", "token_states")
_SPLIT_SALT = b"priorkit split\0"
_GROUP_COLUMNS = ("sha256", "url")
"""Columns that name the content of an image, the best first."""
_DOUBLE_VALUES = 1 << 53


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
    """The embedding shards of one folder, checked against their manifest.

    Args:
        url: folder that `embed` wrote.
        settings: how rows are split.

    Raises:
        InputError: the folder is none of ours, or a file is missing, short or misaligned.
    """

    def __init__(self, url: str, settings: ReadSettings | None = None) -> None:
        self.store = Store(url)
        self.settings = settings or ReadSettings()
        manifest = require_manifest(self.store, "embed")
        if not {"clip", "clip_settings"} <= manifest.about.keys():
            raise InputError(f"{url} does not say which CLIP made it; run `priorkit embed` again")
        self._shards = [_OpenShard(self.store, manifest.shards[name]) for name in sorted(manifest.shards)]
        self._refuse_unfinished(manifest)
        if not self._shards or manifest.rows == 0:
            raise InputError(f"{url} holds no embeddings; run `priorkit embed` again")
        self._starts = np.cumsum([0] + [shard.rows for shard in self._shards])
        self.clip: dict[str, Any] = manifest.about["clip"]
        """Identity of the CLIP that made the embeddings."""
        self.clip_settings: dict[str, Any] = manifest.about["clip_settings"]
        """Where that CLIP is to be had."""
        self.count = int(self._starts[-1])
        """Rows of all splits."""
        self.embed_dim = int(self.clip["embed_dim"])
        self.token_width: int | None = self.clip["token_width"] if self._shards[0].has_token_states else None
        """Width of the stored token states; None where none are stored."""
        self.content_fingerprint = manifest.content_fingerprint()

    @functools.cached_property
    def selection(self) -> np.ndarray:
        """`[count]` uint8: the split of each row, as its position in `SPLITS`. Built once and kept in the folder."""
        mark = fingerprint([self.content_fingerprint, self.settings.identity()])[:16]
        name = f"selections/selection_{mark}.npy"
        with contextlib.suppress(OSError, EOFError, ValueError):
            with self.store.open(name) as file:
                found = np.load(io.BytesIO(file.read()), allow_pickle=False)
            if found.shape == (self.count,):
                return np.asarray(found)
        selection = np.concatenate([self._select(shard) for shard in self._shards])
        with contextlib.suppress(OSError), self.store.create(name) as file:  # a cache: a read-only folder does without
            np.save(file, selection)
        return selection

    def rows(self, split: Split) -> np.ndarray:
        """Row numbers of a split, ascending: `[n]` int64."""
        return np.flatnonzero(self.selection == SPLITS.index(split))

    def epoch_order(self, split: Split, seed: int, epoch: int) -> np.ndarray:
        """Row numbers of a split in the order of one epoch: a pure function of selection, seed and epoch."""
        return np.random.default_rng([seed, epoch]).permutation(self.rows(split))

    def take(self, rows: np.ndarray, max_text_len: int = 0) -> EmbeddingBatch:
        """Read rows by number, in the order given.

        Args:
            rows: `[B]` row numbers.
            max_text_len: token states of each row that are read at most; 0 reads none.
        """
        image = np.empty((len(rows), self.embed_dim), np.float32)
        text = np.empty((len(rows), self.embed_dim), np.float32)
        states = np.zeros((len(rows), max_text_len, self.token_width or 0), np.float32) if max_text_len else None
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for index in np.unique(shard_of):
            shard = self._shards[index]
            at = np.flatnonzero(shard_of == index)
            local = rows[at] - self._starts[index]
            image[at] = shard.array("img_emb")[local]
            text[at] = shard.array("text_emb")[local]
            if states is not None:
                shard.fill_token_states(states, at, local)
        return EmbeddingBatch(rows, image, text, states)

    def metadata(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Columns of the metadata for rows by number, in the order given."""
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        parts, positions = [], []
        for index in np.unique(shard_of):
            at = np.flatnonzero(shard_of == index)
            table = self._shards[index].metadata(list(columns))
            parts.append(table.take(pa.array(rows[at] - self._starts[index])))
            positions.append(at)
        if not parts:
            return pa.table({name: [] for name in columns})
        order = np.argsort(np.concatenate(positions))
        return pa.concat_tables(parts, promote_options="permissive").take(pa.array(order))

    def _refuse_unfinished(self, manifest: Manifest) -> None:
        planned = manifest.input.get("shards", 0)
        if len(manifest.shards) < planned:
            raise InputError(
                f"{self.store.url} holds {len(manifest.shards):,} of {planned:,} shards; "
                "`priorkit embed` is still running or was killed: run it again"
            )
        recorded = {name for record in manifest.shards.values() for name in record.files}
        for folder in _DATA_FOLDERS:
            for name in self.store.names(folder):
                if name not in recorded and not name.endswith(TEMPORARY_SUFFIX):
                    raise InputError(
                        f"{self.store.url}/{name} is in no record: `priorkit embed` is still running or was killed "
                        "(run it again), or the file is not its own (remove it)"
                    )

    def _select(self, shard: _OpenShard) -> np.ndarray:
        validation, test = self.settings.validation_fraction, self.settings.test_fraction
        split = np.zeros(shard.rows, np.uint8)
        for row, group in enumerate(shard.content_groups()):
            digest = hashlib.sha256(_SPLIT_SALT + group).digest()
            place = (int.from_bytes(digest[:8], "big") >> 11) / _DOUBLE_VALUES  # uniform in [0, 1)
            # test first: its rows stay the same whatever the share of validation
            split[row] = 2 if place < test else 1 if place < test + validation else 0
        return split


class _OpenShard:
    """One embedding shard: arrays are mapped from local files, and read whole from remote ones."""

    def __init__(self, store: Store, record: ShardRecord) -> None:
        self._store = store
        self._record = record
        self.rows = record.rows
        self.has_token_states = self._name("token_states") in record.files
        for kind, setting in (("img_emb", "image"), ("text_emb", "text")):
            if self._name(kind) not in record.files:
                raise InputError(f"{store.url} holds no {kind}: it was embedded with embed.{setting}=false")
        self._arrays: dict[str, np.ndarray] = {}
        for name, entry in record.files.items():
            size = store.size(name)
            if size != entry.bytes:
                found = "is missing" if size is None else f"has {size} bytes instead of {entry.bytes}"
                raise InputError(f"{store.url}/{name} {found}; run `priorkit embed` again to restore it")

    def _name(self, kind: str) -> str:
        folder = "token_states" if kind == "offsets" else kind
        extension = "parquet" if kind == "metadata" else "npy"
        return f"{folder}/{kind}_{self._record.name}.{extension}"

    def array(self, kind: str) -> np.ndarray:
        """A stored array, its length checked against the record."""
        if kind not in self._arrays:
            name = self._name(kind)
            try:
                if self._store.is_local:
                    array = np.load(self._store.path(name), mmap_mode="r", allow_pickle=False)
                else:
                    with self._store.open(name) as file:
                        array = np.load(io.BytesIO(file.read()), allow_pickle=False)
            except (EOFError, ValueError) as error:
                raise InputError(f"{self._store.url}/{name} is not an array of numbers ({error})") from error
            expected = {"offsets": self.rows + 1, "token_states": len(array)}.get(kind, self.rows)
            if len(array) != expected:
                raise InputError(f"{self._store.url}/{name} has {len(array)} rows, its record says {expected}")
            self._arrays[kind] = array
        return self._arrays[kind]

    def fill_token_states(self, states: np.ndarray, at: np.ndarray, local: np.ndarray) -> None:
        """Copy the first token states of rows `local` into `states[at]`."""
        if not self.has_token_states:
            raise InputError(f"{self._store.url} stores no token states; embed with token_states: true")
        offsets, flat = self.array("offsets"), self.array("token_states")
        for target, row in zip(at, local, strict=True):
            start = int(offsets[row])
            length = min(int(offsets[row + 1]) - start, states.shape[1])
            states[target, :length] = flat[start : start + length]

    def metadata(self, columns: list[str]) -> pa.Table:
        with self._store.open(self._name("metadata")) as file:
            parquet = pq.ParquetFile(file)
            if parquet.metadata.num_rows != self.rows:
                raise InputError(
                    f"{self._store.url}/{self._name('metadata')} has {parquet.metadata.num_rows} rows, "
                    f"its record says {self.rows}"
                )
            missing = [name for name in columns if name not in parquet.schema_arrow.names]
            if missing:
                raise InputError(f"{self._store.url}/{self._name('metadata')} has no column {missing[0]!r}")
            return parquet.read(columns=columns)

    def content_groups(self) -> list[bytes]:
        """What names the content of each row: image hash, else URL, else the bytes of the embedding."""
        with self._store.open(self._name("metadata")) as file:
            available = pq.ParquetFile(file).schema_arrow.names
        columns = [name for name in _GROUP_COLUMNS if name in available]
        named = self.metadata(columns).to_pylist() if columns else [{}] * self.rows
        embeds = self.array("img_emb")
        groups = []
        for row, values in enumerate(named):
            name = next((values[column] for column in columns if values[column]), None)
            groups.append(str(name).encode() if name is not None else embeds[row].tobytes())
        return groups


def read_embeddings(url: str = "data/embeddings", settings: ReadSettings | None = None) -> EmbeddingDataset:
    """Open a folder of embedding shards; see `EmbeddingDataset`."""
    return EmbeddingDataset(url, settings)
