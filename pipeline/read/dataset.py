"""Dataset of embedding shards: random access to rows, and the split of each row.

Rows are numbered from 0 across all shards, in the order of the shard names. The split plan assigns each row to
training, validation or test; see `split_plan`. The module `batches` reads a split in shuffled epochs.
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

from ..contract.empty_inputs import EmptyInputs, read_empty_inputs
from ..contract.file_marks import FileMark, Tell, content_fingerprint, identify, read_marks, to_json
from ..contract.manifest import fingerprint
from ..contract.storage import Store
from ..contract.vectors.embeddings import NORM_COLUMNS
from ..contract.vectors.rules import ROUNDED, WORDS, common_dtype, judge_norms, normalise_rows, row_fault, row_norms
from ..errors import InputError
from .cached_array import FOLDER, cached_array
from .folder import open_folder
from .groups import plan_group_splits
from .metadata import has_unit_norms, join_tables, read_norms, shard_without_column
from .settings import ReadSettings
from .shards import EmbeddingShard
from .shuffle import hash_key
from .split_plan import SPLITS, Split, identify_groups, identify_rows, plan_splits
from .visits import Blocks, Visits, find_shared_groups

__all__ = ["SPLITS", "EmbeddingBatch", "EmbeddingDataset", "Split", "read_embeddings"]

EmbeddingKind = Literal["img_emb", "text_emb"]
"""Kind of embeddings: of images or of texts."""
_MARKS_NAME = f"{FOLDER}/files.json"
"""Path, within an embeddings folder, of the file that caches the size, modification time and hash of each data file.

The cache is used only for a folder without a manifest.
"""
_NAMED_ROWS = 5
"""Maximum number of rows listed in a message."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
"""Odd multiplier for hashing. It spreads a change in any bit to the higher bits (Knuth, volume 3, section 6.4)."""


@dataclass(frozen=True)
class EmbeddingBatch:
    """Rows read from a dataset.

    In the array shapes, B is the number of rows, D is the embedding size, T is the maximum number of token states (the
    text encoder's output for each token) per row, and W is the width of a token state.
    """

    rows: np.ndarray
    """Row numbers, `[B]` int64."""
    image_embed: np.ndarray
    """`[B, D]` float32, L2-normalised unless `take` was called with `raw_image`."""
    text_embed: np.ndarray
    """`[B, S]` float32, L2-normalised unless `take` was called with `raw_text`. Its size S equals D unless the two come
    from different models."""
    token_states: np.ndarray | None
    """`[B, T, W]` float32, padded with zeros; None if not requested."""


class EmbeddingDataset:
    """Embedding shards of one folder, checked against the manifest or, without a manifest, against each other.

    Args:
        url: folder written by `embed`, `adopt` or clip-retrieval, or published by LAION.
        settings: read settings, such as split fractions; None for the defaults.
        known_files: size, modification time and hash of files, keyed by file name, as recorded elsewhere (such as in
            the folder of a trained prior). Files whose size and time still match are not hashed again. Used only for
            a folder without a manifest.
        hash_files: False to skip hashing the files of a folder without a manifest; `content_fingerprint` is then
            empty.
        tell: callback that receives progress messages while files are hashed; None for no messages.

    Raises:
        InputError: the folder contains no embeddings, a file is missing or truncated, or the files of a shard differ
            in their number of rows.
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
        """Number of embeddings that were normalised when read, because rounding had changed their norms.

        Image embeddings are counted under the key `image`, and text embeddings under `text`. An embedding that is
        read twice counts twice.
        """
        self._norms: dict[str, np.ndarray] = {}
        self._known_files, self._hash_files, self._tell = known_files or {}, hash_files, tell
        self._folder = open_folder(self.store)
        self.shards = self._folder.shards
        self.embed_dim = self._folder.embed_dim
        """Size of the image embeddings, which are the target of a prior."""
        self.text_dim = self._folder.text_dim
        """Size of the text embeddings, which are the source of a prior. It differs from `embed_dim` only in folders of
        `adopt`, if the two come from different models."""
        self.token_width = self._folder.token_width
        """Width of the stored token states; None if none are stored."""
        self.shard_starts = np.cumsum([0] + [shard.rows for shard in self.shards])
        """`[shards + 1]`: row number of each shard's first row, followed by the total number of rows."""
        self.count = int(self.shard_starts[-1])
        """Number of rows in all splits together."""
        self.has_text_embed = all(shard.has("text_emb") for shard in self.shards)
        if self.count == 0:
            raise InputError(f"{url} holds no embeddings; run `priorkit embed` again")

    @functools.cached_property
    def content_fingerprint(self) -> str:
        """Fingerprint of all data, computed from the hashes of the files.

        The hashes are those in the manifest or, if there is no manifest, those in `file_marks`. Empty if the folder has
        no manifest and `hash_files` is False.
        """
        if self._folder.foreign_files and self._hash_files:
            return content_fingerprint(self.file_marks)
        return self._folder.recorded_fingerprint

    @functools.cached_property
    def file_marks(self) -> dict[str, FileMark]:
        """Size, modification time and hash of each file of a folder without a manifest, keyed by file name.

        The values are cached in the folder. Empty if the folder has a manifest, or if `hash_files` is False.

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
        """Properties that identify the CLIP model that computed the embeddings, such as a hash of its weights.

        They are recorded in the manifest.

        Raises:
            InputError: the folder has no manifest.
        """
        return self._about("clip")

    @property
    def clip_if_known(self) -> dict[str, Any]:
        """Properties that identify the CLIP model, as in `clip`; an empty dictionary if the folder has no manifest."""
        return dict(self._folder.about.get("clip", {}))

    @property
    def spaces(self) -> dict[str, Any] | None:
        """Names and sizes of the source and the target, by role, if `adopt` recorded that no CLIP made the embeddings.

        None for the embeddings of a CLIP, and if the folder has no manifest. The text and image embeddings are then in
        one space, in which they can be compared.
        """
        about = self._folder.about
        if "clip" in about or not isinstance(about.get("spaces"), dict):
            return None
        spaces: dict[str, Any] = about["spaces"]
        return {
            role: {"name": each.get("name"), "size": each.get("size"), "model": about.get("not_clip")}
            for role in ("source", "target")
            if isinstance(each := spaces.get(role), dict)
        }

    def dim(self, kind: str) -> int:
        """Return the size of the embeddings of one kind, `img_emb` or `text_emb`."""
        return self.text_dim if kind == "text_emb" else self.embed_dim

    @property
    def clip_settings(self) -> dict[str, Any]:
        """Settings for loading the CLIP model that computed the embeddings, as recorded in the manifest.

        Raises:
            InputError: the folder has no manifest.
        """
        return self._about("clip_settings")

    def _about(self, name: str) -> dict[str, Any]:
        """Return what the manifest records about the CLIP model that computed the embeddings.

        Args:
            name: entry of the manifest's `about` section: `clip` or `clip_settings`.

        Raises:
            InputError: the folder has no manifest.
        """
        if name not in self._folder.about:
            if self.spaces is not None:
                raise InputError(f"{self.store.url} was not made by a CLIP: it was adopted with --not-clip")
            raise InputError(
                f"{self.store.url} does not name its CLIP: it has no manifest. Name it in the recipe (embed.clip), or "
                "make the folder with `priorkit embed`"
            )
        value: dict[str, Any] = self._folder.about[name]
        return value

    @property
    def notes(self) -> list[str]:
        """Messages about unusual but accepted properties of the folder, such as missing shard numbers.

        Embeddings that had to be normalised are mentioned only after they have been read.
        """
        counts = sorted(self.rounded.items())
        rounded = [f"{number:,} {kind} embeddings that were read have {ROUNDED}" for kind, number in counts]
        return [f"{self.store.url}: {note}" for note in [*self._folder.notes, *rounded]]

    def embed_dtype(self, kind: str) -> np.dtype[Any]:
        """Return the dtype of the embeddings of one kind (`img_emb` or `text_emb`) in training batches.

        It is float16 if all files of this kind are float16, and float32 otherwise.
        """
        return common_dtype({shard.embed_dtype(kind) for shard in self.shards})

    @functools.cached_property
    def split_plan(self) -> np.ndarray:
        """Split of each row, as an index into `SPLITS`: `[count]` uint8. Cached in the folder."""
        plan = plan_group_splits if self.settings.group_columns else plan_splits
        make = functools.partial(plan, self.shards, self.settings)
        name = f"selection_{self._mark(split=True)}"  # part of the disk format
        return cached_array(self.store, name, self.count, np.dtype(np.uint8), (), make)

    @functools.cached_property
    def row_ids(self) -> np.ndarray:
        """Hash of each row's image identifier and text embedding: `[count]` uint64.

        If a shard has no text embeddings, its hashes are computed from the image identifiers alone. A row's hash stays
        the same if its row number changes. The hashes are cached in the folder.
        """
        make = functools.partial(identify_rows, self.shards)
        return cached_array(self.store, f"row_ids_{self._mark()}", self.count, np.dtype(np.uint64), (), make)

    @functools.cached_property
    def group_ids(self) -> np.ndarray:
        """One hash per row, which identifies the row's image: `[count]` uint64. Cached in the folder.

        Rows with the same image (for example, one row for each of its captions) form a content group. All rows of a
        group have the same hash.
        """
        make = functools.partial(identify_groups, self.shards)
        return cached_array(self.store, f"group_ids_{self._mark()}", self.count, np.dtype(np.uint64), (), make)

    @functools.cached_property
    def empty_inputs(self) -> EmptyInputs | None:
        """Outputs of the CLIP model for a zero image and the empty text; None if the folder does not store them.

        They are stored by `embed` with `embed.engine=native`. Run it again to add them to a folder that lacks them.

        Raises:
            InputError: the file that stores them is missing or damaged.
        """
        return read_empty_inputs(self.store, self._folder.about)

    def has_norms(self, kind: EmbeddingKind) -> bool:
        """Return True if the folder stores the norms that the embeddings of one kind had before normalisation."""
        is_cached = self.store.size(f"{FOLDER}/{self._norms_name(kind)}.npy") is not None
        return is_cached or not self._norms_fault(kind)

    def norms(self, kind: EmbeddingKind) -> np.ndarray:
        """Return the norm that each embedding had before normalisation: `[count]` float32. Cached in the folder.

        The product of an embedding and its norm is the raw output of the CLIP model, apart from rounding to float16.

        Args:
            kind: `img_emb` or `text_emb`.

        Raises:
            InputError: the folder does not store the norms, or a norm is not a positive finite number.
        """
        if kind not in self._norms:
            make = functools.partial(self._read_norms, kind)
            name = self._norms_name(kind)
            self._norms[kind] = cached_array(self.store, name, self.count, np.dtype(np.float32), (), make)
        return self._norms[kind]

    def _norms_name(self, kind: EmbeddingKind) -> str:
        """Return the name of the cached array of norms."""
        return f"{NORM_COLUMNS[kind]}_{self._mark()}"  # part of the disk format

    def _read_norms(self, kind: EmbeddingKind) -> Iterator[np.ndarray]:
        """Yield the norms of one kind of embeddings, block by block, after checking that they are known."""
        if fault := self._norms_fault(kind):
            raise InputError(
                f"{self.store.url} stores no norms of its {WORDS[kind]} embeddings before normalisation: {fault}.\n"
                "Make the folder with `priorkit embed` and embed.engine=native, or adopt embeddings that are not "
                "normalised with `priorkit adopt --normalise`"
            )
        yield from read_norms(self.shards, NORM_COLUMNS[kind])

    def _norms_fault(self, kind: EmbeddingKind) -> str:
        """Return the reason why the norms of one kind of embeddings are unknown; empty if they are known."""
        column, about = NORM_COLUMNS[kind], self._folder.about
        if kind == "text_emb" and not self.has_text_embed:
            return "it has no text embeddings"
        if (shard := shard_without_column(self.shards, column)) is not None:
            if not shard.has("metadata"):
                return "it has no metadata"
            return f"{shard.files['metadata']} has no column {column!r}"
        is_adopted = "clip_settings" not in about or "spaces" in about
        if is_adopted and self.spaces is None and has_unit_norms(self.shards, column):
            return f"they had norm 1 when they were adopted (column {column!r})"
        return ""

    @functools.cached_property
    def blocks(self) -> Blocks:
        """Division of the dataset into blocks of consecutive rows, the units in which training reads rows."""
        return Blocks.from_shards(self.shard_starts, self.settings.block_rows)

    def visits(self, split: Split) -> Visits:
        """Return an object that selects the rows of a split to read in each epoch.

        By default, all rows are read. If `settings.captions` is `one`, one random row of each image is read.
        """
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
        """Return a fingerprint of the data and of the given values, for the file name of a cached array.

        Args:
            values: values that the array depends on, in addition to the data.
            split: True if the array also depends on the split settings.
        """
        parts = [self.content_fingerprint, *([self.settings.splits()] if split else []), *values]
        return fingerprint(parts if len(parts) > 1 else parts[0])[:16]

    def rows(self, split: Split) -> np.ndarray:
        """Return the row numbers of a split in ascending order: `[n]` int64."""
        return np.flatnonzero(self.split_plan == SPLITS.index(split))

    def epoch_order(self, split: Split, seed: int, epoch: int) -> np.ndarray:
        """Return the row numbers of a split in a random order.

        The order depends only on the assignment of rows to splits, the seed and the epoch.
        """
        return np.random.default_rng([seed, epoch]).permutation(self.rows(split))

    def content_order(self, split: Split, seed: int) -> np.ndarray:
        """Return the row numbers of a split in a random order.

        The order depends on the seed and the content of the rows (images and text embeddings), but not on how the rows
        are divided into shards.
        """
        rows = self.rows(split)
        mixed = (self.row_ids[rows] ^ hash_key("order", seed)) * _ODD
        return rows[np.argsort(mixed ^ (mixed >> np.uint64(32)), kind="stable")]

    def take(
        self, rows: np.ndarray, max_text_len: int = 0, raw_text: bool = False, raw_image: bool = False
    ) -> EmbeddingBatch:
        """Read the image and text embeddings of the given rows and, if requested, their token states.

        Args:
            rows: `[B]` row numbers, in any order. The result has the same order.
            max_text_len: maximum number of token states per row; 0 to read none. If a row has more, only the first ones
                are read.
            raw_text: True to multiply each text embedding by the norm that it had before normalisation.
            raw_image: True to multiply each image embedding by the norm that it had before normalisation.

        Raises:
            InputError: the folder lacks text embeddings, the requested token states or the norms, or an embedding is
                not a unit vector.
        """
        self.require(text_embed=True, token_states=max_text_len > 0)
        image, text = self.embeds("img_emb", rows), self.embeds("text_emb", rows)
        if raw_text:
            text *= self.norms("text_emb")[rows][:, None]
        if raw_image:
            image *= self.norms("img_emb")[rows][:, None]
        states = np.zeros((len(rows), max_text_len, self.token_width or 0), np.float32) if max_text_len else None
        if states is not None:
            for shard, positions, local_rows in self._rows_by_shard(rows):
                shard.fill_token_states(states, positions, local_rows)
        return EmbeddingBatch(rows, image, text, states)

    def embeds(self, kind: EmbeddingKind, rows: np.ndarray) -> np.ndarray:
        """Read the image or text embeddings of the given rows, in the given order.

        Args:
            kind: `img_emb` or `text_emb`.
            rows: `[B]` row numbers.

        Returns:
            `[B, D]` float32 embeddings of norm 1, where D is the embedding size of this kind.

        Raises:
            InputError: an embedding is not a unit vector; see `contract.vectors.rules`.
        """
        embeds = np.empty((len(rows), self.dim(kind)), np.float32)
        with np.errstate(over="ignore"):  # values too large for float32 become infinite and are rejected below
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
        """Read metadata columns, such as `key` and `caption`, of the given rows.

        Args:
            rows: `[B]` row numbers, in any order.
            columns: names of the columns to read.

        Returns:
            Table with B rows, in the order of `rows`.

        Raises:
            InputError: a column is missing or appears twice, the metadata is missing or damaged, or the types of a
                column in different shards are incompatible.
        """
        tables, parts = [], []
        for shard, positions, local_rows in self._rows_by_shard(rows):
            tables.append(shard.metadata(list(columns)).take(pa.array(local_rows)))
            parts.append(positions)
        if not tables:
            return pa.table({name: [] for name in columns})
        order = np.argsort(np.concatenate(parts))
        return join_tables(tables, self.store.url).take(pa.array(order))

    def _rows_by_shard(self, rows: np.ndarray) -> Iterator[tuple[EmbeddingShard, np.ndarray, np.ndarray]]:
        """Group row numbers by shard.

        Yields:
            For each shard that contains any of the rows: the shard, the positions of these rows in `rows`, and their
            indices in the shard.
        """
        shard_of_row = np.searchsorted(self.shard_starts, rows, side="right") - 1
        for index in np.unique(shard_of_row):
            positions = np.flatnonzero(shard_of_row == index)
            yield self.shards[index], positions, rows[positions] - self.shard_starts[index]

    def count_rounded(self, kind: str, rounded: np.ndarray) -> None:
        """Increase `self.rounded` by the number of embeddings that were normalised when read.

        Args:
            kind: `img_emb` or `text_emb`.
            rounded: `[n]` bool, True for each row that was normalised.
        """
        self.rounded[WORDS[kind]] += int(rounded.sum())

    def describe_rows(self, rows: Sequence[int] | np.ndarray) -> str:
        """Return a description of rows for an error message, such as `rows 3, 7, keys 00003, 00007`.

        The description lists at most five rows, and says how many others there are. Keys are omitted if the folder
        stores none.
        """
        listed = np.asarray(rows[:_NAMED_ROWS], np.int64)
        keys = ""
        with contextlib.suppress(InputError):  # folders not written by priorkit may have no keys
            values = self.metadata(listed, ["key"]).column("key").to_pylist()
            keys = f", keys {', '.join('none' if key is None else key for key in values)}"
        more = f" and {len(rows) - len(listed)} more" if len(rows) > len(listed) else ""
        return f"rows {', '.join(map(str, listed))}{more}{keys}"

    def require(self, *, text_embed: bool = False, token_states: bool = False) -> None:
        """Check that the folder stores the requested arrays.

        Args:
            text_embed: True to require text embeddings.
            token_states: True to require token states.

        Raises:
            InputError: the folder lacks a requested array.
        """
        if text_embed and not self.has_text_embed:
            if self.spaces is not None:  # no CLIP could compute text embeddings from captions
                raise InputError(
                    f"{self.store.url} stores no source embeddings; adopt again with --source, or name another folder"
                )
            raise InputError(
                f"{self.store.url} stores no text embeddings; embed with embed.text=true, or train with "
                "train.text_condition=online, which computes them from captions"
            )
        if token_states and self.token_width is None:
            raise InputError(f"{self.store.url} stores no token states; embed with token_states: true")


def read_embeddings(url: str = "data/embeddings", settings: ReadSettings | None = None) -> EmbeddingDataset:
    """Open a folder of embedding shards, and check that no file is missing or truncated.

    Args:
        url: folder written by `embed`, `adopt` or clip-retrieval, or published by LAION.
        settings: read settings, such as split fractions; None for the defaults.

    Returns:
        Dataset with methods for reading embeddings, metadata and splits.

    Raises:
        InputError: the folder contains no embeddings, a file is missing or truncated, or the files of a shard differ in
            their number of rows.
    """
    return EmbeddingDataset(url, settings)
