"""A webdataset shard of images in img2dataset's layout: what a row holds, its members in the tar, its table."""

from __future__ import annotations

import collections
import io
import json
import tarfile
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from .decoded import IMAGE_OUTCOMES


@dataclass
class Row:
    """One row of the list on its way to the shard."""

    meta: dict[str, Any]
    """The row's columns and what was found out, in the order of the parquet file."""
    image: bytes | None = None
    outcome: str = "success"


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


def shard_stats(outcomes: collections.Counter[str], start: float, end: float) -> dict[str, Any]:
    """img2dataset's `_stats.json` of a shard."""
    count, successes = sum(outcomes.values()), outcomes["success"]
    resize = sum(number for outcome, number in outcomes.items() if outcome in IMAGE_OUTCOMES)
    return {
        "count": count,
        "successes": successes,
        "failed_to_download": count - successes - resize,
        "failed_to_resize": resize,
        "duration": end - start,
        "start_time": start,
        "end_time": end,
        "status_dict": dict(sorted(outcomes.items())),
    }
