"""Rows of tables, joined to samples by key and order."""

from __future__ import annotations

import pyarrow as pa
import pytest

from priorkit.pipeline.contract.known_rows import RowCaptions, join_rows, match_keys
from priorkit.pipeline.contract.samples import Place, Sample
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


def test_each_caption_of_a_sample_has_its_own_row_and_a_failed_sample_has_none() -> None:
    table = pa.table({"key": ["a", "b", "a", "a"], "n": [1, 2, 3, 4]})
    tables = [None, table]
    samples = [(Place(1, 5), "a"), (Place(1, 6), "b")]
    rows = [(Place(1, 5, 0), "a"), (Place(1, 5, 1), "a"), (Place(1, 5, 2), "a"), (Place(1, 6), "b")]
    found = join_rows(tables, [*rows, *samples], rows, "t")
    assert found.column("n").to_pylist() == [1, 3, 4, 2]


def test_captions_without_rows_of_their_own_share_a_row() -> None:
    rows = [(Place(0, 5), "a"), (Place(0, 5), "a"), (Place(0, 6), "a")]
    assert join_rows([pa.table({"key": ["a", "a"], "n": [1, 2]})], rows, rows, "t").column("n").to_pylist() == [1, 1, 2]


def test_row_captions_are_matched_by_any_form_of_the_key() -> None:
    captions = RowCaptions(["7", "x/8", None], [(b"a", b"b"), (b"c",), (b"d",)], {}, "t.parquet")
    seven = captions.add_to(Sample("cat/0007", b"1", b"old", other_captions=(b"older",)))
    assert (seven.captions, seven.caption_rows) == ((b"a", b"b"), ())
    assert captions.add_to(Sample("x/8", None, None)).captions == (b"c",)
    missing = captions.add_to(Sample("9", b"1", b"old"))
    assert (missing.captions, missing.instead) == ((), "t.parquet has no row of key '9'")
    broken = Sample("7", None, None, "damaged_shard: x")
    assert captions.add_to(broken) is broken
