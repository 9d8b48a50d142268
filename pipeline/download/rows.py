"""A webdataset shard of images in img2dataset's layout: what a row holds, its members in the tar, its table."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..contract.image_shards import ImageShard, read_samples, read_shard_table
from ..contract.storage import Store
from ..errors import InputError

TRANSIENT_OUTCOMES = frozenset({"dns", "refused", "proxy", "tls", "connection", "timeout", "http_429", "http_5xx"})
"""Failures that may pass, by themselves or with a mended resolver, clock or network: what `--retry-failed` redoes."""


@dataclass
class Row:
    """One row of the list on its way to the shard."""

    meta: dict[str, Any]
    """The row's columns and what was found out, in the order of the parquet file."""
    image: bytes | None = None
    outcome: str = "success"
    body_bytes: int = 0
    """Of what the server sent."""
    kept: bool = False
    """Taken over from the shard that this one replaces, not fetched now."""


def image_schema(columns: pa.Schema) -> pa.Schema:
    """Columns of the shard's table: those of the list, and what download adds."""
    text, number = pa.string(), pa.int32()
    added: list[tuple[str, pa.DataType]] = [("key", text), ("status", text), ("error_message", text)]
    added += [(name, number) for name in ("width", "height", "original_width", "original_height")]
    added += [("sha256", text)]
    return pa.schema([*columns, *(pa.field(name, kind) for name, kind in added)])


def add_sample(tar: tarfile.TarFile, row: Row, encoding: str) -> None:
    """The members of one sample, in the order in which img2dataset writes them."""
    assert row.image is not None
    members = {encoding: row.image, "json": json.dumps(row.meta, indent=4, default=str).encode()}
    if "caption" in row.meta:
        caption = row.meta["caption"]
        members["txt"] = ("" if caption is None else str(caption)).encode(errors="surrogatepass")
    for extension in sorted(members):
        info = tarfile.TarInfo(f"{row.meta['key']}.{extension}")
        info.size = len(members[extension])
        info.mode = 0o444
        tar.addfile(info, io.BytesIO(members[extension]))


def kept_rows(store: Store, name: str, values: list[dict[str, Any]]) -> Iterator[Row | None]:
    """The rows of a committed shard as they are, in order; None for each whose failure may pass.

    Args:
        values: the columns of the list for each row.

    Raises:
        InputError: the shard's files do not fit each other.
    """
    shard = ImageShard(name, "", 0)
    table = read_shard_table(store, shard)
    if table is None or table.num_rows != len(values):
        raise InputError(
            f"{store.url}/{shard.table_name} is damaged; remove it, and `priorkit download` makes it again"
        )
    added = table.select([name for name in table.column_names if name not in values[0]])
    samples = read_samples(store, shard)
    for row_values, found in zip(values, added.to_pylist(), strict=True):
        outcome = (found["error_message"] or "success").partition(":")[0]
        if outcome in TRANSIENT_OUTCOMES:
            yield None
            continue
        row = Row({**row_values, **found}, outcome=outcome, kept=True)
        if outcome == "success":
            sample = next(samples, None)
            if sample is None or sample.key != found["key"] or sample.image is None:
                raise _misfit(store, shard)
            row.image = sample.image
        yield row
    if next(samples, None) is not None:
        raise _misfit(store, shard)


def _misfit(store: Store, shard: ImageShard) -> InputError:
    return InputError(
        f"{store.url}/{shard.tar_name} holds other images than {shard.table_name}; remove it to have both made again"
    )
