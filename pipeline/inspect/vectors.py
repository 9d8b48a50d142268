"""Inspects the arrays of embedding shards, block by block: is every row a unit vector, do pairs belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..contract.storage import Store
from ..contract.vectors.arrays import read_array_start, read_header
from ..contract.vectors.rules import ROUNDED, WORDS, judge_norms, row_fault, row_norms
from ..errors import InputError
from .findings import Examples, Inspection, Tell
from .neighbours import NEAR_COSINE, NeighbourBank
from .statistics import Distribution, Repeats, cosines, hashes_of, unit_norms

_BLOCK_ROWS = 4096
_FEWEST_PAIRS = 30
"""From how many pairs of a shard on its mean cosines say something."""


@dataclass(frozen=True)
class ShardParts:
    """One shard as it is to be inspected."""

    name: str
    first_row: int
    """Number of its first row in the folder."""
    rows: int
    counted_by: str
    """What says so, for messages."""
    files: Mapping[str, str]
    """Those that are there, by kind."""
    tell: Mapping[str, Tell]
    """Where to report what is wrong in a file, by kind."""


@dataclass(frozen=True)
class _Alignment:
    """How much more alike the pairs of a shard are than its images and other texts of it."""

    name: str
    rows: int
    gap: float
    """Mean difference of the two cosines."""
    error: float
    """Its standard error."""


def array_blocks(store: Store, name: str, block_rows: int = _BLOCK_ROWS) -> Iterator[np.ndarray]:
    """The rows of an array `[N, ...]` in blocks, read as a stream; InputError if it is none or ends early."""
    with store.open(name) as file:
        shape, fortran_order, dtype = read_array_start(store, name, file)
        if fortran_order:
            raise InputError(f"{store.url}/{name} is in Fortran's order, which cannot be read by rows; save it in C's")
        row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        for start in range(0, shape[0], block_rows):
            rows = min(block_rows, shape[0] - start)
            data = file.read(rows * row_bytes)
            if len(data) != rows * row_bytes:
                raise InputError(f"{store.url}/{name} ends early, in row {start + len(data) // max(1, row_bytes)}")
            yield np.frombuffer(data, dtype).reshape(rows, *shape[1:])


class VectorInspector:
    """Inspects the image and text embeddings of one shard after the other.

    Args:
        total: rows of the folder.
        embed_dim: that every array must have; None takes that of the first.
        dim_of: what says so, for messages.
    """

    def __init__(self, store: Store, found: Inspection, total: int, embed_dim: int | None, dim_of: str) -> None:
        self._store, self._found = store, found
        self._embed_dim, self._dim_of = embed_dim, dim_of
        self._bank = NeighbourBank(total)
        self._images = Repeats()
        self._sound_images = 0
        self._norms = {kind: unit_norms() for kind in WORDS}
        self._rounded = {kind: Examples() for kind in WORDS}
        self._pairs, self._strangers = cosines(), cosines()
        self._alignments: list[_Alignment] = []

    def inspect(self, shard: ShardParts) -> None:
        """Inspect one shard. Arrays that cannot be read, or are of another length, are told of."""
        kinds = [kind for kind in WORDS if kind in shard.files and self._has_fitting_header(shard, kind)]
        differences = cosines()
        streams = {kind: array_blocks(self._store, shard.files[kind]) for kind in kinds}
        start = 0
        while streams and start < shard.rows:
            units: dict[str, np.ndarray] = {}
            for kind in list(streams):
                try:
                    stored = next(streams[kind])
                except InputError as error:
                    shard.tell[kind](f"shard {shard.name}: {error}")
                    del streams[kind]
                    continue
                units[kind] = self._inspect_block(shard, kind, start, stored)
            if len(units) == len(WORDS):
                self._compare(units["img_emb"], units["text_emb"], differences)
            start += _BLOCK_ROWS
        if differences.rows >= _FEWEST_PAIRS:
            self._alignments.append(_Alignment(shard.name, differences.rows, *differences.mean_and_error()))

    def _has_fitting_header(self, shard: ShardParts, kind: str) -> bool:
        name, tell = shard.files[kind], shard.tell[kind]
        try:
            header = read_header(self._store, name)
        except InputError as error:
            tell(f"shard {shard.name}: {error}")
            return False
        if self._embed_dim is None:
            self._embed_dim, self._dim_of = header.embed_dim, name
        if header.embed_dim != self._embed_dim:
            tell(
                f"shard {shard.name}: {name} holds embeddings of {header.embed_dim}, {self._dim_of} "
                f"says {self._embed_dim}"
            )
        if header.rows != shard.rows:
            tell(f"shard {shard.name}: {name} has {header.rows} rows, {shard.counted_by} says {shard.rows}")
        return header.embed_dim == self._embed_dim and header.rows == shard.rows

    def _inspect_block(self, shard: ShardParts, kind: str, start: int, stored: np.ndarray) -> np.ndarray:
        """Tell of rows that are no unit vectors, and return unit vectors `[n, D]` float32, NaN for those."""
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is named
            embeds = stored.astype(np.float32)
        norms = row_norms(embeds)
        self._norms[kind].add(norms)
        verdict = judge_norms(norms)
        sound = ~verdict.bad
        for at in np.flatnonzero(verdict.bad):
            shard.tell[kind](
                f"shard {shard.name}, row {start + at}: {WORDS[kind]} embedding {row_fault(embeds[at], norms[at])}"
            )
        rounded = np.flatnonzero(verdict.rounded)
        places = [f"shard {shard.name}, row {start + at}" for at in rounded[:3]]
        self._rounded[kind].add(len(rounded), lambda: places)
        if kind == "img_emb":
            kept = np.flatnonzero(sound)
            hashes = hashes_of((row.tobytes() for row in stored[kept]), len(kept))
            rows = shard.first_row + start + kept
            self._images.add(hashes, rows)
            self._bank.add(rows, stored[kept], hashes)
            self._sound_images += len(kept)
        embeds[~sound] = np.nan
        return embeds / norms[:, None] if sound.all() else embeds / np.where(sound, norms, 1)[:, None]

    def _compare(self, image: np.ndarray, text: np.ndarray, differences: Distribution) -> None:
        """Cosines of pairs, and of images and texts that are half a block apart: neighbours may be of one image."""
        pairs = np.einsum("nd,nd->n", image, text)
        self._pairs.add(pairs)
        if len(pairs) > 1:
            strangers = np.einsum("nd,nd->n", image, np.roll(text, len(pairs) // 2, axis=0))
            self._strangers.add(strangers)
            differences.add(pairs - strangers)

    def finish(self, place: Callable[[int], str]) -> None:
        """Report what shows in the whole folder only; `place` names the shard and row of a row's number."""
        found = self._found
        self._report_alignment()
        for kind, examples_of in self._rounded.items():
            examples_of.tell(found.note, f"{WORDS[kind]} embeddings have {ROUNDED}")
        repeated, examples = self._images.find()
        if self._sound_images:
            found.looked_at["image embeddings, for exact duplicates"] = self._sound_images // self._images.one_in
        if repeated:
            pairs = "; ".join(f"{place(row)} of {place(earlier)}" for row, earlier in examples)
            of = "" if self._images.one_in == 1 else f" (among 1 in {self._images.one_in} contents)"
            found.note(f"{repeated:,} image embeddings{of} are exact duplicates of earlier ones, such as {pairs}")
        bank_rows = self._bank.rows
        near = self._bank.compare()
        if bank_rows:
            found.looked_at["image embeddings, for near duplicates: bank of rows"] = bank_rows
            found.looked_at["image embeddings, for near duplicates: contents compared with all of it"] = near.compared
        if near.near_pairs:
            pairs = "; ".join(f"{place(row)} and {place(other)}" for row, other in near.examples)
            found.note(
                f"{near.near_pairs:,} pairs of near duplicate images (cosine of {NEAR_COSINE} or more) "
                f"in a bank of {bank_rows:,} rows, such as {pairs}"
            )
        nearest = cosines()
        nearest.add(near.nearest)
        named = {
            "cosine of image and text": self._pairs,
            "cosine of unrelated image and text": self._strangers,
            "cosine to the nearest image in the bank": nearest,
            **{f"norm of {WORDS[kind]} embeddings": norms for kind, norms in self._norms.items()},
        }
        found.distributions.update({name: values.to_json() for name, values in named.items() if values.rows})

    def _report_alignment(self) -> None:
        """Name the shards whose pairs are strangers to each other, where those of other shards clearly are not."""
        clear = max((shard.gap - 4 * shard.error for shard in self._alignments), default=0.0)
        for shard in self._alignments:
            unrelated = shard.gap <= 4 * shard.error and shard.error > 0
            if unrelated and clear > 16 * shard.error:  # what another shard has could not be missed by chance
                self._found.problem(
                    f"shard {shard.name}, rows 0 to {shard.rows - 1}: images and texts do not belong together "
                    f"(pairs are {shard.gap:+.3f} more alike than strangers, in another shard {clear:+.3f} or more): "
                    "the rows of one file are shifted, or it is another shard's"
                )
        if self._alignments and clear <= 0:
            self._found.note(
                "images and texts of pairs are no more alike than strangers: their rows do not belong together, "
                "or the CLIP is not trained"
            )
