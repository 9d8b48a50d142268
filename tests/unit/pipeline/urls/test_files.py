"""One file of a URL list: format, columns, marks and rows."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.urls import files
from priorkit.pipeline.urls.addresses import ListFile, parse_name
from priorkit.pipeline.urls.files import file_head, list_mark, read_file
from priorkit.pipeline.urls.settings import UrlListSettings


def list_file(path: Path, **values: Any) -> ListFile:
    return ListFile(str(path), str(path), *parse_name(path.name), **values)


def many_rows(path: Path, rows: int, group: int) -> list[str]:
    urls = [f"http://h/{number}.jpg" for number in range(rows)]
    pq.write_table(pa.table({"url": urls, "caption": urls}), path, row_group_size=group)
    return urls


def test_the_mark_of_a_file_changes_with_its_content(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    many_rows(path, 100, 10)
    mark = list_mark(str(path))
    assert (mark.rows, mark.bytes) == (100, path.stat().st_size)
    assert list_mark(str(path)) == mark
    table = pq.read_table(path)
    swapped = list(range(100))
    swapped[41], swapped[43] = 43, 41  # as long as each other, in one row group and no end of it
    pq.write_table(table.take(swapped), path, row_group_size=10, compression="none", write_statistics=False)
    other = list_mark(str(path))
    pq.write_table(table, path, row_group_size=10, compression="none", write_statistics=False)
    same_size = list_mark(str(path))
    assert other.bytes == same_size.bytes
    assert other.sha256 != same_size.sha256


def test_a_mark_is_certain_if_the_whole_file_or_its_time_is_known(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    many_rows(path, 10, 5)
    mark = list_mark(str(path))
    assert mark.modified is None
    assert mark.is_certain(asdict(mark))
    assert not mark.is_certain(None)
    assert not mark.is_certain({**asdict(mark), "rows": 11})
    large = replace(mark, bytes=files._MAX_HASHED_BYTES + 1)
    assert not large.is_certain(asdict(large))
    dated = replace(large, modified="1")
    assert dated.is_certain(asdict(dated))


@pytest.mark.parametrize(("text", "has_rows"), [("url,caption\na,b\n", True), ("url,caption\n", False)])
def test_the_head_of_a_text_file_has_its_columns(tmp_path: Path, text: str, has_rows: bool) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    head = file_head(list_file(path), UrlListSettings())
    assert (head.schema.names, head.has_rows, head.mark) == (["url", "caption"], has_rows, None)


def test_unwanted_row_groups_are_left_out_by_their_number_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    urls = many_rows(path, 25, 10)
    asked: list[tuple[int, int]] = []

    def unwanted(first: int, last: int) -> bool:
        asked.append((first, last))
        return first == 10

    parts = list(read_file(list_file(path), UrlListSettings(), unwanted))
    assert asked == [(0, 10), (10, 20), (20, 25)]
    assert parts[1] == 10
    assert [part.column("url").to_pylist() for part in parts if not isinstance(part, int)] == [urls[:10], urls[20:]]


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_columns_of_hive_partitions_are_added_unless_the_file_has_them(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    table = pa.table({"url": ["a", "b"], "lang": ["xx", "yy"]})
    if name.endswith("csv"):
        path.write_text("url,lang\na,xx\nb,yy\n")
    else:
        pq.write_table(table, path)
    file = list_file(path, partitions=(("lang", "de"), ("year", "2024"), ("part", None)))
    head = file_head(file, UrlListSettings())
    assert head.schema.names == ["url", "lang", "year", "part"]
    assert head.partitions == ("year", "part")
    rows = [row for part in read_file(file, UrlListSettings()) if not isinstance(part, int) for row in part.to_pylist()]
    expected = {"year": "2024", "part": None}
    assert rows == [{"url": "a", "lang": "xx", **expected}, {"url": "b", "lang": "yy", **expected}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfeu\x00", "it is UTF-16"),
        (b"\x28\xb5\x2f\xfd\x24", "it is compressed; add .zst to its name"),
        (b"\xfd7zXZ\x00\x00", "it is compressed; add .xz to its name"),
        (b"BZh91AY&SY", "it is compressed; add .bz2 to its name"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html><html>", "it is a web page; use the address of the file itself"),
        (b"<HTML><head>", "it is a web page"),
    ],
)
def test_the_start_of_a_file_of_another_kind_is_explained(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        file_head(list_file(path), UrlListSettings())


@pytest.mark.parametrize("text", ["BZh9 is a caption,url\na,b\n", "url,caption\na,<html>\n"])
def test_text_that_resembles_another_kind_is_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    assert file_head(list_file(path), UrlListSettings()).has_rows
