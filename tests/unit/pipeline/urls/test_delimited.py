"""csv and tsv: every line outside quotes is a row, with any quotes and any ends of blocks."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from priorkit.pipeline.urls import delimited as url_delimited
from priorkit.pipeline.urls.count import FileCount, RowsError
from priorkit.pipeline.urls.delimited import GivenNames, looks_like_url, read_delimited


def read(
    data: bytes, delimiter: str = ",", *, quoting: bool = True, given: GivenNames | None = None
) -> tuple[list[list[str]], FileCount]:
    """Return the rows of a file as lists, after a check of their count."""
    count = FileCount()
    batches = list(read_delimited(io.BytesIO(data), delimiter, quoting, count, given))
    rows = [list(row.values()) for batch in batches for row in batch.to_pylist()]
    count.require(len(rows))
    return rows, count


def test_quotes_in_a_tsv_are_text() -> None:
    captions = [
        "plain",
        '"Star Wars',
        "second",
        'a 5" pipe',
        '"quoted" word',
        'he said "hi"',
        '"Closing',
        'x" y',
        '"a"',
    ]
    data = "url\tcaption\n" + "".join(f"{number}\t{caption}\n" for number, caption in enumerate(captions))
    rows, count = read(data.encode(), "\t", quoting=False)
    assert rows == [[str(number), caption] for number, caption in enumerate(captions)]
    assert count.quoted_fields == 1


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b'u,c\na,"b\r\nc ""d"""\r\n\r\ne,5" pipe', [["a", 'b\r\nc "d"'], ["e", '5" pipe']]),
        (b'u,c\na,""\n,\n"a,b",c', [["a", ""], ["", ""], ["a,b", "c"]]),
        (b'\n\r\n"u","two\nlines"\na,b\n', [["a", "b"]]),
        (b'\xef\xbb\xbf"u"\na\n\nb', [["a"], ["b"]]),
        (b"u,c\r\na,b\r", [["a", "b"]]),
    ],
)
def test_a_csv_is_read_by_rfc_4180(data: bytes, rows: list[list[str]]) -> None:
    assert read(data)[0] == rows


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'u,c\na,b\nc,"d\ne,f\n', "line 3: a quote is never closed"),
        (b'u,c\na,"b""', "line 2: a quote is never closed"),
        (b'u,c\na,"Star Wars\nb,second\nc,a 5" pipe\n', "line 4: text follows a closing quote, opened in line 2"),
        (b'u,c\na,"b \\"c\\" d"\n', "line 2: text follows a closing quote, opened in line 2"),
        (b'u,c\n\na,"b\nc"\nd,e,f\n', "line 5 has 3 instead of 2 columns"),
        (b"u,c\na,b\rc,d\n", "line 2: a carriage return without a line feed"),
        (b"u,c\ra,b\r", "line 1: a carriage return without a line feed"),
        (b'u,c\na,"' + b"b" * 3_000_000 + b'"\n', "line 2: a row has more than 1 MB; is a quote in it never closed"),
    ],
)
def test_a_broken_row_is_an_error_with_its_line(data: bytes, message: str) -> None:
    with pytest.raises(RowsError, match=message):
        read(data)


def test_lines_are_counted_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_delimited, "_BLOCK_BYTES", 16)
    with pytest.raises(RowsError, match="line 101 has 1 instead of 2 columns"):
        read(b"u,c\n" + b"a,b\n" * 99 + b"c\n")
    with pytest.raises(RowsError, match="line 41: a quote is never closed"):
        read(b"u,c\n" + b'a,"b\n"\n' * 19 + b'c,d\ne,"' + b"f\n" * 50)


FIELD = st.text(st.sampled_from('ab,"\n'), max_size=4)


@given(st.lists(st.lists(FIELD, min_size=2, max_size=2), max_size=5), st.integers(1, 9), st.booleans())
def test_written_rows_are_read_with_any_size_of_blocks(rows: list[list[str]], block: int, all_quoted: bool) -> None:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL, lineterminator="\n")
    writer.writerows([["u", "c"], *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(url_delimited, "_BLOCK_BYTES", block)
        assert read(text.getvalue().encode())[0] == rows


@given(st.text(st.sampled_from('ab,"\n\r'), max_size=24), st.integers(1, 9))
def test_any_text_gives_the_same_rows_with_any_size_of_blocks(text: str, block: int) -> None:
    """The result is an error, or at least the rows of a strict parser of the standard library."""

    def outcome(size: int) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(url_delimited, "_BLOCK_BYTES", size)
            try:
                return read(b"u,c\n" + text.encode())[0]
            except RowsError:
                return None

    found = outcome(1 << 20)
    assert outcome(block) == found
    if found is not None:
        assert found == [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]


def test_no_thread_is_left_when_reading_stops(tmp_path: Path) -> None:
    """Native threads that call a Python file can abort the interpreter at its end."""
    before = native_threads()
    batches = read_delimited(io.BytesIO(b"u,c\n" + b"a,b\n" * 2_000_000), ",", True, FileCount())
    next(batches)
    next(batches)
    assert native_threads() == before
    assert threading.active_count() >= 1


def native_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


CC3M = GivenNames(("caption", "url"), "url")


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_a_file_without_a_header_gets_the_given_names(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(url_delimited, "_BLOCK_BYTES", block)
    data = b"\xef\xbb\xbfa very typical bus station\thttp://h/0.jpg\n\nsecond\thttp://h/1.jpg\n"
    rows, count = read(data, "\t", quoting=False, given=CC3M)
    assert rows == [["a very typical bus station", "http://h/0.jpg"], ["second", "http://h/1.jpg"]]
    assert count.rows == 2
    batches = list(read_delimited(io.BytesIO(data), "\t", False, FileCount(), CC3M))
    assert {tuple(batch.schema.names) for batch in batches} == {("caption", "url")}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a\tb\thttp://h/0.jpg", "the first row has 3 columns, but column_names gives 2 \\(caption,url\\)"),
        ("http://h/0.jpg", "the first row has 1 columns"),
        ("Caption\tURL", "the first row is a header \\(Caption,URL\\); leave out column_names"),
        ("url\tcaption", "the first row is a header"),
        ("TEXT\timage_url", "the first row is a header"),
        ("http://h/0.jpg\ta", "the URL is in column 1 .* calls 'caption'; use --column-names url,caption"),
    ],
)
def test_given_names_that_do_not_fit_are_refused(row: str, message: str) -> None:
    with pytest.raises(RowsError, match=message):
        read(f"{row}\na\thttp://h/1.jpg\n".encode(), "\t", quoting=False, given=CC3M)


@pytest.mark.parametrize(
    "row", ["see http://h/0.jpg there\timages/0.jpg", "a\t", "\t", "http://a\thttp://b", "a\thttp://h/get?kind=url"]
)
def test_given_names_may_fit_rows_of_other_kinds(row: str) -> None:
    assert read(f"{row}\n".encode(), "\t", quoting=False, given=CC3M)[0] == [row.split("\t")]


def test_proposed_names_are_quoted_for_a_shell() -> None:
    with pytest.raises(RowsError, match=r"use --column-names 'url,my caption'$"):
        read(b"http://h/0.jpg\ta\n", "\t", quoting=False, given=GivenNames(("my caption", "url"), "url"))


def test_what_looks_like_a_url() -> None:
    assert [looks_like_url(text) for text in ("http://a", " www.a.b", "url", "a www.b")] == [True, True, False, False]


@pytest.mark.parametrize(
    ("data", "delimiter", "message"),
    [
        (b"url;caption\nhttp://h/0;a\n", ",", "separated by ';'; write it with commas"),
        (b"url|caption\nhttp://h/0|a\n", "\t", "separated by '|'; write it with commas"),
        (b"url\tcaption\nhttp://h/0\ta\n", ",", "separated by tabs; rename it, so that its name ends in .tsv"),
        (b"url,caption\nhttp://h/0,a\n", "\t", "separated by ','; rename it, so that its name ends in .csv"),
        (b"http://h/0;a b\n", ",", "separated by ';'"),
        (b"a,b\thttp://h/0\n", ",", None),
        (b"http://h/0;a,b;c\n", ",", None),
        (b"http://h/0;a|b\n", ",", None),
        (b"url\nhttp://h/0;a b\n", ",", None),
    ],
)
def test_another_separator_is_reported(data: bytes, delimiter: str, message: str | None) -> None:
    if message is None:
        read(data, delimiter)
        return
    with pytest.raises(RowsError, match=re.escape(message)):
        read(data, delimiter)


def test_the_command_for_another_separator_works(tmp_path: Path) -> None:
    (tmp_path / "OLD.csv").write_text('url;caption\nhttp://h/0;"a; b"\nhttp://h/1;c, d\n')
    with pytest.raises(RowsError) as error:
        read((tmp_path / "OLD.csv").read_bytes())
    command = str(error.value).split("`")[1]
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert read((tmp_path / "NEW.csv").read_bytes())[0] == [["http://h/0", "a; b"], ["http://h/1", "c, d"]]
