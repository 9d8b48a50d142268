"""URL lists: every format gives the same rows, and errors name the problem."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.http import HTTPFileSystem

from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.urls import files as url_files
from priorkit.pipeline.urls.digest import rows_digest
from priorkit.pipeline.urls.url_list import UrlList, open_url_list

from ....conftest import QuietHandler, serving
from .test_compressed import COMPRESS

ROWS = [
    {"url": "http://h/0.jpg", "caption": "plain", "licence": "cc0"},
    {"url": "http://h/1.jpg?a=1,2&b=%20#f", "caption": 'a "quoted", comma', "licence": ""},
    {"url": "http://h/2.jpg", "caption": "two\nlines", "licence": "cc-by"},
    {"url": "http://h/3.jpg", "caption": "一只猫坐在垫子上", "licence": "cc0"},
    {"url": "http://h/4.jpg", "caption": "🐈‍⬛ & 👩🏽‍🚀", "licence": "cc0"},
    {"url": "http://h/5.jpg", "caption": "", "licence": "cc0"},
    {"url": "http://h/6.jpg", "caption": "  [bold]markup[/] \x1b[31m", "licence": "cc0"},
]


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def as_delimited(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


QUOTED: dict[str, Any] = {"quoting": "rfc4180"}
"""Settings for the tsv files of these tests, whose fields are quoted like in csv."""

FORMATS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "parquet": as_parquet,
    "csv": as_delimited,
    "tsv": lambda rows: as_delimited(rows, "\t"),
    "json": lambda rows: json.dumps(rows).encode(),
    "jsonl": as_jsonl,
}


def read(path: Path | str, **settings: Any) -> list[dict[str, Any]]:
    return [row for batch in open_list(path, **settings).batches() for row in batch.to_pylist()]


def open_list(path: Path | str, **settings: Any) -> UrlList:
    return open_url_list(str(path), DownloadSettings(**settings))


@pytest.mark.parametrize("compression", ["", *COMPRESS])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_rows_and_digest(tmp_path: Path, kind: str, compression: str) -> None:
    data = FORMATS[kind](ROWS)
    path = tmp_path / f"list.{kind}.{compression}".rstrip(".")
    path.write_bytes(COMPRESS[compression](data) if compression else data)
    urls = open_list(path, **QUOTED)
    ((_, table),) = urls.shards(100)
    assert table.to_pylist() == ROWS
    assert rows_digest(table) == rows_digest(pa.Table.from_pylist(ROWS))
    assert tuple(urls.schema.names) == ("url", "caption", "licence")


@pytest.mark.parametrize("gz", [False, True])
def test_a_text_file_has_one_url_per_line(tmp_path: Path, gz: bool) -> None:
    data = "\ufeffhttp://h/0.jpg\r\n\n  http://h/é.jpg \nhttp://h/2.jpg".encode()
    path = tmp_path / ("list.txt.gz" if gz else "list.txt")
    path.write_bytes(gzip.compress(data) if gz else data)
    assert read(path, caption_column=None) == [
        {"url": "http://h/0.jpg"}, {"url": "http://h/é.jpg"}, {"url": "http://h/2.jpg"}
    ]  # fmt: skip


def test_a_folder_is_read_in_the_order_of_its_files_of_any_format(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    for number, (kind, write) in enumerate(FORMATS.items()):
        (tmp_path / f"part/{number}.{kind}").write_bytes(write([ROWS[number]]))
    (tmp_path / "part/deeper").mkdir()
    (tmp_path / "part/deeper/9.csv.gz").write_bytes(gzip.compress(as_delimited(ROWS[5:])))
    (tmp_path / "part/_SUCCESS").write_bytes(b"")
    (tmp_path / "part/README.md").write_bytes(b"no list")
    assert read(tmp_path / "part", **QUOTED) == ROWS
    ((_, table),) = open_list(tmp_path / "part", **QUOTED).shards(100)
    assert rows_digest(table) == rows_digest(pa.Table.from_pylist(ROWS))


def test_a_folder_may_hold_empty_parts(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_bytes(b"url,caption\n")
    (tmp_path / "1.csv").write_bytes(b"url,caption\na,b\n")
    (tmp_path / "2.jsonl").write_bytes(b"")
    pq.write_table(
        pa.table({"url": pa.array([], pa.string()), "caption": pa.array([], pa.string())}), tmp_path / "3.parquet"
    )
    assert read(tmp_path) == [{"url": "a", "caption": "b"}]


def test_text_has_one_type_in_rows_for_any_type_in_parquet(tmp_path: Path) -> None:
    texts = ["a", "b"]
    kinds = (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()))
    for number, kind in enumerate(kinds):
        table = pa.table({"url": pa.array(texts).cast(kind), "caption": pa.array(texts).cast(kind)})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    ((_, shard),) = open_list(tmp_path).shards(100)
    assert shard.column("url").to_pylist() == texts * 3
    assert set(shard.schema.types) == {pa.string()}


def test_lists_are_read_from_object_stores(tmp_path: Path) -> None:
    with fsspec.open("memory://lists/urls.csv.gz", "wb") as file:
        file.write(gzip.compress(as_delimited(ROWS)))
    assert read("memory://lists/urls.csv.gz") == ROWS


def test_a_list_is_read_over_http_without_a_search_for_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search for folders would load the whole list to look for links."""

    def searched(self: HTTPFileSystem, path: str, **options: Any) -> Any:
        raise AssertionError(path)

    (tmp_path / "list.csv").write_bytes(as_delimited(ROWS))
    monkeypatch.setattr(HTTPFileSystem, "_ls", searched)
    with serving(functools.partial(QuietHandler, directory=str(tmp_path))) as url:
        assert read(f"{url}/list.csv") == ROWS


def test_columns_are_renamed_and_the_others_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_bytes(as_jsonl([{"a": 1, "TEXT": "c", "b": [1, 2], "link": "http://h/0.jpg"}]))
    urls = open_list(path, url_column="link", caption_column="TEXT")
    assert tuple(urls.schema.names) == ("url", "caption", "a", "b")
    assert read(path, url_column="link", caption_column="TEXT") == [
        {"url": "http://h/0.jpg", "caption": "c", "a": 1, "b": [1, 2]}
    ]


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    for name in ("list.csv", "list.jsonl"):
        data = as_delimited(ROWS) if name.endswith("csv") else as_jsonl(ROWS)
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data)
        assert read(tmp_path / name) == ROWS


def test_windows_line_ends_are_not_part_of_the_last_column(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b'"url","caption"\r\na,b\r\nc,"d ""e"""\r\n')
    assert read(tmp_path / "list.csv") == [{"url": "a", "caption": "b"}, {"url": "c", "caption": 'd "e"'}]


def test_numbers_in_a_csv_stay_text_as_written(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"url,caption,id\na,007,1.50\nb,NULL,nan\n")
    assert read(tmp_path / "list.csv") == [
        {"url": "a", "caption": "007", "id": "1.50"}, {"url": "b", "caption": "NULL", "id": "nan"}
    ]  # fmt: skip


def test_keys_that_a_json_row_lacks_are_null_even_in_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_bytes(as_jsonl([{"url": "a"}, {"url": "b", "caption": "x"}, {"caption": "y"}]))
    assert read(tmp_path / "list.jsonl") == [
        {"url": "a", "caption": None}, {"url": "b", "caption": "x"}, {"url": None, "caption": "y"}
    ]  # fmt: skip


def test_captions_that_start_after_many_rows_are_kept(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"url": str(number), "caption": None} for number in range(10_000)]
    rows.append({"url": "last", "caption": "at last"})
    (tmp_path / "list.jsonl").write_bytes(as_jsonl(rows))
    assert read(tmp_path / "list.jsonl")[-1] == rows[-1]


@pytest.mark.parametrize("rows_per_shard", [1, 3, 7, 100])
def test_shards_are_the_rows_cut_at_equal_counts_across_files(tmp_path: Path, rows_per_shard: int) -> None:
    for number, row in enumerate(ROWS):
        (tmp_path / f"{number}.csv").write_bytes(as_delimited([row]))
    shards = [shard for _, shard in open_list(tmp_path).shards(rows_per_shard)]
    assert [shard.num_rows for shard in shards[:-1]] == [rows_per_shard] * (len(shards) - 1)
    assert [row for shard in shards for row in shard.to_pylist()] == ROWS


def refusal(path: Path | str, **settings: Any) -> str:
    """Return the error message when a list is read to its end."""
    with pytest.raises(InputError) as error:
        read(path, **settings)
    return str(error.value)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    text = refusal(tmp_path / "none.parquet")
    assert f"{tmp_path}/none.parquet: no such file or folder" in text


def test_a_folder_without_lists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    assert "no list of URLs in this folder" in refusal(tmp_path)


def test_an_unknown_ending_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "list.xlsx").write_bytes(b"x")
    assert "known endings are parquet, csv" in refusal(tmp_path / "list.xlsx")


@pytest.mark.parametrize("kind", FORMATS)
def test_an_unknown_column_is_refused_with_the_nearest_and_all_columns(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"list.{kind}").write_bytes(FORMATS[kind](ROWS))
    text = refusal(tmp_path / f"list.{kind}", url_column="URL_", caption_column="licens", **QUOTED)
    assert "no column 'URL_'; did you mean 'url'?" in text
    text = refusal(tmp_path / f"list.{kind}", caption_column="captions", **QUOTED)
    assert "no column 'captions'; did you mean 'caption'?" in text
    assert "The list has 'url', 'caption', 'licence' (`--set download.caption_column=caption`)" in text


def test_the_error_for_captions_of_a_text_file_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"http://h/0.jpg\n")
    assert "`--set download.caption_column=NAME`, or null for none" in refusal(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("list.txt", b"\n \n"),
        ("list.csv", b""),
        ("list.csv", b"url,caption\n"),
        ("list.csv", b"url,caption\n\n"),
        ("list.tsv", b"url\tcaption"),
        ("list.jsonl", b"\n"),
        ("list.json", b"[]"),
        ("list.parquet", as_parquet([{"url": "a", "caption": "b"}])[:0] or None),
    ],
)
def test_an_empty_list_is_refused(tmp_path: Path, name: str, data: bytes | None) -> None:
    if data is None:
        schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
        pq.write_table(schema.empty_table(), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(data)
    assert "the list is empty" in refusal(tmp_path / name)


def test_a_folder_of_empty_lists_is_empty(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_bytes(b"url,caption\n")
    (tmp_path / "1.jsonl").write_bytes(b"")
    assert "the list is empty" in refusal(tmp_path)


GZIPPED = gzip.compress(as_delimited(ROWS * 200), mtime=0)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("list.parquet", b"PAR1 but no parquet"),
        ("list.parquet", as_parquet(ROWS)[:-20]),
        ("list.parquet", b""),
        ("list.csv", b"url,caption\na,b,c\n"),
        ("list.csv", b"url,url,caption\na,b,c\n"),
        ("list.csv", b'url,caption\na,b\nc,"d\ne,f\n'),
        ("list.tsv", b'url\tcaption\na\t"b"\nc\r\td\n'),
        ("list.csv", gzip.compress(b"url,caption\na,b\n", mtime=0)),
        ("list.csv.gz", b"not compressed"),
        ("list.csv.gz", GZIPPED[: len(GZIPPED) // 2]),
        ("list.csv.gz", GZIPPED[:40] + b"\xff" * 40),
        ("list.csv.bz2", b"not compressed"),
        ("list.csv.xz", COMPRESS["xz"](GZIPPED)[:-40]),
        ("list.csv.zst", COMPRESS["zst"](GZIPPED)[:-40]),
        ("list.parquet.zst", COMPRESS["zst"](b"PAR1 but no parquet")),
        ("list.json", b"[{"),
        ("list.json", b"5"),
        ("list.json", b'[{"url": "a", "caption": "b"}'),
        ("list.json", b'[{"url": "a", "caption": "b"}] 5'),
        ("list.jsonl", b'["a", "b"]\n'),
        ("list.jsonl", b'{"url": "a", "caption": "b"}\n{"url": "c", "cap'),
        ("list.jsonl", b'{"url": "a", "caption": "b"}\n{"url": "c", "caption": [5]}\n'),
        ("list.jsonl", b'{"url": "a", "caption": "b"}\n{"url": "c", "caption": {"en": "d"}}\n'),
        ("list.txt", b"\xff\xfeh\x00"),
        ("list.csv", "url,caption\na,b\n".encode("utf-16")),
    ],
)
def test_a_damaged_or_misnamed_list_is_named_in_the_error(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    text = refusal(path, caption_column=None if name.endswith("txt") else "caption")
    assert str(path) in text
    assert "cannot be read as" in text


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("list.csv", b"url,caption\na,b,c\n", "line 2 has 3 instead of 2 columns; a field with ',', a quote"),
        ("list.tsv", b"url\tcaption\nabc\n", "line 2 has 1 instead of 2 columns; if its fields are in quotes, set"),
        ("list.csv", b'url,caption\na,b\nc,"d\ne,f\n', "line 3: a quote is never closed"),
        ("list.csv", gzip.compress(b"url,caption\na,b\n", mtime=0), "it is compressed; add .gz to its name"),
        ("list.jsonl", b'{"url": "a", "n": 1}\n{"url": "c", "n": []}\n', "column 'n' holds numbers and lists"),
        ("list.jsonl", b'{"url": "a", "caption": "b"}\n\n{"url": "c"', "line 3 is no JSON: Expecting ',' delimiter at"),
    ],
)
def test_the_error_of_a_row_names_the_line_and_the_fix(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert said in refusal(tmp_path / name)


def test_numbers_mixed_with_text_and_beyond_64_bits_become_text(tmp_path: Path) -> None:
    rows = [{"url": "a", "caption": 1984, "n": 10**30}, {"url": "b", "caption": "x", "n": 7}, {"url": "c", "n": None}]
    (tmp_path / "list.jsonl").write_bytes(as_jsonl(rows))
    assert read(tmp_path / "list.jsonl") == [
        {"url": "a", "caption": "1984", "n": str(10**30)},
        {"url": "b", "caption": "x", "n": "7"},
        {"url": "c", "caption": None, "n": None},
    ]


def test_a_row_that_is_longer_than_a_block_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b'url,caption\na,"' + b"b" * 3_000_000 + b'"\nc,d\n')
    assert "a row has more than 1 MB" in refusal(tmp_path / "list.csv")


def test_a_quote_at_the_end_of_the_file_loses_no_row(tmp_path: Path) -> None:
    for data in (b'url,caption\na,"b\n"', b'url,caption\na,"b\n"\n', b'url,caption\r\na,"b\n"\r\n\r\n'):
        (tmp_path / "list.csv").write_bytes(data)
        assert read(tmp_path / "list.csv") == [{"url": "a", "caption": "b\n"}]


def test_empty_lines_before_the_header_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_bytes(b"url,caption\na,b\n")
    (tmp_path / "1.csv").write_bytes(b"\r\n\nurl,caption\nc,d\n")
    assert read(tmp_path) == [{"url": "a", "caption": "b"}, {"url": "c", "caption": "d"}]


@pytest.mark.parametrize(("first", "later"), [(1, 2.5), (None, {"a": 1}), ([], ["a"])])
def test_a_column_whose_type_changes_later_is_named(tmp_path: Path, first: Any, later: Any) -> None:
    rows = [{"url": "a", "caption": "b", "n": first}] * 10_000 + [{"url": "c", "caption": "d", "n": later}]
    (tmp_path / "list.jsonl").write_bytes(as_jsonl(rows))
    text = refusal(tmp_path / "list.jsonl")
    assert "list.jsonl: column 'n' is " in text
    assert "store it as one type, or leave it out with download.keep_columns" in text


def test_a_column_that_a_parquet_file_names_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays(
        [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["url", "caption", "caption"]
    )
    pq.write_table(table, tmp_path / "list.parquet")
    assert "column 'caption' is named twice" in refusal(tmp_path / "list.parquet")


def test_a_column_of_numbers_cannot_be_the_url_column(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_bytes(as_jsonl([{"id": 7, "caption": "b"}]))
    assert "column 'id' holds int64, not text: set url_column" in refusal(tmp_path / "list.jsonl", url_column="id")


def test_a_later_file_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_bytes(b"url,caption\na,b\n")
    (tmp_path / "1.csv").write_bytes(b"url,text\na,b\n")
    text = refusal(tmp_path)
    assert "1.csv: no column 'caption', which" in text
    assert "0.csv has" in text


def test_text_that_is_not_utf8_keeps_its_row(tmp_path: Path) -> None:
    bad = b"http://h/\xe9.jpg"
    table = pa.table(
        {"url": [b"http://h/0.jpg", bad, b"http://h/2.jpg"], "caption": [b"a", b"caf\xe9", b"\xf0\x9f\x90\x88"]}
    )
    as_text = [pa.StringArray.from_buffers(3, *column.combine_chunks().buffers()[1:]) for column in table.columns]
    pq.write_table(pa.table(as_text, names=["url", "caption"]), tmp_path / "0.parquet")
    lines = list(zip(*table.to_pydict().values(), strict=True))
    (tmp_path / "1.csv").write_bytes(b"url,caption\n" + b"".join(b"%b,%b\n" % line for line in lines))
    (tmp_path / "2.jsonl").write_bytes(b"".join(b'{"url": "%b", "caption": "%b"}\n' % line for line in lines))
    (tmp_path / "3.json").write_bytes(b"[%b]" % b",".join(b'{"url": "%b", "caption": "%b"}' % line for line in lines))
    expected = [
        {"url": "http://h/0.jpg", "caption": "a"},
        {"url": "http://h/\ufffd.jpg", "caption": "caf\ufffd"},
        {"url": "http://h/2.jpg", "caption": "🐈"},
    ]
    assert read(tmp_path) == expected * 4
    (tmp_path / "list.txt").write_bytes(b"http://h/0.jpg\n" + bad + b"\nhttp://h/2.jpg\n")
    assert [row["url"] for row in read(tmp_path / "list.txt", caption_column=None)] == [row["url"] for row in expected]


def test_half_a_utf16_pair_in_json_is_a_replaced_character(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_bytes(
        b'{"url": "http://h/\\ud83d.jpg", "caption": "ok", "tags": ["\\ud83d"], "more": {"a": "\\ud83d"}}\n'
    )
    assert read(tmp_path / "list.jsonl") == [
        {"url": "http://h/\ufffd.jpg", "caption": "ok", "tags": ["\ufffd"], "more": {"a": "\ufffd"}}
    ]


@pytest.mark.parametrize("name", ["list.json", "list.jsonl"])
def test_json_may_have_plain_urls_or_an_object_per_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "list.json":
        path.write_text('["http://h/0.jpg", "http://h/1.jpg"]')
    else:
        path.write_text('"http://h/0.jpg"\n"http://h/1.jpg"\n')
    assert [row["url"] for row in read(path, caption_column=None)] == ["http://h/0.jpg", "http://h/1.jpg"]
    path.write_bytes(as_jsonl(ROWS))
    assert read(path) == ROWS


def test_a_json_list_is_read_as_a_stream(tmp_path: Path) -> None:
    """Values have all lengths, so that reads end at every position in them."""
    rows = [{"url": f"http://h/{i}.jpg", "caption": '[{,\\"]}' * (i % 97)} for i in range(20_000)]
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    assert (tmp_path / "list.json").stat().st_size > 8 << 20
    assert read(tmp_path / "list.json") == rows
    tracemalloc.start()
    try:
        for _ in open_list(tmp_path / "list.json").shards(1000):
            pass
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def many_rows(path: Path, rows: int, group: int) -> list[str]:
    urls = [f"http://h/{number}.jpg" for number in range(rows)]
    pq.write_table(pa.table({"url": urls, "caption": urls}), path, row_group_size=group)
    return urls


def test_unwanted_rows_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = many_rows(tmp_path / "0.parquet", 100, 10) + many_rows(tmp_path / "1.parquet", 60, 20)
    opened = open_list(tmp_path)
    assert opened.rows == 160
    read_rows: list[int] = []
    original = pq.ParquetFile.iter_batches

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        for batch in original(self, *args, **kwargs):
            read_rows.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    wanted = {3, 12}
    shards = list(opened.shards(11, lambda index: index not in wanted))
    assert [index for index, _ in shards] == [3, 12]
    assert [row for _, shard in shards for row in shard.column("url").to_pylist()] == urls[33:44] + urls[132:143]
    assert sum(read_rows) <= 60  # the row groups that they lie in
    read_rows.clear()
    assert list(opened.shards(11, lambda index: True)) == []
    assert read_rows == []


@pytest.mark.parametrize("kind", ["parquet.gz", "csv"])
def test_left_out_shards_do_not_shift_the_others(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"list.{kind}"
    rows = [{"url": str(number), "caption": "x"} for number in range(50)]
    data = as_parquet(rows) if "parquet" in kind else as_delimited(rows)
    path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    shards = open_list(path).shards(8, lambda index: index % 2 == 0)
    found = {index: [row["url"] for row in shard.to_pylist()] for index, shard in shards}
    assert found == {index: [str(row) for row in range(index * 8, min(index * 8 + 8, 50))] for index in (1, 3, 5)}


def test_a_pickled_shard_has_only_its_rows(tmp_path: Path) -> None:
    many_rows(tmp_path / "list.parquet", 10_000, 10_000)
    _, shard = next(open_list(tmp_path / "list.parquet").shards(20))
    assert len(pickle.dumps(shard)) < 5_000


def test_a_large_file_that_is_changed_between_the_samples_of_its_mark_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(url_files, "_MAX_HASHED_BYTES", 1000)
    monkeypatch.setattr(url_files, "_SAMPLE_BYTES", 10)
    path = tmp_path / "list.parquet"

    def write(first: str) -> None:
        urls = [f"http://a/{row:09d}" for row in range(1000)]
        urls[500] = first
        table = pa.table({"url": urls, "caption": urls})
        pq.write_table(table, path, compression="none", write_statistics=False, use_dictionary=False)

    write("http://a/000000500")
    young = open_list(path)
    assert open_list(path).unchanged_rows(young.marks_json()) == 0  # the next change may have the same time
    os.utime(path, (1e9, 1e9))
    before = open_list(path)
    assert open_list(path).unchanged_rows(before.marks_json()) == 1000
    write("http://a/00000050X")
    assert open_list(path).marks[0].sha256 == before.marks[0].sha256  # no sample shows it
    os.utime(path, (1e9 + 1, 1e9 + 1))
    assert open_list(path).unchanged_rows(before.marks_json()) == 0


def test_unchanged_rows_end_at_the_first_file_that_changed(tmp_path: Path) -> None:
    for number in range(3):
        many_rows(tmp_path / f"{number}.parquet", 10 * (number + 1), 10)
    before = open_list(tmp_path).marks_json()
    many_rows(tmp_path / "3.parquet", 5, 5)
    assert open_list(tmp_path).unchanged_rows(before) == 60
    many_rows(tmp_path / "1.parquet", 21, 10)
    assert open_list(tmp_path).unchanged_rows(before) == 10
    (tmp_path / "0.parquet").unlink()
    assert open_list(tmp_path).unchanged_rows(before) == 0


def test_a_hash_column_must_be_one_of_the_list(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(as_delimited(ROWS))
    assert "no column 'md5'; The list has" in refusal(tmp_path / "list.csv", hash_column="md5")
    assert "is the column of URLs or captions itself" in refusal(tmp_path / "list.csv", hash_column="caption")


def test_a_member_of_an_archive_is_a_list(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "lists.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/list.csv", as_delimited(ROWS[:3]))
        archive.writestr("a/list.parquet", as_parquet(ROWS[3:]))
    assert read(f"zip://a/list.csv::{tmp_path}/lists.zip") == ROWS[:3]
    assert read(f"zip://a::{tmp_path}/lists.zip") == ROWS
    urls = open_list(f"zip://a/list.parquet::{tmp_path}/lists.zip")
    assert urls.rows == 4
    assert urls.unchanged_rows(open_list(f"zip://a/list.parquet::{tmp_path}/lists.zip").marks_json()) == 4


def test_an_encrypted_or_damaged_member_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "lists.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("list.csv", as_delimited(ROWS))
    plain = path.read_bytes()
    encrypted = bytearray(plain)
    central = plain.index(b"PK\x01\x02")
    encrypted[6] |= 1
    encrypted[central + 8] |= 1
    path.write_bytes(encrypted)
    assert "list.csv::" in refusal(f"zip://list.csv::{path}")
    assert "the archive is encrypted" in refusal(f"zip://list.csv::{path}")
    path.write_bytes(plain.replace(b"http://h/3.jpg", b"http://h/9.jpg", 1))
    assert "cannot be read as csv (Bad CRC-32" in refusal(f"zip://list.csv::{path}")


def test_a_pattern_is_a_list(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        (tmp_path / f"part-{number}.csv").write_bytes(as_delimited([row]))
    assert read(f"{tmp_path}/part-[1-3].csv") == ROWS[1:4]
    with fsspec.open("memory://patterns/a/0.jsonl", "wb") as file:
        file.write(as_jsonl(ROWS))
    assert read("memory://patterns/*/*.jsonl") == ROWS


def test_columns_that_differ_are_found_before_any_row_is_read(tmp_path: Path) -> None:
    for number, size in enumerate((1, 2, "large")):
        pq.write_table(pa.table({"url": ["a"], "caption": ["b"], "size": [size]}), tmp_path / f"{number}.parquet")
    with pytest.raises(InputError, match=r"2\.parquet: column 'size' is string, in .*0\.parquet it is int64"):
        open_list(tmp_path)
