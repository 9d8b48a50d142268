"""Columns of a URL list: kept, renamed and joined across files; and counts of rows in every format."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.settings import parse_settings
from priorkit.pipeline.urls.digest import rows_digest
from priorkit.pipeline.urls.url_list import UrlList, open_url_list


def open_list(path: Path, **settings: Any) -> UrlList:
    return open_url_list(str(path), DownloadSettings(**settings))


def rows_of(urls: UrlList) -> list[dict[str, Any]]:
    return [row for batch in urls.batches() for row in batch.to_pylist()]


def refusal(path: Path, **settings: Any) -> str:
    """Return the error of a list when it is opened."""
    with pytest.raises(InputError) as error:
        open_list(path, **settings)
    message = str(error.value)
    assert len(message) < 400
    return message


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


URLS = [f"http://h/{number}.jpg" for number in range(5)]


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("kind", ["txt", "csv", "tsv", "json", "jsonl", "parquet"])
def test_every_line_or_value_of_every_kind_becomes_a_row(tmp_path: Path, kind: str, gz: bool) -> None:
    captions = ["", '"a', 'b "c', 'd" e', "f"] if kind != "csv" else ["", 'a"', 'b "c"', 'd" e', "f"]
    lines = [f"{url}{{}}{caption}" for url, caption in zip(URLS, captions, strict=True)]
    rows = [{"url": url, "caption": caption} for url, caption in zip(URLS, captions, strict=True)]
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table)
    data = {
        "txt": "\n".join(URLS).encode(),
        "csv": "\n".join(["url,caption", *(line.format(",") for line in lines)]).encode(),
        "tsv": "\n".join(["url\tcaption", *(line.format("\t") for line in lines)]).encode(),
        "json": json.dumps(rows).encode(),
        "jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "parquet": table.getvalue(),
    }[kind]
    path = tmp_path / (f"list.{kind}.gz" if gz else f"list.{kind}")
    path.write_bytes(gzip.compress(data) if gz else data)
    urls = open_list(path, caption_column=None if kind == "txt" else "caption")
    found = rows_of(urls)
    assert [row["url"] for row in found] == URLS
    assert kind == "txt" or found == rows
    assert urls.counted_rows == urls.notes()["rows"] == len(URLS)


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_line_ends_of_old_systems_end_lines(tmp_path: Path, kind: str) -> None:
    lines = URLS if kind == "txt" else [json.dumps({"url": url}) for url in URLS]
    (tmp_path / f"list.{kind}").write_text("\r".join(lines))
    assert [row["url"] for row in rows_of(open_list(tmp_path / f"list.{kind}", caption_column=None))] == URLS


def test_rows_that_a_reader_would_lose_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "list.parquet", url=URLS, caption=URLS)
    whole = pq.ParquetFile.iter_batches

    def short(self: Any, *args: Any, **options: Any) -> Any:
        return (batch.slice(1) for batch in whole(self, *args, **options))

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", short)
    with pytest.raises(InputError, match="4 rows were read of 5 that it holds"):
        rows_of(open_list(path))


@pytest.mark.parametrize("quoting", ["auto", "none", "rfc4180"])
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_setting_decides_the_meaning_of_quotes(tmp_path: Path, kind: str, quoting: str) -> None:
    mark = "," if kind == "csv" else "\t"
    (tmp_path / f"list.{kind}").write_text(f'url{mark}caption\na{mark}"b"\n')
    urls = open_list(tmp_path / f"list.{kind}", quoting=quoting)
    quoted = quoting == "rfc4180" or (quoting == "auto" and kind == "csv")
    assert rows_of(urls) == [{"url": "a", "caption": "b" if quoted else '"b"'}]
    assert urls.notes()["quoted_fields"] == (0 if quoted else 1)


def test_the_order_of_kept_columns_has_no_effect() -> None:
    chosen = DownloadSettings(quoting="none", keep_columns=("b", "a", "b")).identity()
    assert (chosen["quoting"], chosen["keep_columns"]) == ("none", ["a", "b"])
    assert DownloadSettings(keep_columns=()) == DownloadSettings(keep_columns="none")


def test_no_is_a_resize_mode_in_yaml() -> None:
    for value in ("no", False):
        assert parse_settings(DownloadSettings, {"resize_mode": value}, "test").resize_mode == "no"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.tsv", "a bus\thttp://h/0.jpg\na car\thttp://h/1.jpg\n", "--column-names caption,url`"),
        ("list.csv", "http://h/0.jpg\nhttp://h/1.jpg\n", "--column-names url --caption-column null`"),
        ("list.csv", "http://h/0.jpg,a bus\n", "--column-names url,caption`"),
        ("list.tsv", "7\thttp://h/0.jpg\ta red bus\ten\n", "--column-names column1,url,caption,column4`"),
        ("list.tsv", "http://h/0.jpg\thttp://h/0.jpg\n", "--column-names url,caption`"),
    ],
)
def test_a_first_row_that_is_no_header_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    for column in ("url", "http://h/0.jpg"):
        said = refusal(tmp_path / name, url_column=column)
        assert "the first line is a row and no header, since 'http://h/0.jpg' is a URL" in said
        assert message in said


def test_a_part_without_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_text("url,caption\nhttp://h/0.jpg,a\n")
    (tmp_path / "1.csv").write_text("http://h/1.jpg,b\n")
    assert "1.csv: the first line is a row" in refusal(tmp_path)
    (tmp_path / "1.csv").write_text("relative.jpg,b\n")
    assert "1.csv: its only line has no column 'url'" in refusal(tmp_path)


RESERVED = ["key", "status", "error_message", "width", "height", "original_width", "sha256", "image_path", "text_norm"]


@pytest.mark.parametrize("name", RESERVED)
def test_a_column_with_a_reserved_name_is_renamed(tmp_path: Path, name: str) -> None:
    urls = open_list(write(tmp_path / "list.parquet", url=URLS, caption=URLS, **{name: range(5)}))
    assert urls.schema.names == ["url", "caption", f"source_{name}"]
    assert [row[f"source_{name}"] for row in rows_of(urls)] == list(range(5))
    assert urls.notes()["renamed_columns"] == {name: f"source_{name}"}


def test_a_new_name_that_exists_is_skipped(tmp_path: Path) -> None:
    columns = {"source_width": "x", "width": "y", "source_width_2": "z"}
    table = {name: [value] * 5 for name, value in columns.items()}
    urls = open_list(write(tmp_path / "list.parquet", url=URLS, caption=URLS, **table))
    assert urls.columns.renamed == {"width": "source_width_3"}
    assert rows_of(urls)[0]["source_width"] == "x"


def test_other_columns_keep_their_values(tmp_path: Path) -> None:
    path = write(tmp_path / "list.parquet", url=["page"] * 5, image_url=URLS, caption=["c"] * 5, alt=["a"] * 5)
    urls = open_list(path, url_column="image_url", caption_column="alt")
    expected = {"url": URLS[0], "caption": "a", "source_url": "page", "source_caption": "c"}
    assert rows_of(urls)[0] == expected
    assert "caption" not in open_list(path, url_column="image_url", caption_column=None).schema.names


def test_keep_columns_selects_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "list.parquet", url=URLS, caption=URLS, a=URLS, width=URLS, sha256=URLS)
    assert open_list(path, keep_columns="none").schema.names == ["url", "caption"]
    assert open_list(path, keep_columns=["width"]).schema.names == ["url", "caption", "source_width"]
    assert open_list(path, keep_columns="a").schema.names == ["url", "caption", "a"]
    hashes = open_list(path, keep_columns="none", hash_column="sha256")
    assert (hashes.schema.names, hashes.columns.hash_column) == (["url", "caption", "source_sha256"], "source_sha256")
    assert "no column 'widht'; did you mean 'width'?" in refusal(path, keep_columns=["widht"])


@pytest.mark.parametrize(
    ("columns", "settings", "hint"),
    [
        (["URL", "TEXT"], {}, "no column 'url'; did you mean 'URL'?"),
        (["url", "TEXT"], {}, "no column 'caption'; did you mean 'TEXT'?"),
        (["id", "image_url", "text"], {}, "did you mean 'image_url'?"),
        (["url", "location", "captain"], {}, "did you mean 'captain'?"),
        (["url", "licence", "action"], {}, "no column 'caption'; The list has"),
        (["url", "image_url", "caption"], {"url_column": "image_ulr"}, "did you mean 'image_url'?"),
        (["img", "caption"], {"url_column": "image"}, "did you mean 'img'?"),
        ([f"column {number}" for number in range(60)], {}, "'column 5', 54 more"),
        (["x" * 500], {}, "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'"),
    ],
)
def test_an_error_names_the_column_that_was_meant_and_is_short(
    tmp_path: Path, columns: list[str], settings: dict[str, Any], hint: str
) -> None:
    path = write(tmp_path / "list.parquet", **dict.fromkeys(columns, URLS))
    assert hint in refusal(path, **settings)


def test_the_error_for_a_quoted_header_of_a_tsv_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text('"url"\t"caption"\n"a"\t"b"\n')
    assert "its header is quoted: set download.quoting=rfc4180" in refusal(tmp_path / "list.tsv")
    assert rows_of(open_list(tmp_path / "list.tsv", quoting="rfc4180")) == [{"url": "a", "caption": "b"}]


def test_columns_that_differ_between_files_are_joined(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", url=["a"], caption=["b"], size=[1], lang=["de"], none=pa.nulls(1))
    write(tmp_path / "1.parquet", url=["c"], caption=["d"], size=[1.5], none=[7])
    (tmp_path / "2.jsonl").write_text('{"url": "e", "caption": "f", "late": "x"}\n')
    rows = rows_of(open_list(tmp_path))
    assert rows == [
        {"url": "a", "caption": "b", "size": 1.0, "lang": "de", "none": None, "late": None},
        {"url": "c", "caption": "d", "size": 1.5, "lang": None, "none": 7, "late": None},
        {"url": "e", "caption": "f", "size": None, "lang": None, "none": None, "late": "x"},
    ]


def test_columns_that_cannot_be_joined_are_named_with_their_file(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", url=["a"], caption=["b"], size=["large"])
    write(tmp_path / "1.parquet", url=["c"], caption=["d"], size=[1])
    message = refusal(tmp_path)
    assert "1.parquet: column 'size' is int64, in file://" in message
    assert "0.parquet it is string" in message
    assert [row["url"] for row in rows_of(open_list(tmp_path, keep_columns="none"))] == ["a", "c"]
    write(tmp_path / "1.parquet", url=["c"], text=["d"])
    assert "1.parquet: no column 'caption', which file://" in refusal(tmp_path)


def test_a_list_that_grows_by_a_column_keeps_existing_shards(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", url=["a"], caption=["b"], size=[1])
    ((_, before),) = open_list(tmp_path).shards(10)
    write(tmp_path / "1.parquet", url=["c"], caption=["d"], size=[1.5], lang=["de"])
    urls = open_list(tmp_path)
    ((_, after),) = urls.shards(10)
    assert rows_digest(after.slice(0, 1)) != rows_digest(before)
    assert urls.had_digest(after.slice(0, 1), rows_digest(before))
    assert not urls.had_digest(after.slice(1, 1), rows_digest(before))


def test_keys_that_begin_too_late_are_counted(tmp_path: Path) -> None:
    rows = [{"url": str(number), "caption": "c"} for number in range(10_000)]
    rows += [{"url": "x", "caption": "c", "late": "1"}] * 3
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    urls = open_list(tmp_path / "list.jsonl")
    assert len(rows_of(urls)) == 10_003
    assert urls.notes()["late_keys"] == {"late": 3}


def test_column_wise_json_is_read(tmp_path: Path) -> None:
    """SBU Captions is one object of columns."""
    captions = [f"c{number}" for number in range(5)]
    (tmp_path / "list.json").write_text(
        json.dumps({"image_urls": URLS, "user_ids": list("abcde"), "captions": captions})
    )
    settings = {"url_column": "image_urls", "caption_column": "captions"}
    urls = open_list(tmp_path / "list.json", **settings)
    expected = [
        {"url": url, "caption": caption, "user_ids": user}
        for url, caption, user in zip(URLS, captions, "abcde", strict=True)
    ]
    assert rows_of(urls) == expected
    assert urls.counted_rows == 5
    assert "did you mean 'image_urls'?" in refusal(tmp_path / "list.json")
    assert rows_of(open_list(tmp_path / "list.json", guess_columns=True)) == expected


def test_json_rows_under_a_key_are_read(tmp_path: Path) -> None:
    """RedCaps has its rows under `annotations`."""
    rows = [{"image_id": number, "url": url, "caption": "c"} for number, url in enumerate(URLS)]
    value = {"info": {"url": "http://site"}, "licences": [{"id": 1}], "annotations": rows}
    (tmp_path / "list.json").write_text(json.dumps(value))
    assert [row["url"] for row in rows_of(open_list(tmp_path / "list.json"))] == URLS
    (tmp_path / "list.json").write_text(json.dumps([{"url": URLS[0], "tags": ["a"], "faces": [{"x": 1}]}]))
    assert rows_of(open_list(tmp_path / "list.json", caption_column=None))[0]["tags"] == ["a"]


def test_one_json_object_with_a_url_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps({"faces": [{"x": 1}], "url": URLS[0], "caption": "c"}))
    assert rows_of(open_list(tmp_path / "list.json")) == [{"url": URLS[0], "caption": "c", "faces": [{"x": 1}]}]


@pytest.mark.parametrize("blank", [0, 2 << 20], ids=["small", "large"])
@pytest.mark.parametrize("is_first", [True, False])
def test_rows_under_a_key_are_found_beside_a_url(tmp_path: Path, is_first: bool, blank: int) -> None:
    rows = [{"url": url, "caption": "c"} for url in URLS]
    about = {"url": "https://dataset.org", "notes": "x" * blank}
    value = {**about, "annotations": rows} if is_first else {"annotations": rows, **about}
    (tmp_path / "list.json").write_text(json.dumps(value))
    assert rows_of(open_list(tmp_path / "list.json")) == rows


CC3M = "a very typical bus station\thttp://h/0.jpg\nsierra looked stunning\thttp://h/1.jpg\n"


def test_column_names_name_the_columns_of_files_without_headers(tmp_path: Path) -> None:
    (tmp_path / "0.tsv").write_text(CC3M)
    (tmp_path / "1.tsv").write_text("one more\thttp://h/2.jpg\n")
    urls = open_list(tmp_path, column_names="caption,url")
    assert [tuple(row.values()) for row in rows_of(urls)] == [
        ("http://h/0.jpg", "a very typical bus station"), ("http://h/1.jpg", "sierra looked stunning"),
        ("http://h/2.jpg", "one more"),
    ]  # fmt: skip
    assert urls.counted_rows == 3
    # the names are the same as those of a header, and so is the digest of the rows
    (tmp_path / "with").mkdir()
    (tmp_path / "with/list.tsv").write_text(f"caption\turl\n{CC3M}")
    tables = [next(opened.shards(2))[1] for opened in (urls, open_list(tmp_path / "with/list.tsv"))]
    assert rows_digest(tables[0]) == rows_digest(tables[1])


def test_column_names_without_effect_or_with_a_header_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "list.parquet", url=URLS, caption=URLS)
    assert "column_names is for csv and tsv files" in refusal(tmp_path / "list.parquet", column_names="url,caption")
    (tmp_path / "list.csv").write_text("url,caption\nhttp://h/0.jpg,a\n")
    said = refusal(tmp_path / "list.csv", column_names="url,caption")
    assert "list.csv: cannot be read as csv: the first row is a header" in said
    (tmp_path / "list.tsv").write_text(CC3M)
    assert "use --column-names caption,url" in refusal(tmp_path / "list.tsv", column_names="url,caption")
    assert "no column 'url'; did you mean 'link'?" in refusal(tmp_path / "list.tsv", column_names="caption,link")


def test_guessed_columns_are_used_and_noted(tmp_path: Path) -> None:
    urls = open_list(write(tmp_path / "0.parquet", URL=URLS, TEXT=list("abcde"), id=range(5)), guess_columns=True)
    assert urls.schema.names == ["url", "caption", "id"]
    assert rows_of(urls)[1] == {"url": URLS[1], "caption": "b", "id": 1}
    assert urls.notes()["guessed_columns"] == {"url_column": "URL", "caption_column": "TEXT"}
    plain = open_list(tmp_path / "0.parquet", url_column="URL", caption_column="TEXT")
    assert plain.notes()["guessed_columns"] == {}
    assert rows_digest(next(plain.shards(9))[1]) == rows_digest(next(urls.shards(9))[1])
    assert "no column 'caption'" in refusal(write(tmp_path / "1.parquet", URL=URLS, x=URLS), guess_columns=True)


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl"])
def test_nested_fields_are_columns(tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, Any]] = [
        {"image": {"url": url, "sha": {"md5": "m"}}, "texts": {"en": "c", "de": None}} for url in URLS
    ]
    rows[1]["image"] = None
    path = tmp_path / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    settings = {"url_column": "image.url", "caption_column": "texts.en", "hash_column": "image.sha.md5"}
    urls = open_list(path, keep_columns=["texts.de"], **settings)
    assert (urls.schema.names, urls.columns.hash_column) == (
        ["url", "caption", "image.sha.md5", "texts.de"], "image.sha.md5"
    )  # fmt: skip
    assert rows_of(urls)[:2] == [
        {"url": URLS[0], "caption": "c", "image.sha.md5": "m", "texts.de": None},
        {"url": None, "caption": "c", "image.sha.md5": None, "texts.de": None},
    ]
    assert open_list(path, **settings).schema.names == ["url", "caption", "image", "texts", "image.sha.md5"]
    assert "did you mean 'image.url'?" in refusal(path, caption_column=None)
    assert "set url_column to another, such as 'image.url'" in refusal(path, url_column="image", caption_column=None)


@pytest.mark.parametrize("kind", ["parquet", "parquet.gz", "json", "jsonl"])
def test_each_caption_of_an_image_is_a_row(tmp_path: Path, kind: str) -> None:
    captions: list[list[str] | None] = [["a", "b"], [], None, ["c"], ["d", "e", "f"]]
    rows = [
        {"id": number, "url": url, "caption": texts}
        for number, (url, texts) in enumerate(zip(URLS, captions, strict=True))
    ]
    path = tmp_path / f"list.{kind}"
    if kind.startswith("parquet"):
        data = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), data, row_group_size=2)
        path.write_bytes(gzip.compress(data.getvalue()) if kind.endswith("gz") else data.getvalue())
    else:
        path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    urls = open_list(path)
    assert urls.rows is None
    found = rows_of(urls)
    assert [(row["id"], row["caption"]) for row in found] == [
        (0, "a"), (0, "b"), (1, None), (2, None), (3, "c"), (4, "d"), (4, "e"), (4, "f")
    ]  # fmt: skip
    assert [row["url"] for row in found] == [URLS[row["id"]] for row in found]
    assert urls.counted_rows == urls.notes()["rows"] == 8
    for unwanted in ({0, 1}, {1}, set()):
        shards = dict(urls.shards(3, lambda index, unwanted=unwanted: index in unwanted))  # type: ignore[misc]
        assert {index: table.to_pylist() for index, table in shards.items()} == {
            index: found[3 * index : 3 * index + 3] for index in {0, 1, 2} - unwanted
        }


def test_captions_may_be_lists_of_objects_or_lists_in_some_files(tmp_path: Path) -> None:
    rows = [{"url": url, "sentences": [{"raw": "a", "n": 1}, {"raw": "b", "n": 2}]} for url in URLS[:2]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    urls = open_list(tmp_path, caption_column="sentences.raw", keep_columns="none")
    assert [row["caption"] for row in rows_of(urls)] == ["a", "b", "a", "b"]
    assert "such as 'sentences.raw'" in refusal(tmp_path, caption_column="sentences")
    write(tmp_path / "0.parquet", url=["x"], caption=["one"])
    write(tmp_path / "1.parquet", url=["y"], caption=[["two", "three"]])
    assert [row["caption"] for row in rows_of(open_list(tmp_path))] == ["one", "two", "three"]


def test_a_column_of_lists_of_urls_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "list.parquet", url=[["a", "b"]], caption=["c"])
    assert "column 'url' holds list<" in (text := refusal(path))
    assert text.endswith("set url_column to another, or write a row for each of its URLs")


def test_columns_of_hive_partitions_are_kept(tmp_path: Path) -> None:
    for name, urls in (("lang=de/year=2024/0.parquet", URLS[:1]), ("lang=en/0.parquet", URLS[1:2]), ("0.csv", [])):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if urls:
            write(tmp_path / name, url=urls, caption=urls)
    (tmp_path / "0.csv").write_text(f"url,caption\n{URLS[2]},c\n")
    (tmp_path / "lang=en/1.parquet").parent.mkdir(exist_ok=True)
    write(tmp_path / "lang=en/1.parquet", url=URLS[3:4], caption=URLS[3:4], lang=["own"])
    rows = rows_of(open_list(tmp_path))
    assert [(row["url"], row["lang"], row["year"]) for row in rows] == [
        (URLS[2], None, None), (URLS[0], "de", "2024"), (URLS[1], "en", None), (URLS[3], "own", None)
    ]  # fmt: skip
    kept = open_list(tmp_path, keep_columns=["lang"])
    assert kept.schema.names == ["url", "caption", "lang"]


def test_shards_that_lack_the_columns_of_partitions_stay_valid(tmp_path: Path) -> None:
    """Earlier versions did not read these columns."""
    (tmp_path / "lang=de").mkdir()
    write(tmp_path / "lang=de/0.parquet", url=URLS, caption=URLS, size=range(5))
    ((_, before),) = open_list(tmp_path / "lang=de").shards(9)
    urls = open_list(tmp_path)
    ((_, after),) = urls.shards(9)
    assert (before.column_names, after.column_names) == (["url", "caption", "size"], ["url", "caption", "size", "lang"])
    assert urls.had_digest(after, rows_digest(before))
    assert not urls.had_digest(after.slice(1), rows_digest(before))


BOXES = [[[0.1, 0.2, 0.3, 0.4]], [], None, [[0.0, 0.0, 1.0, 1.0]] * 2, []]


def test_the_box_column_is_kept_and_may_be_renamed(tmp_path: Path) -> None:
    path = write(tmp_path / "list.parquet", url=URLS, caption=URLS, key=pa.array(BOXES), other=URLS)
    urls = open_list(path, keep_columns="none", bbox_column="key")
    assert (urls.schema.names, urls.columns.bbox_column) == (["url", "caption", "source_key"], "source_key")
    assert [row["source_key"] for row in rows_of(urls)] == BOXES
    assert open_list(path).columns.bbox_column is None


def test_boxes_of_csv_and_json_are_read(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('url,caption,faces\nhttp://h/0,a,"[[0, 0, 1, 1]]"\nhttp://h/1,b,\n')
    lines = [
        '{"url": "http://h/0", "caption": "a", "faces": [[0, 0, 1, 0.5]]}',
        '{"url": "b", "caption": "", "faces": []}',
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    assert rows_of(open_list(tmp_path / "list.csv", bbox_column="faces"))[0]["faces"] == "[[0, 0, 1, 1]]"
    assert rows_of(open_list(tmp_path / "list.jsonl", bbox_column="faces"))[0]["faces"] == [[0, 0, 1, 0.5]]


@pytest.mark.parametrize(
    ("column", "settings", "hint"),
    [
        (BOXES, {"bbox_column": "bboxes"}, "no column 'bboxes'; did you mean 'face_bboxes'?"),
        (
            [0.5] * 5,
            {"bbox_column": "face_bboxes"},
            "'face_bboxes' holds double; boxes are lists of four numbers",
        ),
        ([[0.1, 0.2, 0.3, 0.4]] * 5, {"bbox_column": "face_bboxes"}, "holds list<"),
        (BOXES, {"bbox_column": "caption"}, "bbox_column 'caption' is the column of URLs or captions itself"),
    ],
)
def test_a_column_without_boxes_is_refused(
    tmp_path: Path, column: list[Any], settings: dict[str, Any], hint: str
) -> None:
    path = write(tmp_path / "list.parquet", url=URLS, caption=URLS, face_bboxes=pa.array(column))
    assert hint in refusal(path, **settings)


def test_a_column_exif_is_renamed_only_if_exif_is_extracted(tmp_path: Path) -> None:
    path = write(tmp_path / "list.parquet", url=URLS, caption=URLS, exif=URLS)
    assert open_list(path).schema.names == ["url", "caption", "exif"]
    assert open_list(path, extract_exif=True).schema.names == ["url", "caption", "source_exif"]
