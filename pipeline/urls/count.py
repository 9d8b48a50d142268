"""Independent count of the rows in a URL list file, to verify that no row is lost while reading."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field


class RowsError(ValueError):
    """Raised when the rows of a file cannot be read. The message names the place and the cause, and suggests a fix."""


@dataclass
class FileCount:
    """Independent count of the rows in one file. The number of rows read must be equal to it."""

    rows: int = 0
    """Number of rows: the number of lines, the number of JSON values, or the row count in the Parquet footer.

    A line break inside quotes does not end a line.
    """
    whole: bool = False
    """True if the file has been read to its end, so that `rows` is its total number of rows."""
    quoted_fields: int = 0
    """Number of fields that begin and end with a quote; counted only if the file is read without quoting."""
    left_out: collections.Counter[str] = field(default_factory=collections.Counter)
    """Number of rows with each ignored JSON key. A key is ignored if it does not occur in the first batch of rows."""

    def require(self, rows: int) -> None:
        """Check that the number of rows read equals the count, and set `whole`.

        Args:
            rows: number of rows read from the whole file.

        Raises:
            ValueError: the numbers differ, which means that rows were lost or added while reading.
        """
        self.whole = True
        if rows != self.rows:
            raise ValueError(f"{rows:,} rows were read of {self.rows:,} that it holds; please report this")
