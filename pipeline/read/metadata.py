"""Concatenation of metadata tables from several shards."""

from __future__ import annotations

import pyarrow as pa

from ..contract.arrow.columns import as_text, column_of
from ..contract.arrow.types import can_be_text
from ..errors import InputError


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
