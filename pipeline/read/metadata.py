"""Metadata tables of several shards, joined into one."""

from __future__ import annotations

import pyarrow as pa

from ..contract.arrow.columns import as_text, column_of
from ..contract.arrow.types import can_be_text
from ..errors import InputError


def join_tables(tables: list[pa.Table], folder: str) -> pa.Table:
    """Concatenate tables with the same column names. Columns whose types cannot be joined become text.

    Args:
        folder: URL of the folder, for messages.

    Raises:
        InputError: a column has several types, one of which cannot become text.
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
