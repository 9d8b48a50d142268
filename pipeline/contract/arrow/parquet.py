"""Function that opens a Parquet file and reports any damage to its footer as an Arrow exception."""

from __future__ import annotations

from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


def open_parquet(file: BinaryIO, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file and read its footer.

    Args:
        options: keyword arguments for `pyarrow.parquet.ParquetFile`. With `buffer_size`, row groups are streamed.

    Raises:
        pa.ArrowException: the file is not a Parquet file, or its footer is damaged, for example because a column name
            is not valid UTF-8.
    """
    if options.get("buffer_size"):
        # recent versions would otherwise read whole column chunks ahead, and ignore the buffer size
        options.setdefault("pre_buffer", False)
    try:
        parquet = pq.ParquetFile(file, **options)
        _ = parquet.schema_arrow.names
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid(f"the name of a column is not UTF-8: {error.object[:40]!r}") from error
    return parquet
