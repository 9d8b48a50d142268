"""Reading and writing of image shard rows. A shard is a tar archive and a Parquet table in img2dataset's layout."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa

from ..contract.image_shards import ImageShard, read_samples, read_shard_table
from ..contract.storage import Store
from ..errors import InputError
from ..images.kinds import image_extension, is_image
from .outcomes import SUCCESS, TRANSIENT_OUTCOMES

OutcomeReader: TypeAlias = Callable[[dict[str, Any]], str]
"""Function that returns the outcome of a row in the table of a shard. Its argument is the row, keyed by column."""


@dataclass
class Row:
    """Row of the URL list, with the result of its download."""

    meta: dict[str, Any]
    """Values for the shard's Parquet table, keyed by column: the list columns, then those that the download adds."""
    image: bytes | None = None
    """Image file to store, or None if the row failed."""
    outcome: str = SUCCESS
    body_bytes: int = 0
    """Size of the fetched response body in bytes."""
    reused: bool = False
    """True if the row was copied from the shard that is being replaced, and not fetched again."""


def image_schema(columns: pa.Schema, *, exif: bool = False) -> pa.Schema:
    """Return the Arrow schema of a shard's table.

    It consists of the columns from the URL list, followed by the columns that the download adds, such as `status`.

    Args:
        columns: schema of the columns from the URL list.
        exif: True to include the column `exif`.
    """
    text, number = pa.string(), pa.int32()
    added: list[tuple[str, pa.DataType]] = [("key", text), ("status", text), ("error_message", text)]
    added += [(name, number) for name in ("width", "height", "original_width", "original_height")]
    added += [("exif", text)] if exif else []
    added += [("sha256", text)]
    return pa.schema([*columns, *(pa.field(name, kind) for name, kind in added)])


def add_sample(tar: tarfile.TarFile, row: Row) -> None:
    """Write the image, metadata and caption (if any) of a row to a tar archive, one file each.

    The files are in the same order as in img2dataset's archives. The extension of the image is that of its true format.

    Args:
        tar: archive opened for writing.
        row: row with an image.
    """
    assert row.image is not None
    extension = image_extension(row.image)
    assert extension is not None
    members = {extension: row.image, "json": json.dumps(row.meta, indent=4, default=str).encode()}
    if "caption" in row.meta:
        caption = row.meta["caption"]
        members["txt"] = ("" if caption is None else str(caption)).encode(errors="surrogatepass")
    for name in sorted(members):
        info = tarfile.TarInfo(f"{row.meta['key']}.{name}")
        info.size = len(members[name])
        info.mode = 0o444
        tar.addfile(info, io.BytesIO(members[name]))


def native_outcome(row: dict[str, Any]) -> str:
    """Return the outcome of a row that the native engine stored: the first part of its error message."""
    message: str = row["error_message"] or SUCCESS
    return message.partition(":")[0]


def reused_rows(
    store: Store, name: str, values: list[dict[str, Any]], outcome_of: OutcomeReader = native_outcome
) -> Iterator[Row | None]:
    """Read an existing shard, and yield its rows in order so that a new version of the shard can contain them.

    For a row with a transient failure, such as a timeout, yield None. The caller fetches this row again.

    Args:
        store: folder of the shard.
        name: name of the shard.
        values: values from the URL list, one dictionary for each row of the shard, keyed by column name.
        outcome_of: function that returns the outcome of a stored row; it depends on the download engine.

    Raises:
        InputError: the table is missing or damaged, or the tar and the table do not match.
    """
    shard = ImageShard(name, "", 0)
    table = read_shard_table(store, shard)
    if table is None or table.num_rows != len(values):
        raise InputError(
            f"{store.url}/{shard.table_name} is damaged; remove it, and `priorkit download` makes it again"
        )
    added = table.select([name for name in table.column_names if name not in values[0]])
    samples = read_samples(store, shard)
    for row_values, results in zip(values, added.to_pylist(), strict=True):
        meta = {**row_values, **results}
        outcome = outcome_of(meta)
        if outcome in TRANSIENT_OUTCOMES:
            yield None
            continue
        row = Row(meta, outcome=outcome, reused=True)
        if outcome == SUCCESS:
            sample = next(samples, None)
            if sample is None or sample.key != results["key"] or not is_image(sample.image or b""):
                raise _misfit(store, shard)
            row.image = sample.image
        yield row
    if next(samples, None) is not None:
        raise _misfit(store, shard)


def _misfit(store: Store, shard: ImageShard) -> InputError:
    """Return the error for a shard whose tar and table contain different images."""
    return InputError(
        f"{store.url}/{shard.tar_name} holds other images than {shard.table_name}; remove it to have both made again"
    )
