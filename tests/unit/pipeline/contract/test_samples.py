"""Samples and the messages about their files."""

from __future__ import annotations

import os

from priorkit.pipeline.contract.samples import Place, Sample, encodable, name_extensions


def test_places_are_ordered_by_part_and_then_by_position() -> None:
    assert sorted([Place(1, 0), Place(0, 9), Place(0, 2)]) == [Place(0, 2), Place(0, 9), Place(1, 0)]


def test_samples_are_equal_by_content_wherever_they_are() -> None:
    assert Sample("a", b"1", None, place=Place(1, 2)) == Sample("a", b"1", None, instead="x")
    assert Sample("a", b"1", None) != Sample("a", b"1", b"")


def test_a_name_that_is_not_utf8_is_escaped() -> None:
    assert encodable("größe.jpg") == "größe.jpg"
    assert encodable(os.fsdecode(b"a\xff.jpg")) == "a\\udcff.jpg"


def test_five_extensions_are_named() -> None:
    assert name_extensions("abcde").startswith("the sample has .a, .b, .c, .d, .e;")
    assert name_extensions("abcdef").startswith("the sample has .a, .b, .c, .d, .e, ...;")
