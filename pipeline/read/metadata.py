"""Metadata of several shards: concatenated tables, and the norms that embeddings had before normalisation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from ..contract.arrow.columns import as_text, column_of, decoded
from ..contract.arrow.types import can_be_text, stored_type
from ..contract.vectors.rules import judge_norms
from ..errors import InputError
from .shards import EmbeddingShard

_FOOTER_THREADS = 16
"""Number of threads that read Parquet footers. The number is high, to hide the latency of remote storage."""


def join_tables(tables: list[pa.Table], folder: str) -> pa.Table:
    """Concatenate metadata tables that have the same column names.

    If a column has types that cannot be unified, such as numbers in one table and text in another, its values are
    converted to text.

    Args:
        tables: tables to concatenate, in this order; at least one.
        folder: URL of the embeddings folder, for error messages.

    Raises:
        InputError: the types of a column cannot be unified, and one of them cannot be converted to text.
    """
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        pass
    for name in tables[0].column_names:
        types = {table.schema.field(name).type for table in tables}
        if len(types) == 1:
            continue
        if not all(map(can_be_text, types)):
            listed = ", ".join(sorted(map(str, types)))
            raise InputError(f"{folder}: column {name!r} holds {listed}, which cannot be joined")
        index = tables[0].column_names.index(name)
        tables = [table.set_column(index, name, as_text(column_of(table, name))) for table in tables]
    return pa.concat_tables(tables, promote_options="permissive")


def shard_without_column(shards: Sequence[EmbeddingShard], column: str) -> EmbeddingShard | None:
    """Return the first shard whose metadata lacks a column; None if there is none. Shards without rows are skipped."""
    with_rows = [shard for shard in shards if shard.rows]
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        has_column = pool.map(lambda shard: shard.has_column(column), with_rows)
        return next((shard for shard, has in zip(with_rows, has_column, strict=True) if not has), None)


def read_norms(shards: Sequence[EmbeddingShard], column: str) -> Iterator[np.ndarray]:
    """Yield the norms in a metadata column, block by block.

    Yields:
        `[n]` float32 array with the norms of the next `n` rows.

    Raises:
        InputError: a shard lacks the column, the column does not contain numbers, or a norm is not positive and finite.
    """
    for shard in shards:
        first = 0
        for values in shard.column_blocks(column) if shard.rows else ():
            kind = stored_type(values.type)
            if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
                raise InputError(f"{shard.title('metadata')}: column {column!r} holds {kind}, not numbers")
            with np.errstate(over="ignore"):  # values too large for float32 become infinite and are rejected below
                norms = decoded(values).cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float32)
            is_valid = np.isfinite(norms) & (norms > 0)
            if not is_valid.all():
                at = int(np.argmin(is_valid))
                raise InputError(
                    f"{shard.title('metadata')}, row {first + at}: {column} is {values[at].as_py()}, not a positive "
                    "finite number; embed that shard again"
                )
            yield norms
            first += len(norms)


def has_unit_norms(shards: Sequence[EmbeddingShard], column: str) -> bool:
    """Return True if all norms in the first block of rows are 1, apart from rounding.

    The embeddings were then normalised before they were adopted, and their original norms are unknown.
    """
    with contextlib.suppress(InputError):  # invalid norms are not 1, and reading all norms reports them
        return not judge_norms(next(read_norms(shards, column))).bad.any()
    return False
