"""Inputs that are named by a pattern, or are a single file."""

from __future__ import annotations

from pathlib import Path

import pytest

from priorkit.pipeline.embed.patterns import expand_braces, locate
from priorkit.pipeline.errors import InputError

from .conftest import write


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a{08..11}", ["a08", "a09", "a10", "a11"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{000..4..2}", ["000", "002", "004"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("{a,{b,c}}", ["a", "b", "a", "c"]),
        ("x{,y}", ["x", "xy"]),
        ("{x}{}{a..c}{", ["{x}{}{a..c}{"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_are_expanded_as_by_a_shell(pattern: str, names: list[str]) -> None:
    assert list(expand_braces(pattern)) == names


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    names = [f"train/a-{number}.tar" for number in (2, 10)] + ["val/a-2.tar", "val/deep/a-3.tar", "val/b.txt"]
    return write(tmp_path, dict.fromkeys(names, b""))


@pytest.mark.parametrize(
    ("pattern", "folder", "names"),
    [
        ("train/a-{2,10}.tar", "train", ["a-2.tar", "a-10.tar"]),
        ("train/a-*.tar", "train", ["a-2.tar", "a-10.tar"]),
        ("train/a-?.tar", "train", ["a-2.tar"]),
        ("{train,val}/a-{2..2}.tar", "", ["train/a-2.tar", "val/a-2.tar"]),
        ("*/a-*.tar", "", ["train/a-2.tar", "train/a-10.tar", "val/a-2.tar"]),
        ("val/**/*.tar", "val", ["a-2.tar", "deep/a-3.tar"]),
        ("train/a-[0-9].tar", "train", ["a-2.tar"]),
        ("train/a-[12][0-9].tar", "train", ["a-10.tar"]),
        ("[!v]*/a-*.tar", "", ["train/a-2.tar", "train/a-10.tar"]),
        ("val/a-2.tar", "val", ["a-2.tar"]),
        ("val", "val", None),
    ],
)
def test_a_pattern_names_files_of_a_folder(tars: Path, pattern: str, folder: str, names: list[str] | None) -> None:
    store, found = locate(f"{tars}/{pattern}")
    assert Path(store.root) == tars / folder
    assert found == names


def test_a_relative_pattern_is_found_in_the_working_directory(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tars / "train")
    assert locate("a-{2,10}.tar")[1] == ["a-2.tar", "a-10.tar"]
    assert locate("a-2.tar")[0].root == str(tars / "train")


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    for name in ("a{0..1}", "b*", "c[0]", "x.tar"):
        (tmp_path / name).mkdir()
        assert locate(str(tmp_path / name))[1] is None


def test_patterns_of_remote_files_are_expanded() -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    for number in range(2):
        fs.pipe(f"/patterns/s-{number}.tar", b"")
    store, names = locate("memory://patterns/s-{0..1}.tar")
    assert (store.url, names) == ("memory:///patterns", ["s-0.tar", "s-1.tar"])
    assert locate("memory://patterns/*.tar")[1] == names


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("train/a-{2..10}.tar", r"names 9 files, of which .*a-3\.tar is missing"),
        ("train/b-*.tar", "matches no file in .*train"),
        ("train/{0..9999999}.tar", "stands for more than 100,000 names"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(tars: Path, pattern: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        locate(f"{tars}/{pattern}")


def test_brackets_that_are_no_set_stand_for_themselves(tmp_path: Path) -> None:
    folder = write(tmp_path, {"a[z-a]0.tar": b"", "b[]1.tar": b"", "d [1].tar": b""})
    assert locate(f"{folder}/a[z-a]*.tar")[1] == ["a[z-a]0.tar"]
    assert locate(f"{folder}/b[]*.tar")[1] == ["b[]1.tar"]
    assert locate(f"{folder}/d [1].tar")[1] == ["d [1].tar"]


def test_a_pattern_of_buckets_is_refused_before_any_request() -> None:
    for pattern in ("s3://{a,b}/x.tar", "s3://bucket-*/x.tar", "memory://{a,b}.tar"):
        with pytest.raises(InputError, match="the bucket or host must not be part of the pattern"):
            locate(pattern)
