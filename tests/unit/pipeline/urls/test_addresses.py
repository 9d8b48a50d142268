"""Addresses of lists: files, folders, patterns, archives and partitions."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from priorkit.pipeline.errors import InputError
from priorkit.pipeline.urls.addresses import ListFile, find_files, hive_partitions, parse_name
from priorkit.pipeline.urls.remote import DiskCopy


def found(source: Path | str) -> list[str]:
    """Return the names of the files of a list, relative to the first folder that tests write to."""
    return [file.path.rpartition("/in/")[2] for file in find_files(str(source))]


def refusal(source: Path | str) -> str:
    with pytest.raises(InputError) as error:
        find_files(str(source))
    return str(error.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder with lists in folders of partitions, and with other files."""
    folder = tmp_path / "in"
    for name in ("lang=de/0.csv", "lang=de/1.csv.gz", "lang=en/0.csv", "lang=en/.hidden.csv", "note.md", "b.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("url\na\n")
    return folder


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("a.CSV", ("csv", None)),
        ("b.tsv.gz", ("tsv", "gz")),
        ("b.parquet.ZST", ("parquet", "zst")),
        ("c.d/e.json.bz2", ("json", "bz2")),
        ("a.b/none", ("none", None)),
        ("a.txt.xz", ("txt", "xz")),
        ("xz", ("xz", None)),
        ("a.csv.br", ("br", None)),
    ],
)
def test_a_name_has_a_format_and_a_compression(name: str, parsed: tuple[str, str | None]) -> None:
    assert parse_name(name) == parsed


def test_partitions_are_folders_with_an_equals_sign() -> None:
    assert hive_partitions("lang=zh%2DTW/x/year=/n=__HIVE_DEFAULT_PARTITION__/=a/b=c=d/e=f.csv") == (
        ("lang", "zh-TW"), ("year", ""), ("n", None), ("b", "c=d")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["b.jsonl", "lang=de/0.csv", "lang=de/1.csv.gz", "lang=en/0.csv"]),
        ("lang=de", ["lang=de/0.csv", "lang=de/1.csv.gz"]),
        ("lang=*/0.csv", ["lang=de/0.csv", "lang=en/0.csv"]),
        ("lang=*", ["lang=de/0.csv", "lang=de/1.csv.gz", "lang=en/0.csv"]),
        ("**/*.csv", ["lang=de/0.csv", "lang=en/0.csv"]),
        ("lang=[d]e/?.csv", ["lang=de/0.csv"]),
        ("*.jsonl", ["b.jsonl"]),
    ],
)
def test_folders_and_patterns_are_files_in_order(folder: Path, pattern: str, names: list[str]) -> None:
    assert found(folder / pattern) == names


def test_partitions_are_those_that_the_address_leaves_open(folder: Path) -> None:
    for source, languages in ((folder, [None, "de", "de", "en"]), (folder / "lang=*/*.csv", ["de", "en"])):
        files = find_files(str(source))
        assert [dict(file.partitions).get("lang") for file in files] == languages
    for source in (folder / "lang=de", folder / "lang=de/0.csv", folder / "lang=de/*.csv"):
        assert {file.partitions for file in find_files(str(source))} == {()}


def test_a_file_whose_name_is_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a[1].csv", "a1.csv"):
        (tmp_path / "in" / name).write_text("url\na\n")
    assert found(tmp_path / "in/a[1].csv") == ["a[1].csv"]


def test_a_compressed_copy_is_not_a_part_of_the_list(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.csv", "a.csv.zst", "a.csv.gz", "b.csv.zst", "c.csv.gz", "c.csv.gz.xz"):
        (tmp_path / "in" / name).write_text("")
    assert found(tmp_path / "in") == ["a.csv", "a.csv.gz", "b.csv.zst", "c.csv.gz"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_of_archives_are_files(folder: Path, tmp_path: Path, kind: str) -> None:
    archive = tmp_path / f"lists.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.rglob("*.*")):
                file.write(path, path.relative_to(folder))
    else:
        with tarfile.open(archive, "w") as tar:
            for path in sorted(folder.iterdir()):
                tar.add(path, path.name)
    cases = {
        "b.jsonl": ["b.jsonl"], "lang=de": ["lang=de/0.csv", "lang=de/1.csv.gz"],
        "lang=*/0.csv": ["lang=de/0.csv", "lang=en/0.csv"],
        "": ["b.jsonl", "lang=de/0.csv", "lang=de/1.csv.gz", "lang=en/0.csv"],
    }  # fmt: skip
    for member, names in cases.items():
        files = find_files(f"{kind}://{member}::{archive}")
        assert [file.path for file in files] == [f"{kind}://{name}::{archive}" for name in names]
        assert files[0].location == files[0].path
    assert dict(find_files(f"{kind}://lang=*/0.csv::{archive}")[1].partitions) == {"lang": "en"}
    assert f"as in {kind}://NAME::{archive} (it has b.jsonl, lang=de/0.csv, lang=de/1.csv.gz and 1 more)" in refusal(
        archive
    )
    assert "no such file in the archive; it has b.jsonl, " in refusal(f"{kind}://c.csv::{archive}")


def test_a_missing_or_damaged_archive_is_named(tmp_path: Path) -> None:
    assert "none.zip: no such file or folder" in refusal(f"zip://a.csv::{tmp_path}/none.zip")
    (tmp_path / "bad.zip").write_bytes(b"PK no archive")
    assert "bad.zip: the archive cannot be read (File is not a zip file)" in refusal(f"zip://a.csv::{tmp_path}/bad.zip")


def test_what_is_no_list_is_explained(folder: Path) -> None:
    assert "no such file or folder; name a list of URLs (parquet, csv" in refusal(folder / "none.csv")
    assert "no file matches this pattern" in refusal(folder / "*.parquet")
    assert "known endings are parquet, csv" in refusal(folder / "note.md")
    (folder / "empty").mkdir()
    assert "no list of URLs in this folder" in refusal(folder / "empty")


def test_files_are_equal_without_their_copies() -> None:
    assert ListFile("a", "b", "csv") == ListFile("a", "b", "csv", copy=DiskCopy())
