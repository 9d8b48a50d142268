"""Lists as other people publish them, from the command line to the shards."""

from __future__ import annotations

import functools
import json
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from priorkit.cli import app

from ..conftest import ImageServer, QuietHandler, picture, serving

OPTIONS = [
    "--set", "download.allow_private_addresses=true", "--set", "download.decode_processes=1", "--image-size", "32",
    "--set", "download.rows_per_shard=2",
]  # fmt: skip


@pytest.fixture
def urls(image_server: ImageServer) -> list[str]:
    """URLs of three images."""
    for index in range(3):
        (image_server.folder / f"{index}.jpg").write_bytes(picture(index))
    return [f"{image_server.url}/{index}.jpg" for index in range(3)]


def run(source: Path | str, images: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["download", str(source), "--images", str(images), *OPTIONS, *options])


def rows_of(images: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(images.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def downloaded(source: Path | str, images: Path, *options: str) -> list[tuple[str, str, str]]:
    """Return the URL, caption and status of each row after a download."""
    result = run(source, images, *options)
    assert result.exit_code == 0, result.output
    return [(row["url"], row["caption"], row["status"]) for row in rows_of(images)]


CAPTIONS = ["a very typical bus station", "sierra looked stunning", "a dog"]


def test_the_command_in_the_error_for_a_list_without_header_works(urls: list[str], tmp_path: Path) -> None:
    """CC3M and CC12M are published like this."""
    source, images = tmp_path / "cc3m.tsv", tmp_path / "images"
    source.write_text("".join(f"{caption}\t{url}\n" for url, caption in zip(urls, CAPTIONS, strict=True)))
    refused = run(source, images)
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") <= 3
    assert not images.exists()
    options = re.search(r"`(--column-names [^`]+)`", " ".join(refused.stderr.split()))
    assert options is not None
    expected = [(url, caption, "success") for url, caption in zip(urls, CAPTIONS, strict=True)]
    assert downloaded(source, images, *shlex.split(options[1])) == expected
    summary = run(source, images, *shlex.split(options[1]), "--json")
    assert json.loads(summary.stdout)["done_now"] == 0
    swapped = run(source, images, "--column-names", "url,caption")
    assert "use --column-names caption,url" in " ".join(swapped.stderr.split())


@pytest.mark.slow
def test_a_list_grows_and_changes_its_file_format_with_given_names(urls: list[str], tmp_path: Path) -> None:
    source, images = tmp_path / "list.tsv", tmp_path / "images"
    lines = [f"{caption}\t{url}\n" for url, caption in zip(urls, CAPTIONS, strict=True)]
    source.write_text("".join(lines[:2]))
    downloaded(source, images, "--column-names", "caption,url")
    source.write_text("".join(lines))
    assert len(downloaded(source, images, "--column-names", "caption,url")) == 3
    other = tmp_path / "list.csv"
    other.write_text("caption,url\n" + "".join(lines).replace("\t", ","))
    assert json.loads(run(other, images, "--json").stdout)["done_now"] == 0
    changed = run(source, images, "--column-names", "caption,url,", "--json")
    assert changed.exit_code == 1
    source.write_text("".join(reversed(lines)))
    assert "was downloaded from another list" in run(source, images, "--column-names", "caption,url").stderr


def test_the_options_in_the_error_for_missing_columns_work(urls: list[str], tmp_path: Path) -> None:
    source = tmp_path / "laion.parquet"
    pq.write_table(pa.table({"URL": urls, "TEXT": CAPTIONS}), source)
    refused = " ".join(run(source, tmp_path / "images").stderr.split())
    options = re.search(r"`(--set [^`]+)`, or `--guess-columns`", refused)
    assert options is not None
    expected = [(url, caption, "success") for url, caption in zip(urls, CAPTIONS, strict=True)]
    assert downloaded(source, tmp_path / "named", *shlex.split(options[1])) == expected
    assert downloaded(source, tmp_path / "guessed", "--guess-columns") == expected
    shown = run(source, tmp_path / "guessed", "--guess-columns")
    assert "column used as caption" in shown.stdout
    assert "TEXT" in shown.stdout


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sbu", ["--url-column", "image_urls", "--caption-column", "captions"]),
        ("redcaps", []),
        ("pandas", []),
        ("nested", ["--url-column", "image.url", "--caption-column", "texts.en"]),
    ],
)
def test_json_of_every_arrangement_is_downloaded(
    urls: list[str], tmp_path: Path, name: str, options: list[str]
) -> None:
    rows = [{"url": url, "caption": caption} for url, caption in zip(urls, CAPTIONS, strict=True)]
    values: dict[str, Any] = {
        "sbu": {"image_urls": urls, "user_ids": ["a", "b", "c"], "captions": CAPTIONS},
        "redcaps": {"info": {}, "annotations": rows},
        "pandas": {key: {str(at): row[key] for at, row in enumerate(rows)} for key in ("url", "caption")},
        "nested": [{"image": {"url": row["url"]}, "texts": {"en": row["caption"]}} for row in rows],
    }
    (tmp_path / "list.json").write_text(json.dumps(values[name]))
    expected = [(url, caption, "success") for url, caption in zip(urls, CAPTIONS, strict=True)]
    assert downloaded(tmp_path / "list.json", tmp_path / "images", *options) == expected


def test_each_caption_is_a_sample_with_the_image(urls: list[str], tmp_path: Path) -> None:
    source, images = tmp_path / "list.parquet", tmp_path / "images"
    pq.write_table(pa.table({"url": urls[:2], "caption": [["a", "b", "c"], ["d"]]}), source)
    planned = run(source, images, "--dry-run", "--json")
    assert json.loads(planned.stdout)["pending_rows"] == 4
    expected = [(urls[0], caption, "success") for caption in "abc"] + [(urls[1], "d", "success")]
    assert downloaded(source, images) == expected
    assert [row["key"] for row in rows_of(images)] == ["000000", "000001", "000010", "000011"]
    assert len({row["sha256"] for row in rows_of(images)[:3]}) == 1
    again = json.loads(run(source, images, "--json").stdout)
    assert (again["done_now"], again["statistics"]["list"]["rows"]) == (0, 4)


@pytest.mark.slow
def test_lists_at_many_addresses_are_downloaded(urls: list[str], tmp_path: Path) -> None:
    served = tmp_path / "lists"
    for folder in ("lang=de", "lang=en"):
        (served / folder).mkdir(parents=True)
    text = "url,caption\n" + "".join(f"{url},{caption}\n" for url, caption in zip(urls, CAPTIONS, strict=True))
    (served / "c.csv").write_text(text)
    with zipfile.ZipFile(served / "c.zip", "w") as archive:
        archive.write(served / "c.csv", "c.csv")
    (served / "lang=de/0.csv").write_text(text)
    (served / "lang=en/0.csv").write_text(text)
    expected = [(url, caption, "success") for url, caption in zip(urls, CAPTIONS, strict=True)]
    with serving(functools.partial(QuietHandler, directory=str(served))) as url:
        addresses = [
            f"{url}/c.csv", f"{url}/c.csv?download=true", f"{url}/c.csv?X-Amz-Signature=abc",
            f"zip://c.csv::{served}/c.zip", f"zip://c.csv::{url}/c.zip",
        ]  # fmt: skip
        for number, address in enumerate(addresses):
            assert downloaded(address, tmp_path / f"images{number}") == expected, address
    images = tmp_path / "images"
    assert downloaded(f"{served}/lang=*/*.csv", images) == [*expected, *expected]
    assert [row["lang"] for row in rows_of(images)] == ["de"] * 3 + ["en"] * 3


@pytest.mark.slow
def test_a_folder_of_partitions_is_resumed_after_an_earlier_version(urls: list[str], tmp_path: Path) -> None:
    """An earlier version read the same files without the columns of the partitions."""
    (tmp_path / "list/lang=de").mkdir(parents=True)
    source, images = tmp_path / "list/lang=de/0.csv", tmp_path / "images"
    lines = [f"{url},{caption}\n" for url, caption in zip(urls, CAPTIONS, strict=True)]
    source.write_text("url,caption\n" + "".join(lines[:2]))
    downloaded(source, images)
    source.write_text("url,caption\n" + "".join(lines))
    assert len(downloaded(tmp_path / "list", images)) == 3
    assert [row.get("lang") for row in rows_of(images)] == [None, None, "de"]
