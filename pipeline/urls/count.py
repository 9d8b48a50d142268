"""Count of the rows of one file of a URL list, by its lines, values or footer, beside the reading of its columns."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field


class RowsError(ValueError):
    """The rows of a file cannot be read; the message names the place and the fix."""


@dataclass
class FileCount:
    """Independent count of what a file holds, against which the rows that were read are checked."""

    rows: int = 0
    """Rows by the lines outside quotes, the JSON values, or the parquet footer."""
    whole: bool = False
    """Whether the file was counted to its end."""
    quoted_fields: int = 0
    """Fields of a file without quoting that begin and end with a quote, as if it had quoting."""
    left_out: collections.Counter[str] = field(default_factory=collections.Counter)
    """Rows by JSON key that came too late in the file to become a column."""

    def require(self, rows: int) -> None:
        """Compare the count with the rows that were read.

        Raises:
            ValueError: they differ, so rows would be lost.
        """
        self.whole = True
        if rows != self.rows:
            raise ValueError(f"{rows:,} rows were read of {self.rows:,} that it holds; please report this")
