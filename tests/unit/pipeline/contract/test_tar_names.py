"""Names of tars, and the shard numbers that they get."""

from __future__ import annotations

import random

import pytest

from priorkit.pipeline.contract.tar_names import is_tar, natural_key, number_tars, tar_stem, unpack_command


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("00000.tar", "00000"), ("a/b.c-3.TAR.GZ", "a/b.c-3"), ("x.tgz", "x"), ("my shard.tar.zst", "my shard"),
        ("tar.tar", "tar"),
    ],
)  # fmt: skip
def test_tars_are_known_by_their_extension(name: str, stem: str) -> None:
    assert is_tar(name)
    assert tar_stem(name) == stem
    assert not is_tar(f"{name}.idx")
    assert not is_tar("targz")


def test_numbers_in_names_are_ordered_by_value() -> None:
    names = ["2.tar", "a-1-10.tar", "a-2-9.tar", "a-2-10.tar", "a-02-10.tar", "b/1.tar"]
    shuffled = random.Random(0).sample(names, len(names))
    ordered = ["2.tar", "a-1-10.tar", "a-2-9.tar", "a-02-10.tar", "a-2-10.tar", "b/1.tar"]
    assert sorted(shuffled, key=natural_key) == ordered


@pytest.mark.parametrize(
    ("names", "numbered"),
    [
        (["00012.tar", "3.tar.gz"], [("3", "3.tar.gz"), ("00012", "00012.tar")]),
        (["t-10.tar", "t-9.tar"], [("00000", "t-9.tar"), ("00001", "t-10.tar")]),
        (["0.tar", "00.tar"], [("00000", "0.tar"), ("00001", "00.tar")]),
        (["7.tar", "x.tar"], [("00000", "7.tar"), ("00001", "x.tar")]),
        (["d/7.tar"], [("00000", "d/7.tar")]),
        ([], []),
    ],
)
def test_tars_are_numbered_by_name_or_in_order(names: list[str], numbered: list[tuple[str, str]]) -> None:
    assert sorted(number_tars(names)) == sorted(numbered)
    assert [int(number) for number, _ in number_tars(names)] == sorted(int(number) for number, _ in numbered)


def test_a_name_in_order_keeps_its_number_when_names_follow() -> None:
    names = [f"cc12m-train-{number:04d}.tar" for number in range(12)]
    for count in range(1, len(names)):
        assert number_tars(names)[:count] == number_tars(names[:count])


def test_compressions_that_are_not_read_have_a_command() -> None:
    assert unpack_command("a.tar.xz") == "unxz"
    assert unpack_command("a.tar", b"\x28\xb5\x2f\xfd..") == "unzstd"
    assert unpack_command("a.tar.gz", b"\x1f\x8b") is None
    assert unpack_command("a.tar") is None
