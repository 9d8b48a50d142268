"""Metadata rows of an adopted shard: keys, captions and the other columns of the source's tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..contract.arrow.columns import as_text, column_of, plain_column
from ..contract.arrow.types import COLUMN_ERRORS, can_be_text, is_bytes, is_text, plain_type, why_not_carried
from ..contract.other_layouts import is_vector
from ..errors import InputError, SettingsError
from ..explain import one_line
from .parts import Table
from .settings import AdoptSettings
from .vectors import read_batches

_KEYS = ("key", "uid", "id", "image_id", "__key__", "image_path")
"""Columns that may identify a row, in order of preference."""
_CAPTIONS = ("caption", "text", "alt", "title", "prompt")
"""Columns that may contain the caption, in order of preference."""
_GROUPS = ("url", "sha256", "md5")
"""Columns that show which rows have the same image. The reader finds them only in lower case."""
_KEY_DIGITS = 9
"""Minimum number of digits of the row number in a key that is made from the file name and the row number."""


@dataclass(frozen=True)
class TableColumns:
    """Columns of a table that are copied to the metadata, under the names that readers of priorkit look for."""

    names: Mapping[str, str]
    """Name in the table of each copied column, by its name in the metadata: `key`, `caption`, then the others."""
    kinds: Mapping[str, pa.DataType]
    """Plain Arrow type of each copied column, by its name in the metadata."""
    left_out: tuple[str, ...]
    """Names of the columns that are not copied, because they hold embeddings or bytes, or cannot be written."""


def choose_columns(table: Table, settings: AdoptSettings) -> TableColumns:
    """Choose the columns of a table to copy, and the columns with keys and captions.

    Args:
        table: table to choose from.
        settings: adopt settings.

    Raises:
        SettingsError: the table lacks the column that a setting names, or its type is not suitable.
    """
    schema = table.schema
    plain = {field.name: plain_type(field.type) for field in schema}
    names: dict[str, str] = {}
    for target, setting, guesses in (
        ("key", settings.key_column, _KEYS), ("caption", settings.caption_column, _CAPTIONS)
    ):  # fmt: skip
        fits = can_be_text if target == "key" else is_text
        if setting is not None:
            if setting not in plain:
                raise SettingsError(
                    f"{target}_column={setting}: {table.title} has no such column; it has {', '.join(plain)}"
                )
            if not fits(plain[setting]):
                raise SettingsError(f"{target}_column={setting}: {table.title} has {plain[setting]} there, not text")
            names[target] = setting
        elif chosen := _first(guesses, [name for name, kind in plain.items() if fits(kind) or pa.types.is_null(kind)]):
            names[target] = chosen
    for column in _GROUPS:
        if chosen := _first((column,), list(plain)):
            names[column] = chosen
    left_out = []
    for name, kind in plain.items():
        if name in names.values() and name != "image_path":
            continue
        if is_bytes(kind) or is_vector(kind) or pa.types.is_struct(kind) or why_not_carried(kind) is not None:
            left_out.append(name)
        elif name not in names:  # another column may have taken this name, such as `caption` with `--caption-column`
            names[name] = name
        else:
            names[f"{name}_of_table"] = name
    kinds = {target: pa.string() if target in ("key", "caption") else plain[name] for target, name in names.items()}
    return TableColumns(names, kinds, tuple(left_out))


def _first(guesses: tuple[str, ...], names: list[str]) -> str | None:
    """Return the first name that equals one of the guesses, ignoring case; None if there is none."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((guess if guess in names else by_lower[guess] for guess in guesses if guess in by_lower), None)


def made_keys(stem: str, first: int, count: int) -> pa.Array:
    """Return keys for rows without a key: the name of the file without its extension, and the row number.

    Args:
        stem: name of the file, without its extension.
        first: row number of the first row.
        count: number of rows.
    """
    numbers = pc.utf8_lpad(pa.array(np.arange(first, first + count)).cast(pa.string()), _KEY_DIGITS, "0")
    return pc.binary_join_element_wise(pa.scalar(stem), numbers, "_")


class TableRows:
    """Reader for the metadata rows of a table, in blocks.

    Args:
        table: table to read.
        columns: columns to copy.
    """

    def __init__(self, table: Table, columns: TableColumns) -> None:
        self._table, self._columns = table, columns
        self._stem = table.name.rpartition(".")[0]

    def blocks(self, first: int, count: int, rows: int) -> Iterator[dict[str, pa.Array]]:
        """Yield the copied columns in blocks of `rows` rows, as arrays by name. Only the last block may be smaller.

        Args:
            first: index of the first row in the table.
            count: number of rows to read.
            rows: number of rows of a block.

        Raises:
            InputError: the table is damaged, or a value cannot be represented.
        """
        wanted = list(dict.fromkeys(self._columns.names.values()))
        if not wanted:
            for start in range(first, first + count, rows):
                yield {"key": made_keys(self._stem, start, min(rows, first + count - start))}
            return
        row = first
        for table in read_batches(self._table, wanted, first, count, rows):
            block = {name: self._column(table, name) for name in self._columns.names}
            block["key"] = self._keys(block.get("key"), row, table.num_rows)
            yield {"key": block.pop("key"), **block}
            row += table.num_rows

    def stored_keys(self, first: int, count: int, rows: int) -> Iterator[pa.Array]:
        """Yield the keys in blocks of `rows` rows. Only the last block may be smaller. A row without a key is null.

        The table must have a column with keys.

        Args:
            first: index of the first row in the table.
            count: number of rows to read.
            rows: number of rows of a block.

        Raises:
            InputError: the table is damaged, or a value cannot be represented.
        """
        wanted = [self._columns.names["key"]]
        for table in read_batches(self._table, wanted, first, count, rows):
            yield self._column(table, "key")

    def _keys(self, keys: pa.Array | None, first: int, count: int) -> pa.Array:
        """Return the keys of a block of rows. A row without a key gets one from the table's name and its row number."""
        if keys is not None and not keys.null_count:
            return keys
        made = made_keys(self._stem, first, count)
        return made if keys is None else pc.coalesce(keys, made)

    def _column(self, table: pa.Table, name: str) -> pa.Array:
        source, kind = self._columns.names[name], self._columns.kinds[name]
        try:
            column = column_of(table, source)
            if name == "key" and not is_text(column.type):
                return as_text(column)
            return plain_column(column, kind)
        except COLUMN_ERRORS as error:
            raise InputError(
                f"{self._table.title}: column {source!r} cannot be read ({one_line(error)}); write it again as a plain "
                "type, or drop it"
            ) from error


class MadeRows:
    """Metadata rows of embeddings without a table. They consist of keys made from the file name and the row number.

    Args:
        stem: name of the file with the embeddings, without its extension.
    """

    def __init__(self, stem: str) -> None:
        self._stem = stem

    def blocks(self, first: int, count: int, rows: int) -> Iterator[dict[str, pa.Array]]:
        """Yield the keys in blocks of `rows` rows; see `TableRows.blocks`."""
        for start in range(first, first + count, rows):
            yield {"key": made_keys(self._stem, start, min(rows, first + count - start))}
