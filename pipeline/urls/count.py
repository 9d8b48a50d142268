"""Independent row count for a URL list file, used to verify that no row was lost while reading."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field


class RowsError(ValueError):
    """Raised when the rows of a file cannot be read; the message says where and why, and how to fix it."""


@dataclass
class FileCount:
    """Independent row count of one file; the number of rows read must match it."""

    rows: int = 0
    """Number of rows: lines outside quotes, JSON values, or the row count in the Parquet footer."""
    whole: bool = False
    """True if the file was counted to the end."""
    quoted_fields: int = 0
    """Number of fields that begin and end with a quote, in a file read without quoting."""
    left_out: collections.Counter[str] = field(default_factory=collections.Counter)
    """Number of rows per ignored JSON key; a key is ignored if it does not occur in the first batch of rows."""

    def require(self, rows: int) -> None:
        """Mark the file as fully counted, and check the number of rows read against the count.

        Raises:
            ValueError: the numbers differ, so rows would be lost.
        """
        self.whole = True
        if rows != self.rows:
            raise ValueError(f"{rows:,} rows were read of {self.rows:,} that it holds; please report this")
