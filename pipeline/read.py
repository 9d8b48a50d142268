"""Embedding shards -> deterministic, shuffled, resumable batches.

A row has a number: shards in order of theirs, rows in order of the shard. A *selection* says for every row which split
it belongs to; it depends on the row's content group and the settings alone, so that copies of an image stay on one side
and rows stay put when data is added.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from .config import ReadSettings
from .embedding_shards import EmbeddingShard, find_shards
from .errors import InputError
from .shards import Manifest, fingerprint, read_manifest, require_manifest
from .storage import TEMPORARY_SUFFIX, Store

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_DATA_FOLDERS = ("img_emb", "text_emb", "metadata", "token_states")
_SPLIT_SALT = b"priorkit split\0"
_DOUBLE_VALUES = 1 << 53
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

    Raises:
        InputError: the folder holds no embeddings, or a file is missing, short or misaligned.
    """

    def __init__(self, url: str, settings: ReadSettings | None = None) -> None:
        self.store = Store(url)
        self.settings = settings or ReadSettings()
        self.token_width: int | None = None
        """Width of the stored token states; None where none are stored."""
        self._about: dict[str, Any] = {}
        found = find_shards(self.store) if read_manifest(self.store) is None else None
        if found is not None:
            self._shards, self.embed_dim = found.shards, found.embed_dim
            self.content_fingerprint = found.fingerprint
        else:
            self._open_recorded(require_manifest(self.store, "embed"))
        self._starts = np.cumsum([0] + [shard.rows for shard in self._shards])
        self.count = int(self._starts[-1])
        """Rows of all splits."""
        if self.count == 0:
            raise InputError(f"{url} holds no embeddings; run `priorkit embed` again")

    def _open_recorded(self, manifest: Manifest) -> None:
        if not {"clip", "clip_settings"} <= manifest.about.keys():
            raise InputError(f"{self.store.url} does not say which CLIP made it; run `priorkit embed` again")
        self._about = manifest.about
        self._shards = [EmbeddingShard.of_record(self.store, manifest.shards[name]) for name in sorted(manifest.shards)]
        self._refuse_unfinished(manifest)
        self.embed_dim = int(self.clip["embed_dim"])
        if self._shards and self._shards[0].has_token_states:
            self.token_width = self.clip["token_width"]
        self.content_fingerprint = manifest.content_fingerprint()

    @property
    def clip(self) -> dict[str, Any]:
        """Identity of the CLIP that made the embeddings; InputError if the folder has no manifest to name it."""
        return self._named("clip")

    @property
    def clip_if_known(self) -> dict[str, Any]:
        """Identity of the CLIP that made the embeddings; empty if the folder has no manifest to name it."""
        return dict(self._about.get("clip", {}))

    @property
    def clip_settings(self) -> dict[str, Any]:
        """Where that CLIP is to be had; InputError as for `clip`."""
        return self._named("clip_settings")

    def _named(self, what: str) -> dict[str, Any]:
        if what not in self._about:
            raise InputError(
                f"{self.store.url} does not name its CLIP: it has no manifest. It can be read, but to train, evaluate "
                "or sample with it the CLIP must be known; make it with `priorkit embed`"
            )
        named: dict[str, Any] = self._about[what]
        return named

    @functools.cached_property
    def selection(self) -> np.ndarray:
        """`[count]` uint8: the split of each row, as its position in `SPLITS`. Built once and kept in the folder."""
        mark = fingerprint([self.content_fingerprint, self.settings.splits()])[:16]
        return self._kept(f"selection_{mark}", self._select)

    @functools.cached_property
    def row_ids(self) -> np.ndarray:
        """`[count]` uint64: a hash of what each row holds, wherever it stands. Built once and kept in the folder."""
        return self._kept(f"row_ids_{fingerprint(self.content_fingerprint)[:16]}", _row_ids)

    @functools.cached_property
    def group_ids(self) -> np.ndarray:
        """`[count]` uint64: a hash of each row's content group, the same for all captions and copies of an image."""
        return self._kept(f"group_ids_{fingerprint(self.content_fingerprint)[:16]}", _group_ids)

    def _kept(self, name: str, make: Callable[[EmbeddingShard], np.ndarray]) -> np.ndarray:
        """What `make` gives of all shards, or gave another time."""
        file_name = f"selections/{name}.npy"
        with contextlib.suppress(OSError, EOFError, ValueError):
            with self.store.open(file_name) as file:
                found = np.load(io.BytesIO(file.read()), allow_pickle=False)
            if found.shape == (self.count,):
                return np.asarray(found)
        made = np.concatenate([make(shard) for shard in self._shards])
        with contextlib.suppress(OSError), self.store.create(file_name) as file:  # a read-only folder does without
            np.save(file, made)
        return made

    def rows(self, split: Split) -> np.ndarray:
        """Row numbers of a split, ascending: `[n]` int64."""
        return np.flatnonzero(self.selection == SPLITS.index(split))

    def epoch_order(self, split: Split, seed: int, epoch: int) -> np.ndarray:
        """Row numbers of a split in the order of one epoch: a pure function of selection, seed and epoch."""
        return np.random.default_rng([seed, epoch]).permutation(self.rows(split))

    def content_order(self, split: Split, seed: int) -> np.ndarray:
        """Row numbers of a split in an order that follows from what the rows hold and the seed, not from the shards."""
        rows = self.rows(split)
        mark = hashlib.sha256(f"priorkit order {seed}".encode()).digest()
        mixed = (self.row_ids[rows] ^ np.uint64(int.from_bytes(mark[:8], "big"))) * _ODD
        return rows[np.argsort(mixed ^ (mixed >> np.uint64(32)), kind="stable")]

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

    def _select(self, shard: EmbeddingShard) -> np.ndarray:
        validation, test = self.settings.validation_fraction, self.settings.test_fraction
        split = np.zeros(shard.rows, np.uint8)
        for row, group in enumerate(shard.content_groups()):
            digest = hashlib.sha256(_SPLIT_SALT + group).digest()
            place = (int.from_bytes(digest[:8], "big") >> 11) / _DOUBLE_VALUES  # uniform in [0, 1)
            # test first: its rows stay the same whatever the share of validation
            split[row] = 2 if place < test else 1 if place < test + validation else 0
        return split


def _row_ids(shard: EmbeddingShard) -> np.ndarray:
    texts = np.ascontiguousarray(shard.array("text_emb"))
    return _hashes(group + texts[row].tobytes() for row, group in enumerate(shard.content_groups()))


def _group_ids(shard: EmbeddingShard) -> np.ndarray:
    return _hashes(shard.content_groups())


def _hashes(names: Iterable[bytes]) -> np.ndarray:
    digests = b"".join(hashlib.sha256(name).digest()[:8] for name in names)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def read_embeddings(url: str = "data/embeddings", settings: ReadSettings | None = None) -> EmbeddingDataset:
    """Open a folder of embedding shards; see `EmbeddingDataset`."""
    return EmbeddingDataset(url, settings)
