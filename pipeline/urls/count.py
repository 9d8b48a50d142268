"""Independent count of the rows in a URL list file, to verify that no row is lost while reading."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field


class RowsError(ValueError):
    """Raised when the rows of a URL list file cannot be read. The message contains the cause and usually a fix."""


@dataclass
class FileCount:
    """Number of rows in one URL list file, and other counts that are updated while the file is read.

    `require` compares the number with the rows that the reader returned, to verify that no row was lost.
    """

    rows: int = 0
    """Number of rows counted so far: lines of text, JSON values, or the row count in the Parquet footer.

    The header and empty lines are not counted, and a line break inside quotes does not end a line.
    """
    whole: bool = False
    """True if the file has been read to its end, so that `rows` is its total number of rows."""
    quoted_fields: int = 0
    """Number of fields that begin and end with a quote; counted only if quotes are treated as ordinary characters."""
    left_out: collections.Counter[str] = field(default_factory=collections.Counter)
    """Number of rows that contain each ignored JSON key, keyed by the JSON key.

    A key is ignored if it does not occur in the first batch of rows, because the columns are chosen from that batch.
    """
    added: int = 0
    """Number of rows that were added because a row of the file has several captions."""

    @property
    def list_rows(self) -> int:
        """Number of rows of the list that the file has: one for each caption of each of its rows."""
        return self.rows + self.added

    def require(self, rows: int) -> None:
        """Set `whole` to True, and check that the number of rows returned by the reader equals the count.

        Args:
            rows: number of rows that the reader returned or skipped in the whole file.

        Raises:
            ValueError: `rows` differs from the count, which means that rows were lost or added while reading.
        """
        self.whole = True
        if rows != self.rows:
            raise ValueError(f"{rows:,} rows were read of {self.rows:,} that it holds; please report this")
