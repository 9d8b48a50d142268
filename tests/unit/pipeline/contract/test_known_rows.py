"""Rows of tables, joined to samples by key and order."""

from __future__ import annotations

import pyarrow as pa
import pytest

from priorkit.pipeline.contract.known_rows import join_rows, match_keys
from priorkit.pipeline.contract.samples import Place
from priorkit.pipeline.errors import InputError


@pytest.mark.parametrize(
    ("stored", "keys", "rows"),
    [
        (["a", "b"], ["b", "a"], [1, 0]),
        (["a", "b", "a"], ["a", "a", "b"], [0, 2, 1]),
        (["a"], ["a", "a"], [0, 0]),
        ([None, "a"], ["a", "b"], [1, None]),
        (["cat/0", "dog/0"], ["dog/0", "cat/0"], [1, 0]),
        (["0", "0"], ["cat/0", "dog/0"], [0, 1]),
        (["7", "10"], ["00010", "x/0007"], [1, 0]),
        (["00", "0"], ["0", "00"], [1, 0]),
    ],
)
def test_keys_are_matched_to_rows(stored: list[str | None], keys: list[str], rows: list[int | None]) -> None:
    assert match_keys(stored, keys, "t") == rows


def test_a_row_that_matches_samples_of_two_folders_is_refused() -> None:
    with pytest.raises(InputError, match="may be that of 'cat/0' or of 'dog/0'; store keys with their folders"):
        match_keys(["0"], ["cat/0", "dog/0"], "t")


def test_keys_are_matched_within_each_part_and_count_failed_samples() -> None:
    tables = [pa.table({"key": ["a", "b"], "n": [1, 2]}), None, pa.table({"n": [3, 4, 5], "key": ["a", "a", "b"]})]
    failed = (Place(2, 4), "a")
    rows = [(Place(0, 0), "a"), (Place(1, 2), "a"), (Place(2, 6), "b"), (Place(2, 5), "a")]
    found = join_rows(tables, [failed, *rows], rows, "t")
    assert found.column("n").to_pylist() == [1, None, 5, 4]


def test_a_sample_without_a_row_and_tables_of_other_types_are_refused() -> None:
    place = (Place(), "x")
    with pytest.raises(InputError, match="the table of t has no row of key 'x'"):
        join_rows([pa.table({"key": ["a"]})], [place], [place], "t")
    tables = [pa.table({"key": ["x"], "n": [1]}), pa.table({"key": ["x"], "n": ["1"]})]
    with pytest.raises(InputError, match="the tables of t do not fit together"):
        join_rows(tables, [place], [place], "t")
