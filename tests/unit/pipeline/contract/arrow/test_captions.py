"""Captions in columns of any type that holds text."""

from __future__ import annotations

import pyarrow as pa
import pytest

from priorkit.pipeline.contract.arrow.captions import captions_of, holds_captions

TEXT = ["a", None, "ü"]
LISTS = [["a", None, "b"], None, [], ["c"]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(TEXT),
        pa.array(TEXT, pa.large_string()),
        pa.array(TEXT, pa.string_view()),
        pa.array(TEXT).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_text_is_one_caption_a_row(column: pa.Array) -> None:
    assert holds_captions(column.type)
    assert captions_of(pa.chunked_array([column, column[:1]])) == [(b"a",), (), ("ü".encode(),), (b"a",)]


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string_view())],
    ids=str,
)
def test_a_list_is_several_captions(kind: pa.DataType) -> None:
    column = pa.array(LISTS, kind)
    assert holds_captions(kind)
    expected = [(b"a", b"b"), (), (), (b"c",)]
    assert captions_of(pa.chunked_array([column])) == expected
    assert captions_of(pa.chunked_array([column[2:], column[:2]])) == expected[2:] + expected[:2]


def test_lists_of_one_size_and_nulls_are_read() -> None:
    pairs = pa.array([["a", "b"], None, ["c", None]], pa.list_(pa.string(), 2))
    assert captions_of(pa.chunked_array([pairs])) == [(b"a", b"b"), (), (b"c",)]
    assert captions_of(pa.chunked_array([pa.nulls(2)])) == [(), ()]
    assert captions_of(pa.chunked_array([pa.array([[None], []])])) == [(), ()]


def test_text_that_is_not_utf8_is_kept() -> None:
    column = pa.array([b"\xff"]).view(pa.string())
    assert captions_of(pa.chunked_array([column])) == [(b"\xff",)]


OTHERS = [pa.int64(), pa.binary(), pa.list_(pa.int8()), pa.struct([("a", pa.string())])]


@pytest.mark.parametrize("kind", OTHERS, ids=str)
def test_other_columns_hold_no_captions(kind: pa.DataType) -> None:
    assert not holds_captions(kind)
