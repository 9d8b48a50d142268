"""Streaming reader for csv and tsv files.

This module splits a file into blocks at row boundaries. pyarrow parses each block from memory in the same thread.

pyarrow's own streaming reader is not used. It calls the Python file object from threads that continue after an error,
which can crash or hang the interpreter at shutdown (https://github.com/apache/arrow/issues/45214). It also does not
report the line of a quote that is never closed.
"""

from __future__ import annotations

import codecs
import csv
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv

from .count import FileCount, RowsError

_BLOCK_BYTES = 1 << 20
"""Number of bytes that are read from the file for each block."""
_MAX_ROW_BYTES = 1 << 20
"""Maximum length of a row in bytes. A longer row probably contains an opening quote without a closing quote."""
_NEWLINE, _RETURN, _QUOTE = b'\n\r"'
_QUOTED_REST = re.compile(rb'[^"]*(?:""[^"]*)*"(?!")')
"""Regular expression for the rest of a quoted field after its opening quote, including the closing quote."""
_WRONG_COLUMNS = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)")
_QUOTE_HINT = 'a quote inside quoted text is written twice (""); where quotes are plain text, set download.quoting=none'

_WHOLE_URL = re.compile(r"\s*[a-z0-9+]+://\S+\s*", re.IGNORECASE)
"""Regular expression for a field that contains a URL and nothing else."""


_REWRITE = (
    "write it with commas, such as by `python3 -c 'import csv, sys; csv.writer(sys.stdout).writerows("
    """csv.reader(sys.stdin, delimiter="%s"))' < OLD.csv > NEW.csv`"""
)
_OTHER_SEPARATORS = {
    "\t": "rename it, so that its name ends in .tsv",
    ";": _REWRITE % ";",
    "|": _REWRITE % "|",
    ",": "rename it, so that its name ends in .csv",
}
"""Advice for a file whose separator differs from the delimiter of its format, by separator."""


def looks_like_url(text: str) -> bool:
    """Return True if a field contains a URL rather than a name or a caption."""
    return "://" in text or text.lstrip().startswith("www.")


@dataclass(frozen=True)
class GivenNames:
    """Names of the columns of files without a header."""

    names: tuple[str, ...]
    url_column: str
    """Name of the column of URLs."""

    def require_fit(self, fields: Sequence[str]) -> None:
        """Check that the names fit the first row of a file.

        Raises:
            RowsError: the row has another number of fields, it is a header, or its URL is in another column.
        """
        shown = ",".join(self.names)
        if len(fields) != len(self.names):
            raise RowsError(
                f"the first row has {len(fields)} columns, but column_names gives {len(self.names)} ({shown}); "
                "name each column once, in order"
            )
        place = self.names.index(self.url_column) if self.url_column in self.names else None
        same = sorted(field.strip().lower() for field in fields) == sorted(name.lower() for name in self.names)
        named = fields[place].strip().lower() if place is not None else ""
        if same or (named.endswith("url") and not looks_like_url(named)):
            raise RowsError(f"the first row is a header ({_shown(fields)}); leave out column_names for this list")
        if place is None:
            return
        urls = [at for at, field in enumerate(fields) if _WHOLE_URL.fullmatch(field)]
        if urls and place not in urls:
            names = list(self.names)
            names[place], names[urls[0]] = names[urls[0]], names[place]
            raise RowsError(
                f"the URL is in column {urls[0] + 1} of the first row, which column_names calls "
                f"{self.names[urls[0]]!r}; use --column-names {shlex.quote(','.join(names))}"
            )


def _shown(fields: Sequence[str]) -> str:
    text = ",".join(fields)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _require_delimiter(text: str, delimiter: str) -> None:
    """Check that the fields of a row are not separated by another character than the delimiter of the format.

    A row that contains a URL and no tab is checked only for captions, because a URL may contain the other separators.

    Raises:
        RowsError: the row has no delimiter, and another separator divides it into fields.
    """
    if delimiter in text:
        return
    for other, fix in _OTHER_SEPARATORS.items():
        fields = text.split(other)
        if len(fields) < 2 or (other != "\t" and "://" in text and not any(" " in field.strip() for field in fields)):
            continue
        shown = "tabs" if other == "\t" else repr(other)
        raise RowsError(f"its fields are separated by {shown}; {fix}")


def read_delimited(
    file: BinaryIO, delimiter: str, quoting: bool, count: FileCount, given: GivenNames | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a csv or tsv file in batches.

    All columns are strings, because types inferred from one block may not fit later blocks. The first batch has the
    column names but no rows, so that a file with only a header also yields a batch.

    Args:
        file: binary file, positioned at its start.
        delimiter: character between fields.
        quoting: True to follow RFC 4180, in which a field may be enclosed in quotes; False to treat quotes as ordinary
            characters.
        count: row count to update while reading. Rows are counted independently of pyarrow, by line breaks outside
            quotes.
        given: names of the columns of a file without a header; None if the first row is the header.

    Raises:
        RowsError: a quote is never closed, text follows a closing quote, a carriage return is not followed by a
            line feed, or a row is too long or has the wrong number of columns. The message names the line.
            Also raised if the first row does not fit `given`.
    """
    names: list[str] = []
    rest, line = b"", 1
    while True:
        data = _read(file)
        if line == 1 and not rest:
            data = data.removeprefix(codecs.BOM_UTF8)
        block = _Block(rest + data, delimiter, quoting, line, at_end=not data)
        if block.end == 0 and len(block.data) > _MAX_ROW_BYTES:
            hint = "; is a quote in it never closed?" if quoting else ""
            raise RowsError(f"line {line:,}: a row has more than 1 MB{hint}")
        block.require_line_ends()
        if not names and (names := block.names(given)):
            yield pa.RecordBatch.from_pylist([], pa.schema([(name, pa.string()) for name in names]))
        if block.rows:
            if not quoting:
                count.quoted_fields += block.quoted_fields()
            yield from block.parse(names)
            count.rows += block.rows
        rest = block.data[block.end :]
        line += block.data.count(b"\n", 0, block.end)
        if not data:
            return


def _read(file: BinaryIO) -> bytes:
    """Read `_BLOCK_BYTES` bytes, or fewer at the end of the file.

    `file.read` is called repeatedly, because one call may return fewer bytes than requested.
    """
    parts, size = [], 0
    while size < _BLOCK_BYTES and (data := file.read(_BLOCK_BYTES - size)):
        parts.append(data)
        size += len(data)
    return b"".join(parts)


class _Block:
    """Block of bytes from a csv or tsv file. It begins at the start of a row, and may end in the middle of a row.

    Args:
        data: bytes of the block.
        delimiter: character between fields.
        quoting: as for `read_delimited`.
        line: line number of the first line in the block.
        at_end: True if this is the last block of the file.

    Raises:
        RowsError: a quote is never closed, or text follows a closing quote. The message names the line.
    """

    def __init__(self, data: bytes, delimiter: str, quoting: bool, line: int, *, at_end: bool) -> None:
        self.data, self._delimiter, self._quoting, self._line, self._at_end = data, delimiter, quoting, line, at_end
        self._bytes = np.frombuffer(data, np.uint8)
        """Bytes of the block as a 1-D uint8 array."""
        self._opens = self._closes = np.empty(0, np.int64)
        """Byte offsets of the quotes that open (`_opens`) and close (`_closes`) quoted fields, int64.

        A field with an escaped quote (`""`) may count as two quoted fields. If the last quoted field continues beyond
        this block, there is one closing quote fewer.
        """
        if quoting and b'"' in data:
            self._find_quotes()
        ends = self._outside(np.flatnonzero(self._bytes == _NEWLINE))
        self.end = len(data) if at_end else int(ends[-1]) + 1 if len(ends) else 0
        """Offset of the first byte after the last complete row; 0 if the block contains no complete row."""
        if at_end and (len(ends) == 0 or ends[-1] + 1 < len(data)):
            ends = np.append(ends, len(data))
        starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else np.empty(0, np.int64)
        lengths = ends - starts
        lone = np.flatnonzero(lengths == 1)
        lengths[lone] -= self._bytes[starts[lone]] == _RETURN
        self._starts = starts[lengths > 0]
        """Offset of the first byte of each row, as a 1-D int64 array. Empty lines are not rows."""

    @property
    def rows(self) -> int:
        """Number of complete rows. Empty lines, and a header that `names` has removed, are not counted."""
        return len(self._starts)

    def _outside(self, offsets: np.ndarray) -> np.ndarray:
        """Return only those offsets that are outside quoted fields.

        Args:
            offsets: byte offsets in the block, as a 1-D int64 array.
        """
        if not len(self._opens):
            return offsets
        opened, closed = np.searchsorted(self._opens, offsets), np.searchsorted(self._closes, offsets)
        outside: np.ndarray = offsets[opened == closed]
        return outside

    def _find_quotes(self) -> None:
        quotes = np.flatnonzero(self._bytes == _QUOTE)
        if not self._at_end and quotes[-1] == len(self.data) - 1 and len(quotes) % 2 == 0:
            quotes = quotes[:-1]  # the next block may begin with a quote, and this quote would then not close its field
        opens, closes = quotes[::2], quotes[1::2]
        around = np.array([_NEWLINE, _RETURN, ord(self._delimiter)], np.uint8)
        before, after = np.maximum(opens - 1, 0), np.minimum(closes + 1, len(self.data) - 1)
        opened = (opens == 0) | np.isin(self._bytes[before], around)
        opened[1:] |= opens[1:] == closes[: len(opens) - 1] + 1
        closed = (closes + 1 == len(self.data)) | np.isin(self._bytes[after], around)
        closed[: len(opens) - 1] |= opens[1:] == closes[: len(opens) - 1] + 1
        if opened.all() and closed.all() and (len(opens) == len(closes) or not self._at_end):
            self._opens, self._closes = opens, closes  # all quotes are valid under RFC 4180
        else:
            self._find_quotes_one_by_one()

    def _find_quotes_one_by_one(self) -> None:
        """Find the quotes that open and close each quoted field, by scanning one field at a time.

        Their byte offsets are stored in `_opens` and `_closes`. The scan is slower than `_find_quotes`, and is needed
        only if unquoted fields contain quotes or if the quoting is invalid.

        Raises:
            RowsError: a quote is never closed, or text follows a closing quote. The message names the line.
        """
        opening = re.compile(rb'(?:\A|[\r\n%s])"' % re.escape(self._delimiter.encode()))
        after = b"\r\n" + self._delimiter.encode()
        opens, closes, position = [], [], 0
        while opened := opening.search(self.data, position):
            opens.append(opened.end() - 1)
            closed = _QUOTED_REST.match(self.data, opened.end())
            if closed is None and self._at_end:
                raise RowsError(f"line {self._line_of(opened.end()):,}: a quote is never closed; {_QUOTE_HINT}")
            if closed is None or (closed.end() == len(self.data) and not self._at_end):
                break
            position = closed.end()
            closes.append(position - 1)
            if position < len(self.data) and self.data[position] not in after:
                raise RowsError(
                    f"line {self._line_of(position):,}: text follows a closing quote, opened in line "
                    f"{self._line_of(opened.end()):,}; {_QUOTE_HINT}"
                )
        self._opens, self._closes = np.array(opens, np.int64), np.array(closes, np.int64)

    def _line_of(self, offset: int) -> int:
        return self._line + self.data.count(b"\n", 0, offset)

    def require_line_ends(self) -> None:
        """Check that a line feed follows every carriage return outside quotes.

        pyarrow would start a new row at a carriage return without a line feed, and the row count would be wrong.

        Raises:
            RowsError: a carriage return is not followed by a line feed. The message names the line.
        """
        if b"\r" not in self.data:
            return
        returns = self._outside(np.flatnonzero(self._bytes[: self.end] == _RETURN))
        following = self._bytes[np.minimum(returns + 1, len(self.data) - 1)]
        lone = returns[(following != _NEWLINE) & (returns + 1 < len(self.data))]
        if len(lone):
            raise RowsError(
                f"line {self._line_of(int(lone[0])):,}: a carriage return without a line feed; "
                "write line ends as \\n or \\r\\n"
            )

    def names(self, given: GivenNames | None) -> list[str]:
        """Return the column names: the given names, or the fields of the first row, which is then removed.

        Return an empty list if the block has no complete row.

        Raises:
            RowsError: the first row does not fit the given names, or its fields are separated by another character.
        """
        if not len(self._starts):
            return []
        start, end = int(self._starts[0]), int(self._starts[1]) if len(self._starts) > 1 else self.end
        text = self.data[start:end].decode("utf-8", "replace").rstrip("\r\n")
        _require_delimiter(text, self._delimiter)
        fields = next(csv.reader([text], delimiter=self._delimiter)) if self._quoting else text.split(self._delimiter)
        if given is not None:
            given.require_fit(fields)
            return list(given.names)
        self._starts = self._starts[1:]
        return fields

    def parse(self, names: list[str]) -> list[pa.RecordBatch]:
        """Parse the rows of the block and return them in batches. The block must contain at least one row.

        Args:
            names: column names of the batches.

        Raises:
            RowsError: a row has too many or too few fields. The message names the line.
        """
        data = self.data[int(self._starts[0]) : self.end]
        try:
            table: pa.Table = pyarrow.csv.read_csv(
                pa.BufferReader(data),
                read_options=pyarrow.csv.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=self._delimiter,
                    quote_char='"' if self._quoting else False,
                    newlines_in_values=self._quoting,
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    check_utf8=False, column_types={name: pa.string() for name in names}
                ),
            )
        except pa.ArrowInvalid as error:
            numbers = _WRONG_COLUMNS.search(str(error))
            if numbers is None:
                raise
            line = self._line_of(int(self._starts[int(numbers[1]) - 1]))
            fix = (
                f"a field with {self._delimiter!r}, a quote or a line break in it needs quotes around it"
                if self._quoting
                else "if its fields are in quotes, set download.quoting=rfc4180"
            )
            raise RowsError(f"line {line:,} has {numbers[3]} instead of {numbers[2]} columns; {fix}") from error
        batches: list[pa.RecordBatch] = table.to_batches()
        return batches

    def quoted_fields(self) -> int:
        """Return the number of fields that begin and end with a quote, in the complete rows and the header.

        The block must have been created with `quoting=False`, so that quotes are ordinary characters.
        """
        if b'"' not in self.data:
            return 0
        data = self._bytes[: self.end]
        bounds = np.flatnonzero((data == ord(self._delimiter)) | (data == _NEWLINE))
        starts, ends = np.append(0, bounds + 1), np.append(bounds, len(data))
        ends = ends - (data[np.maximum(ends - 1, 0)] == _RETURN)
        long = ends - starts >= 2
        starts, ends = starts[long], ends[long]
        return int(((data[starts] == _QUOTE) & (data[ends - 1] == _QUOTE)).sum())
