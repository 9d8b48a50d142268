"""Concatenation of metadata tables from several shards."""

from __future__ import annotations

import pyarrow as pa

from ..contract.arrow.columns import as_text, column_of
from ..contract.arrow.types import can_be_text
from ..errors import InputError


def join_tables(tables: list[pa.Table], folder: str) -> pa.Table:
    """Concatenate tables with the same column names.

    If the types of a column in the tables are incompatible, the column is converted to text.

    Args:
        tables: at least one table.
        folder: URL of the folder, for error messages.

    Raises:
        InputError: the types of a column are incompatible, and one of them cannot be converted to text.
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
