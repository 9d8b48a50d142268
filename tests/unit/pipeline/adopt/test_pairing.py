"""Pairing of files by name or number, never by order."""

from __future__ import annotations

import pytest

from priorkit.pipeline.adopt.pairing import pair
from priorkit.pipeline.errors import InputError


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["img_emb/img_emb_0.npy", "img_emb/img_emb_1.npy"], ["text_emb/text_emb_0.npy", "text_emb/text_emb_1.npy"]),
        (["images/part-3.npy", "images/part-10.npy"], ["texts/part-3.npy", "texts/part-10.npy"]),
        (["p0/img_emb/img_emb_0.npy", "p1/img_emb/img_emb_0.npy"], ["p0/text_emb/text_emb_0.npy",
                                                                     "p1/text_emb/text_emb_0.npy"]),
        (["images/img_emb_0000.npy", "images/img_emb_0001.npy"], ["laion2B-en-metadata/metadata_0000.parquet",
                                                                  "laion2B-en-metadata/metadata_0001.parquet"]),
        (["a/00ff.npz", "a/ff00.npz"], ["a/00ff.parquet", "a/ff00.parquet"]),
        (["one.npy"], ["other.parquet"]),
    ],
)  # fmt: skip
def test_files_with_one_name_or_one_number_are_paired(first: list[str], second: list[str]) -> None:
    expected = dict(zip(first, second, strict=True))
    assert pair(first, second, "source", "folder") == expected
    assert pair(first[::-1], second, "source", "folder") == expected


def test_a_missing_file_is_named_and_nothing_shifts() -> None:
    first = [f"img_emb/img_emb_{at}.npy" for at in range(3)]
    second = ["text_emb/text_emb_0.npy", "text_emb/text_emb_2.npy"]
    with pytest.raises(InputError, match=r"img_emb/img_emb_1\.npy has no partner among the source files of folder"):
        pair(first, second, "source", "folder")
    with pytest.raises(InputError, match=r"folder/img_emb/img_emb_1\.npy has no partner"):
        pair(second, first, "source", "folder")


def test_files_without_common_names_or_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="give each pair of files one name or one number"):
        pair(["a/x.npy", "a/y.npy"], ["b/u.npy", "b/v.npy"], "source", "folder")
    with pytest.raises(InputError, match="cannot be paired"):
        pair(["a/x.npy", "a/y.npy"], ["b/u.npy"], "source", "folder")
