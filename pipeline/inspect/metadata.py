"""Inspection of each shard's metadata, token states and failure table.

Token states are per-token text-encoder outputs. The failure table lists the rows that could not be embedded.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..contract.arrow.columns import as_text, column_of
from ..contract.arrow.parquet import open_parquet
from ..contract.arrow.types import column_fault, is_text
from ..contract.storage import Store
from ..contract.vectors.embeddings import CAPTION_COLUMN, KEY_COLUMNS
from ..errors import InputError
from ..explain import one_line
from .findings import Examples, Inspection, Report
from .statistics import Distribution, Repeats, content_hashes, lengths, magnitudes
from .vectors import ShardParts, array_blocks

_BATCH_ROWS = 16384
"""Number of Parquet rows that are in memory at a time."""
_NORMS = {"image_norm": "image", "text_norm": "text"}
"""Metadata columns that store embedding norms before normalisation, mapped to the kind of embedding."""


class MetadataInspector:
    """Inspector for the metadata files and token states (per-token text-encoder outputs) of a folder's shards.

    Call `inspect` and `inspect_token_states` for each shard, and then `finish`.

    Args:
        store: folder of the shards.
        inspection: findings to add to.
        recorded: True for a folder written by `embed`. In such a folder, a missing key or caption column is reported as
            a fault; in other folders, as a note.
    """

    def __init__(self, store: Store, inspection: Inspection, *, recorded: bool) -> None:
        self._store, self._inspection, self._recorded = store, inspection, recorded
        self._keys = Repeats()
        self._rows = 0
        self._without_key = False
        self._without_caption = False
        self._no_key, self._empty = Examples(), Examples()
        self._captions = lengths()
        self._tokens = lengths()
        self._norms = {name: magnitudes() for name in _NORMS}

    def inspect(self, shard: ShardParts) -> None:
        """Check a shard's metadata file, report faults, and collect statistics for `finish`."""
        name, report = shard.files["metadata"], shard.report["metadata"]
        try:
            with open_stored_parquet(self._store, name) as table:
                self._inspect_table(shard, table, report)
        except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
            report(f"shard {shard.name}: {self._store.url}/{name} is damaged ({one_line(error)}); embed it again")

    def _inspect_table(self, shard: ShardParts, table: pq.ParquetFile, report: Report) -> None:
        """Check the row count, columns, keys, captions and norms of an open metadata file, and report faults."""
        name, stored = shard.files["metadata"], table.schema_arrow.names
        if table.metadata.num_rows != shard.rows:
            report(
                f"shard {shard.name}: {name} has {table.metadata.num_rows} rows, {shard.counted_by} says {shard.rows}"
            )
        texts = self._text_columns(shard, table.schema_arrow, report)
        key = next((column for column in KEY_COLUMNS if column in texts), None)
        if key is None and self._recorded:
            report(f"shard {shard.name}: {name} has no column 'key'")
        self._without_key |= key is None
        norms = [column for column in _NORMS if column in stored and self._recorded]
        hashes: list[np.ndarray] = []
        start = 0
        columns = [*texts, *norms]
        for batch in table.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False) if columns else ():
            values = {column: as_text(column_of(batch, column)) for column in texts}
            if key is not None:
                hashes.append(self._inspect_keys(shard, start, values, key, report))
            if CAPTION_COLUMN in texts:
                self._inspect_captions(shard, start, values[CAPTION_COLUMN])
            for column in norms:
                self._inspect_norms(shard, start, column, batch.column(column), self._norms[column], report)
            start += batch.num_rows
        if hashes:
            self._report_repeats(shard, key or "", np.concatenate(hashes))
        self._rows += start

    def _text_columns(self, shard: ShardParts, schema: pa.Schema, report: Report) -> list[str]:
        """Return the names of the key and caption columns that can be read as text.

        Report duplicate columns and columns of other types. In a folder written by `embed`, also report a missing
        caption column.
        """
        name, inspection = shard.files["metadata"], self._inspection
        texts = []
        for column in (*KEY_COLUMNS, CAPTION_COLUMN):
            fault = column_fault(schema, column, text=True)
            if column not in schema.names:
                if column == CAPTION_COLUMN and self._recorded:
                    report(f"shard {shard.name}: {name}{fault}, though there are text embeddings of captions")
                self._without_caption |= column == CAPTION_COLUMN
                continue
            stored = schema.field(column).type if schema.names.count(column) == 1 else None
            if fault and column == CAPTION_COLUMN and not self._recorded:
                inspection.add_note(f"shard {shard.name}: {name}{fault}; training on captions needs text")
            elif fault:
                report(f"shard {shard.name}: {name}{fault}")
            elif stored is not None and not is_text(stored):
                if self._recorded:
                    report(f"shard {shard.name}: column {column!r} holds {stored}, not text")
                    continue
                inspection.add_note(
                    f"shard {shard.name}: column {column!r} of {name} holds {stored}; it is read as text"
                )
            if not fault:
                texts.append(column)
        return texts

    def _inspect_keys(
        self, shard: ShardParts, start: int, values: Mapping[str, pa.Array], key: str, report: Report
    ) -> np.ndarray:
        """Check the keys of a block of rows, and return a hash of each key.

        In a folder written by `embed`, report each row that has no key, and each row in which `key` and `image_path`
        differ. In other folders, only count the rows without a key.

        Args:
            shard: shard that contains the rows.
            start: row number of the block's first row within the shard.
            values: key and caption columns of the block, keyed by column name.
            key: name of the key column to use.
            report: callback for faults.

        Returns:
            `[n]` int64 hashes, one for each of the block's n rows. For a row without a key, the position of the row is
            hashed instead.
        """
        keys = values[key].to_pylist()
        missing = [row for row, value in enumerate(keys) if value is None] if values[key].null_count else []
        if self._recorded:
            for row in missing:
                report(f"shard {shard.name}, row {start + row}: no {key}")
        else:
            self._no_key.add(len(missing), lambda: [f"shard {shard.name}, row {start + row}" for row in missing[:3]])
        if self._recorded and set(KEY_COLUMNS) <= values.keys():
            # `embed` writes the key to both columns; a difference means that the rows of one column are shifted
            for row in _differing(values["key"], values["image_path"]):
                report(f"shard {shard.name}, row {start + row}: key {keys[row]!r} is not the row's image_path")
        # for a row without a key, hash its position, so that such rows do not count as duplicates of each other
        return content_hashes(
            (value if value is not None else (start, row) for row, value in enumerate(keys)), len(keys)
        )

    def _report_repeats(self, shard: ShardParts, key: str, hashes: np.ndarray) -> None:
        """Store the hashes of a shard's keys, so that `finish` can find duplicate keys.

        In a folder without a manifest, also report duplicate keys within the shard.
        """
        rows = np.arange(len(hashes))
        self._keys.add(hashes, shard.first_row + rows)
        if self._recorded:  # the input may contain duplicate keys; `finish` adds a note about them
            return
        within = Repeats()
        within.add(hashes, rows)
        repeated, examples = within.find(most=20)
        for row, earlier in examples:
            self._inspection.add_note(f"shard {shard.name}, row {row}: has the {key} of row {earlier}")
        if repeated > len(examples):
            self._inspection.add_note(f"shard {shard.name}: {repeated:,} rows have the {key} of an earlier one")

    def _inspect_captions(self, shard: ShardParts, start: int, captions: pa.Array) -> None:
        """Add the lengths of a block of captions to the distribution of caption lengths, and count empty captions."""
        sizes = pc.fill_null(pc.utf8_length(pc.utf8_trim_whitespace(captions)), 0).to_numpy(zero_copy_only=False)
        self._captions.add(sizes)
        empty = np.flatnonzero(sizes == 0)
        self._empty.add(len(empty), lambda: [f"shard {shard.name}, row {start + row}" for row in empty[:3]])

    def _inspect_norms(
        self, shard: ShardParts, start: int, column: str, norms: pa.Array, values: Distribution, report: Report
    ) -> None:
        """Add a block of embedding norms to a distribution, and report norms that are not positive and finite.

        Args:
            shard: shard that contains the rows.
            start: row number of the block's first row within the shard.
            column: name of the metadata column that contains the norms.
            norms: values of the column. If they are not floating-point numbers, a fault is reported instead.
            values: distribution to add to.
            report: callback for faults.
        """
        numbers = norms.to_numpy(zero_copy_only=False)
        if numbers.dtype.kind != "f":
            if start == 0:
                report(f"shard {shard.name}: column {column!r} holds {norms.type}, not numbers")
            return
        values.add(numbers)
        for row in np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0))):
            report(f"shard {shard.name}, row {start + row}: {column} is {numbers[row]:.4g}")

    def inspect_token_states(self, shard: ShardParts) -> None:
        """Check a shard's token states and their offsets, and report faults.

        Token states are per-token text-encoder outputs. The offsets are the index of each row's first token state,
        followed by the number of token states.
        """
        name, report = shard.files["offsets"], shard.report["offsets"]
        try:
            offsets = np.concatenate(list(array_blocks(self._store, name)) or [np.empty(0, np.int64)])
        except InputError as error:
            report(f"shard {shard.name}: {error}")
            return
        if offsets.ndim != 1 or offsets.dtype.kind != "i" or len(offsets) != shard.rows + 1:
            report(
                f"shard {shard.name}: {name} holds {offsets.dtype} of shape {offsets.shape} instead of "
                f"{shard.rows + 1} whole numbers"
            )
            return
        counts = np.diff(offsets)
        if offsets[0] != 0:
            report(f"shard {shard.name}, row 0: {name} starts at {offsets[0]}, not at 0")
        for row in np.flatnonzero(counts <= 0):
            report(
                f"shard {shard.name}, row {row}: {name} goes from {offsets[row]} to {offsets[row + 1]}; "
                "every row has at least one token state"
            )
        self._tokens.add(counts[counts > 0])
        self._inspect_states(shard, offsets)

    def _inspect_states(self, shard: ShardParts, offsets: np.ndarray) -> None:
        """Report token states that contain NaN or infinity.

        Also report a fault if the number of token states differs from the last offset.

        Args:
            shard: shard to inspect.
            offsets: `[rows + 1]` index of each row's first token state, followed by the number of token states.
        """
        if "token_states" not in shard.files:
            return
        name, report = shard.files["token_states"], shard.report["token_states"]
        length, reported = 0, -1
        try:
            for block in array_blocks(self._store, name):
                if block.ndim != 2 or block.dtype.kind != "f":
                    report(f"shard {shard.name}: {name} holds {block.dtype} of {block.ndim} dimensions")
                    return
                bad = length + np.flatnonzero(~np.isfinite(block).all(axis=1))
                rows = np.unique(np.searchsorted(offsets, bad, side="right") - 1)
                for row in rows[rows > reported]:
                    report(f"shard {shard.name}, row {row}: token states hold NaN or infinity")
                    reported = row
                length += len(block)
        except InputError as error:
            report(f"shard {shard.name}: {error}")
            return
        if length != offsets[-1]:
            report(
                f"shard {shard.name}, row {shard.rows - 1}: {name} has {length} token states, "
                f"{shard.files['offsets']} ends at {offsets[-1]}"
            )

    def finish(self, place: Callable[[int], str]) -> None:
        """Report the findings about the folder as a whole, such as duplicate keys and value distributions.

        Args:
            place: function that converts a row number in the folder to a location, such as `shard 00002, row 17`.
        """
        inspection = self._inspection
        self._empty.report(inspection.add_note, "captions are empty")
        self._no_key.report(inspection.add_note, "rows have no key")
        if self._without_caption and not self._recorded:
            inspection.add_note(
                "the metadata has no captions: a prior is trained on it with stored text embeddings only"
            )
        if self._without_key and not self._recorded:
            inspection.add_note("the metadata has neither key nor image_path: rows cannot be told apart by name")
        inspection.looked_at["rows of metadata"] = self._rows
        repeated, examples = self._keys.find()
        if repeated:
            pairs = "; ".join(f"{place(row)} and {place(earlier)}" for row, earlier in examples)
            sampled = "" if self._keys.one_in == 1 else f" (among 1 in {self._keys.one_in} keys)"
            inspection.add_note(f"{repeated:,} rows{sampled} have the key of an earlier one, such as {pairs}")
        distributions = {"caption length in characters": self._captions, "token states of a caption": self._tokens}
        distributions |= {
            f"norm of {word} embeddings before normalisation": self._norms[c] for c, word in _NORMS.items()
        }
        inspection.distributions.update(
            {name: values.to_json() for name, values in distributions.items() if values.rows}
        )


def inspect_failures(
    store: Store, inspection: Inspection, name: str, shard: str, expected: int, report: Report
) -> None:
    """Count the error messages in a shard's failure table, which lists the rows that `embed` could not process.

    Also compare the number of rows in the table with the shard's record in the manifest.

    Args:
        store: folder of the shards.
        inspection: findings to add to.
        name: name of the failure table.
        shard: name of the shard, for messages.
        expected: number of failed rows according to the record.
        report: callback for faults.
    """
    try:
        with open_stored_parquet(store, name) as table:
            rows = table.metadata.num_rows
            for batch in table.iter_batches(_BATCH_ROWS, columns=["error"], use_threads=False):
                inspection.count_errors(collections.Counter(str(value) for value in batch.column("error").to_pylist()))
    except (pa.ArrowException, OSError, KeyError) as error:
        report(f"shard {shard}: {store.url}/{name} is damaged ({one_line(error)}); embed it again")
        return
    if rows != expected:
        report(f"shard {shard}: {name} has {rows} rows, its record says {expected}")


@contextlib.contextmanager
def open_stored_parquet(store: Store, name: str) -> Iterator[pq.ParquetFile]:
    """Context manager that opens a Parquet file in a store. pyarrow exceptions are not converted to `InputError`."""
    with store.open(name) as file:
        yield open_parquet(file)


def _differing(one: pa.Array, other: pa.Array) -> list[int]:
    """Return the row numbers at which two columns differ. A null does not differ from any value.

    Return an empty list if the columns have different types.
    """
    if one.type != other.type:
        return []
    return [int(row) for row in np.flatnonzero(pc.fill_null(pc.not_equal(one, other), False).to_numpy(False))]
