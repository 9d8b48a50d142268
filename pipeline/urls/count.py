"""Independent count of the rows in a file of a URL list, to check the number of rows that were read."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field


class RowsError(ValueError):
    """The rows of a file cannot be read; the message names the place and the fix."""


@dataclass
class FileCount:
    """Count of the rows in a file; the number of rows that were read must agree with it."""

    rows: int = 0
    """Number of rows: lines outside quotes, JSON values, or the number in a Parquet footer."""
    whole: bool = False
    """True if the file was counted to its end."""
    quoted_fields: int = 0
    """Number of fields with a quote at both ends in a file that is read without quoting."""
    left_out: collections.Counter[str] = field(default_factory=collections.Counter)
    """Number of rows with a JSON key that came too late in the file to become a column, by key."""

    def require(self, rows: int) -> None:
        """Check the number of rows that were read.

        Raises:
            ValueError: it differs from the count, so rows would be lost.
        """
        self.whole = True
        if rows != self.rows:
            raise ValueError(f"{rows:,} rows were read of {self.rows:,} that it holds; please report this")
