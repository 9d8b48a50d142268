"""Faults and notes of a folder of embeddings without a manifest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from priorkit.pipeline.contract.vectors.arrays import ArrayLayout, FileHeader
from priorkit.pipeline.contract.vectors.embeddings import first_files, folder_notes, shard_faults


def array(rows: int, dim: int = 4, dtype: str = "float16") -> FileHeader:
    return FileHeader(rows, dim, 0, "", ArrayLayout(rows, (dim,), np.dtype(dtype), 128), ())


def metadata(rows: int, **kinds: pa.DataType) -> FileHeader:
    return FileHeader(rows, 0, 0, "", None, tuple(kinds), pa.schema(list(kinds.items())))


def faults(files: dict[str, FileHeader], first: dict[str, FileHeader] | None = None) -> list[tuple[str, str]]:
    """Faults of a shard, whose files are named by their kinds, after a first shard `first`."""
    headers = {f"new {kind}": header for kind, header in files.items()}
    headers |= {f"first {kind}": header for kind, header in (first or {}).items()}
    shards = [{kind: f"first {kind}" for kind in first or {}}, {kind: f"new {kind}" for kind in files}]
    return list(shard_faults("x", shards[1], headers, first_files(shards, headers)))


def test_the_first_file_of_each_kind_with_a_header_counts() -> None:
    shards = [{"img_emb": "a"}, {"img_emb": "b", "metadata": "c"}]
    assert first_files(shards, {"b": array(1), "c": array(1)}) == {"img_emb": "b", "metadata": "c"}


def test_a_shard_whose_files_fit_has_no_fault() -> None:
    shard = {"img_emb": array(2), "text_emb": array(2, dtype="float32"), "metadata": metadata(2, key=pa.string())}
    assert faults(shard) == []
    assert faults(shard, first=shard) == []


@pytest.mark.parametrize(
    ("files", "first", "expected"),
    [
        (
            {"img_emb": array(2), "text_emb": array(3)},
            None,
            ("text_emb", "x/new text_emb has 3 rows, new img_emb has 2"),
        ),
        (
            {"img_emb": array(2, 5)},
            {"img_emb": array(2, 4)},
            ("img_emb", "x/new img_emb holds embeddings of 5, first img_emb of 4"),
        ),
        (
            {"img_emb": array(2, 4), "text_emb": array(2, 5)},
            None,
            ("text_emb", "x/new text_emb holds embeddings of 5, new img_emb of 4"),
        ),
        (
            {"metadata": metadata(2, key=pa.string())},
            {"metadata": metadata(2, key=pa.string(), caption=pa.string())},
            ("metadata", "x/new metadata has no column 'caption', though first metadata has; write both alike"),
        ),
        (
            {"metadata": metadata(2, key=pa.string(), caption=pa.string())},
            {"metadata": metadata(2, key=pa.string())},
            ("metadata", "x/first metadata has no column 'caption', though new metadata has; write both alike"),
        ),
        (
            {"metadata": metadata(2, key=pa.list_(pa.int8()))},
            None,
            ("metadata", "x/new metadata: column 'key' holds list<item: int8>, not text"),
        ),
    ],
)
def test_a_fault_names_the_files_and_their_numbers(files: Any, first: Any, expected: tuple[str, str]) -> None:
    assert faults(files, first) == [expected]


def test_captions_of_another_type_are_no_fault() -> None:
    assert faults({"metadata": metadata(2, caption=pa.list_(pa.string()))}) == []


@pytest.mark.parametrize(
    ("numbers", "note"),
    [
        ([0, 1, 2], None),
        ([5], None),
        ([0, 2], "number 1 is missing between the shards 0 and 2"),
        ([0, 3, 5], "numbers 1 to 2, 4 are missing between the shards 0 and 5"),
        ([0, 2, 4, 6, 8, 10, 12], "numbers 1, 3, 5, 7, 9 and others are missing between the shards 0 and 12"),
    ],
)
def test_missing_numbers_are_noted(numbers: list[int], note: str | None) -> None:
    notes = folder_notes({number: {} for number in numbers}, {})
    assert [text.partition(";")[0] for text in notes] == ([] if note is None else [note])


def test_several_types_of_one_kind_are_noted() -> None:
    headers = {"a": array(1), "b": array(1, dtype="float32"), "c": array(1)}
    shards = {number: {"img_emb": name} for number, name in enumerate("abc")}
    (note,) = folder_notes(shards, headers)
    assert note == "files of img_emb are of several types (2 of float16, 1 of float32); all are read as float32"
