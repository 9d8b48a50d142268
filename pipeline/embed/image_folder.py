"""Metadata files of Hugging Face's image folders: `metadata.jsonl`, `metadata.csv` or `metadata.parquet`.

Such a file has a column `file_name`, the path of an image relative to the folder of the metadata file. Its other
columns describe the image.
"""

from __future__ import annotations

import json
import posixpath
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from ..contract.arrow.captions import captions_of, holds_captions
from ..contract.arrow.columns import carried, key_texts
from ..contract.arrow.parquet import open_parquet
from ..contract.arrow.types import require_distinct
from ..contract.storage import Store
from ..errors import InputError, SettingsError
from ..explain import one_line
from ..urls.addresses import ListFile
from ..urls.files import READ_ERRORS, read_file
from ..urls.plain_rows import json_line, lines
from ..urls.settings import UrlListSettings

_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_FILE_NAME = "file_name"


@dataclass(frozen=True)
class ImageRows:
    """Rows of all metadata files in a folder, by the image that they describe."""

    table: pa.Table
    """All rows, without the column of captions."""
    captions: list[tuple[bytes, ...]]
    """Captions of each row."""
    rows: dict[str, list[int]]
    """Indices of the rows of each image, keyed by the path of the image relative to the input folder."""
    title: str
    """Names of the metadata files, for messages."""

    def captions_of(self, image: str) -> list[tuple[bytes, int]]:
        """Return the captions of an image, each with the index of its row among the rows of the image."""
        rows = self.rows.get(image, [])
        return [(caption, offset) for offset, row in enumerate(rows) for caption in self.captions[row]]


def metadata_names(names: Iterable[str]) -> list[str]:
    """Return the names that are those of metadata files."""
    return [name for name in names if posixpath.basename(name) in _NAMES]


def read_image_rows(store: Store, names: list[str], column: str, *, ignore_others: bool) -> ImageRows | None:
    """Read the metadata files of a folder of images.

    Args:
        store: input folder.
        names: names of the metadata files.
        column: column with the caption, or a list of captions, of each image.
        ignore_others: True to ignore files without a column `file_name`, which describe something else.

    Returns:
        The rows of all files; None if there are no files.

    Raises:
        InputError: a file is damaged, or has rows without a file name, or two files are in one folder.
        SettingsError: a file lacks one of the columns, or the captions are not text.
    """
    tables: list[pa.Table] = []
    captions: list[tuple[bytes, ...]] = []
    rows: dict[str, list[int]] = defaultdict(list)
    folders: dict[str, str] = {}
    found = {name: _read_table(store, name) for name in names}
    if ignore_others:
        found = {name: table for name, table in found.items() if _FILE_NAME in table.schema.names}
    if not found:
        return None
    for name, table in found.items():
        folder = posixpath.dirname(name)
        if (other := folders.setdefault(folder, name)) != name:
            raise InputError(f"{store.url} holds both {other} and {name}; move one of them away")
        _check_columns(table.schema, store.path(name), column)
        images = key_texts(table.column(_FILE_NAME), f"{store.path(name)}: column {_FILE_NAME!r}")
        for row, image in enumerate(images):
            if not image:
                raise InputError(f"{store.path(name)}, row {row:,}: no {_FILE_NAME}; write the image's path there")
            rows[posixpath.normpath(posixpath.join(folder, image.replace("\\", "/")))].append(len(captions) + row)
        captions += captions_of(table.column(column))
        tables.append(carried(table.drop_columns([column]), store.path(name)))
    try:
        whole = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(
            f"the metadata files of {store.url} do not fit together ({one_line(error)}); store their columns alike"
        ) from error
    return ImageRows(whole, captions, dict(rows), " and ".join(found))


def _check_columns(schema: pa.Schema, path: str, column: str) -> None:
    for wanted in (_FILE_NAME, column):
        if wanted not in schema.names:
            others = [name for name in schema.names if name not in (_FILE_NAME, "key")]
            raise SettingsError(
                f"embed.caption_column={column}: {path} has no column {wanted!r}; it has {', '.join(schema.names)}"
                + (f"; set embed.caption_column={others[0]} or another of them" if wanted == column and others else "")
            )
    if not holds_captions(schema.field(column).type):
        raise SettingsError(
            f"embed.caption_column={column}: {path} has {schema.field(column).type} there, needed is text, or lists "
            "of text"
        )


def _read_table(store: Store, name: str) -> pa.Table:
    path = store.path(name)
    try:
        if name.endswith(".csv"):
            rows = read_file(ListFile(path, f"{store.url}/{name}", "csv"), UrlListSettings())
            batches = [batch for batch in rows if isinstance(batch, pa.RecordBatch)]
            table = pa.Table.from_batches(batches) if batches else pa.table({})
        else:
            with store.open(name) as file:
                table = _json_table(file) if name.endswith(".jsonl") else open_parquet(file).read(use_threads=False)
    except READ_ERRORS as error:
        raise InputError(f"{path} is damaged ({one_line(error)}); write it again, or move it away") from error
    require_distinct(table.schema, path)
    return table


def _json_table(file: BinaryIO) -> pa.Table:
    rows = []
    for number, line in lines(file):
        row = json_line(number, line)
        if not isinstance(row, dict):
            raise ValueError(f"line {number:,} is no object")
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({_text(name): _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    """Convert JSON values to an Arrow array.

    If some values are text and others lists of text, all become lists. Other values of different types become text.
    """
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):  # JSON may contain lone surrogates
        if any(isinstance(value, list) for value in values) and all(map(_is_text_or_texts, values)):
            lists = ([value] if isinstance(value, str) else value for value in values)
            return pa.array([each and [text and _text(text) for text in each] for each in lists])
        texts = (value if value is None or isinstance(value, str) else json.dumps(value) for value in values)
        return pa.array([None if text is None else _text(text) for text in texts], pa.string())


def _is_text_or_texts(value: Any) -> bool:
    return all(text is None or isinstance(text, str) for text in (value if isinstance(value, list) else [value]))


def _text(value: str) -> str:
    return value.encode(errors="replace").decode()
