"""Inspection of embedding arrays: vectors with a norm other than 1, images paired with wrong texts, and duplicates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..contract.storage import Store
from ..contract.vectors.arrays import read_array_start, read_header
from ..contract.vectors.rules import ROUNDED, WORDS, judge_norms, row_fault, row_norms
from ..errors import InputError
from .findings import Examples, Inspection, Report
from .neighbours import NEAR_COSINE, NeighbourBank
from .statistics import Distribution, Repeats, content_hashes, cosines, unit_norms

_BLOCK_ROWS = 4096
"""Number of rows of an array that are in memory at a time."""
_FEWEST_PAIRS = 30
"""Minimum number of image-text pairs in a shard. Shards with fewer pairs are not checked for mismatches."""


@dataclass(frozen=True)
class ShardParts:
    """Files of a shard, and the callbacks that report faults in them."""

    name: str
    first_row: int
    """Number of the shard's first row, counted across all shards of the folder."""
    rows: int
    counted_by: str
    """Source of the number of rows, named in messages: a file name, or `its record` for the shard's manifest entry."""
    files: Mapping[str, str]
    """Names of the shard's files to inspect, keyed by kind, such as `img_emb`."""
    report: Mapping[str, Report]
    """Callbacks that report faults, keyed by the kind of the faulty file."""


@dataclass(frozen=True)
class _Alignment:
    """Comparison of a shard's images with their own texts and with unrelated texts, by mean cosine similarity."""

    name: str
    rows: int
    gap: float
    """Mean cosine similarity of images to their own texts, minus that of images to unrelated texts."""
    error: float
    """Standard error of `gap`."""


def array_blocks(store: Store, name: str, block_rows: int = _BLOCK_ROWS) -> Iterator[np.ndarray]:
    """Yield blocks of consecutive rows of the array in a `.npy` file, reading the file as a stream.

    Raises:
        InputError: the array is damaged, truncated or in Fortran order.
    """
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
    """Inspector for the image and text embeddings of a folder's shards.

    Call `inspect` for each shard in row order, and then `finish` to report the findings about the whole folder.

    Args:
        store: folder of the shards.
        inspection: findings to add to.
        total: number of rows in the folder.
        sizes: embedding size that every array of a kind must have, by kind; empty to use the size of the first array.
        dim_source: name of the file that states the sizes, for use in messages.
        comparable: True if image and text embeddings are in one space, so that cosines between them mean something.
    """

    def __init__(
        self,
        store: Store,
        inspection: Inspection,
        total: int,
        sizes: Mapping[str, int | None],
        dim_source: str,
        *,
        comparable: bool = True,
    ) -> None:
        self._store, self._inspection = store, inspection
        self._sizes, self._dim_source, self._comparable = dict(sizes), dim_source, comparable
        self._bank = NeighbourBank(total)
        self._images = Repeats()
        self._sound_images = 0
        self._norms = {kind: unit_norms() for kind in WORDS}
        self._rounded = {kind: Examples() for kind in WORDS}
        self._pairs, self._unrelated = cosines(), cosines()
        self._alignments: list[_Alignment] = []

    def inspect(self, shard: ShardParts) -> None:
        """Inspect the embeddings of a shard. Report and skip arrays that are unreadable or have an unexpected shape."""
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
                    shard.report[kind](f"shard {shard.name}: {error}")
                    del streams[kind]
                    continue
                units[kind] = self._inspect_block(shard, kind, start, stored)
            if len(units) == len(WORDS) and self._comparable:
                self._compare(units["img_emb"], units["text_emb"], differences)
            start += _BLOCK_ROWS
        if differences.rows >= _FEWEST_PAIRS:
            self._alignments.append(_Alignment(shard.name, differences.rows, *differences.mean_and_error()))

    def _has_fitting_header(self, shard: ShardParts, kind: str) -> bool:
        """Return True if an array has the expected embedding dimension and number of rows.

        Otherwise, report a fault and return False.
        """
        name, report = shard.files[kind], shard.report[kind]
        try:
            header = read_header(self._store, name)
        except InputError as error:
            report(f"shard {shard.name}: {error}")
            return False
        if not self._sizes:  # without a manifest, all arrays have the size of the first
            self._sizes, self._dim_source = dict.fromkeys(WORDS, header.embed_dim), name
        size = self._sizes.get(kind)
        if header.embed_dim != size:
            report(f"shard {shard.name}: {name} holds embeddings of {header.embed_dim}, {self._dim_source} says {size}")
        if header.rows != shard.rows:
            report(f"shard {shard.name}: {name} has {header.rows} rows, {shard.counted_by} says {shard.rows}")
        return header.embed_dim == size and header.rows == shard.rows

    def _inspect_block(self, shard: ShardParts, kind: str, start: int, stored: np.ndarray) -> np.ndarray:
        """Report rows that are not unit vectors, and return the normalised rows.

        For image embeddings, also store a hash of each unit vector and a random sample of the unit vectors. From these,
        `finish` finds exact and near duplicates.

        Returns:
            `[n, D]` float32 array of the block's n rows (embedding dimension D), normalised to norm 1. Rows that were
            not unit vectors are NaN.
        """
        with np.errstate(over="ignore"):  # values outside the float32 range become infinite, and are reported
            embeds = stored.astype(np.float32)
        norms = row_norms(embeds)
        self._norms[kind].add(norms)
        verdict = judge_norms(norms)
        sound = ~verdict.bad
        for at in np.flatnonzero(verdict.bad):
            shard.report[kind](
                f"shard {shard.name}, row {start + at}: {WORDS[kind]} embedding {row_fault(embeds[at], norms[at])}"
            )
        rounded = np.flatnonzero(verdict.rounded)
        places = [f"shard {shard.name}, row {start + at}" for at in rounded[:3]]
        self._rounded[kind].add(len(rounded), lambda: places)
        if kind == "img_emb":
            indices = np.flatnonzero(sound)
            hashes = content_hashes((row.tobytes() for row in stored[indices]), len(indices))
            rows = shard.first_row + start + indices
            self._images.add(hashes, rows)
            self._bank.add(rows, stored[indices], hashes)
            self._sound_images += len(indices)
        embeds[~sound] = np.nan
        return embeds / norms[:, None] if sound.all() else embeds / np.where(sound, norms, 1)[:, None]

    def _compare(self, image: np.ndarray, text: np.ndarray, differences: Distribution) -> None:
        """Compute the cosine similarities between images and texts in a block, and add them to the distributions.

        Each image is compared with its own text and with an unrelated text. The unrelated text is half a block away,
        because neighbouring rows may be captions of the same image. A block with only one row has no unrelated text.

        Args:
            image: `[n, D]` image embeddings of norm 1, for n rows and embedding dimension D. Invalid rows are NaN and
                are not counted.
            text: `[n, D]` text embeddings of the same rows, in the same format.
            differences: distribution of similarity differences to add to. The difference for an image is its similarity
                to its own text minus its similarity to the unrelated text.
        """
        pairs = np.einsum("nd,nd->n", image, text)
        self._pairs.add(pairs)
        if len(pairs) > 1:
            unrelated = np.einsum("nd,nd->n", image, np.roll(text, len(pairs) // 2, axis=0))
            self._unrelated.add(unrelated)
            differences.add(pairs - unrelated)

    def finish(self, place: Callable[[int], str]) -> None:
        """Report the findings about the folder as a whole, such as duplicates and value distributions.

        Args:
            place: function that converts a row number in the folder to a location, such as `shard 00002, row 17`.
        """
        inspection = self._inspection
        self._report_alignment()
        for kind, rounded in self._rounded.items():
            rounded.report(inspection.add_note, f"{WORDS[kind]} embeddings have {ROUNDED}")
        repeated, examples = self._images.find()
        if self._sound_images:
            inspection.looked_at["image embeddings, for exact duplicates"] = self._sound_images // self._images.one_in
        if repeated:
            pairs = "; ".join(f"{place(row)} of {place(earlier)}" for row, earlier in examples)
            sampled = "" if self._images.one_in == 1 else f" (among 1 in {self._images.one_in} contents)"
            inspection.add_note(
                f"{repeated:,} image embeddings{sampled} are exact duplicates of earlier ones, such as {pairs}"
            )
        bank_rows = self._bank.rows
        near = self._bank.compare()
        if bank_rows:
            inspection.looked_at["image embeddings, for near duplicates: bank of rows"] = bank_rows
            inspection.looked_at["image embeddings, for near duplicates: contents compared with all of it"] = (
                near.compared
            )
        if near.near_pairs:
            pairs = "; ".join(f"{place(row)} and {place(other)}" for row, other in near.examples)
            inspection.add_note(
                f"{near.near_pairs:,} pairs of near duplicate images (cosine of {NEAR_COSINE} or more) "
                f"in a bank of {bank_rows:,} rows, such as {pairs}"
            )
        nearest = cosines()
        nearest.add(near.nearest)
        distributions = {
            "cosine of image and text": self._pairs,
            "cosine of unrelated image and text": self._unrelated,
            "cosine to the nearest image in the bank": nearest,
            **{f"norm of {WORDS[kind]} embeddings": norms for kind, norms in self._norms.items()},
        }
        inspection.distributions.update(
            {name: values.to_json() for name, values in distributions.items() if values.rows}
        )

    def _report_alignment(self) -> None:
        """Report each shard whose images are no more similar to their own texts than to unrelated texts.

        Such a shard is reported as a problem only if, in another shard, the images are clearly more similar to their
        own texts. If this is not the case in any shard, the cause may lie in the whole folder or in the CLIP model, so
        a single note is added instead.
        """
        clear = max((shard.gap - 4 * shard.error for shard in self._alignments), default=0.0)
        for shard in self._alignments:
            unrelated = shard.gap <= 4 * shard.error and shard.error > 0
            # only if noise cannot hide, in this shard, a gap as large as the gap in the other shard
            if unrelated and clear > 16 * shard.error:
                self._inspection.add_problem(
                    f"shard {shard.name}, rows 0 to {shard.rows - 1}: images and texts do not belong together "
                    f"(pairs are {shard.gap:+.3f} more alike than strangers, in another shard {clear:+.3f} or more): "
                    "the rows of one file are shifted, or it is another shard's"
                )
        if self._alignments and clear <= 0:
            self._inspection.add_note(
                "images and texts of pairs are no more alike than strangers: their rows do not belong together, "
                "or the CLIP is not trained"
            )
