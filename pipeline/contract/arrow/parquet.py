"""Parquet files, opened so that each kind of damage in a footer is an error of Arrow."""

from __future__ import annotations

from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


def open_parquet(file: BinaryIO, **options: Any) -> pq.ParquetFile:
    """Read the footer of a Parquet file.

    Args:
        options: as those of `pyarrow.parquet.ParquetFile`.

    Raises:
        pa.ArrowException: it is no Parquet file, or its footer is damaged.
    """
    try:
        parquet = pq.ParquetFile(file, **options)
        _ = parquet.schema_arrow.names
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid(f"the name of a column is not UTF-8: {error.object[:40]!r}") from error
    return parquet
