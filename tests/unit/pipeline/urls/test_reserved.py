"""Column names with a fixed meaning."""

from __future__ import annotations

import pyarrow as pa

from priorkit.pipeline.download.rows import image_schema
from priorkit.pipeline.urls.reserved import ADDED_COLUMNS, RESERVED_COLUMNS


def test_the_columns_that_a_download_adds_are_reserved() -> None:
    added = image_schema(pa.schema([("url", pa.string())])).names[1:]
    assert tuple(added) == ADDED_COLUMNS
    assert {"url", "caption", *added} <= RESERVED_COLUMNS
