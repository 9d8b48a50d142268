"""Names of embedding files, and the shards that they form."""

from __future__ import annotations

import pytest

from priorkit.pipeline.contract.embedding_files import group_files, missing_kinds, pair_files, recorded_files
from priorkit.pipeline.contract.hashing import FileRecord
from priorkit.pipeline.contract.manifest import ShardRecord
from priorkit.pipeline.errors import InputError


def test_files_are_paired_by_number_whatever_its_digits() -> None:
    names = [
        "img_emb/img_emb_10.npy", "img_emb/img_emb_0002.npy", "metadata/metadata_2.parquet",
        "metadata/metadata_10.parquet", "notes.txt", "images/photo.png",
    ]  # fmt: skip
    pairs = pair_files(names, "x")
    assert list(pairs) == [2, 10]
    assert pairs[2] == {"img_emb": "img_emb/img_emb_0002.npy", "metadata": "metadata/metadata_2.parquet"}


def test_folders_of_laion_have_their_own_names() -> None:
    names = ["images/img_emb_0.npy", "texts/text_emb_0.npy", "laion2B-en-metadata/metadata_0.parquet"]
    assert pair_files(names, "x") == {0: {"img_emb": names[0], "text_emb": names[1], "metadata": names[2]}}
    assert pair_files(names[:1], "x") == {0: {"img_emb": names[0]}}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["img_emb/img_emb_0.npy", "img_emb/img_emb_00.npy"], "have the same number"),
        (["img_emb/img_emb_a.npy"], "is not named as img_emb/img_emb_0.npy is"),
        (["text_emb/text_emb_7.npy"], r"x/img_emb/img_emb_7\.npy is missing, though there is text_emb/text_emb_7\.npy"),
        (
            ["img_emb/img_emb_0.npy", "img_emb/img_emb_1.npy", "text_emb/text_emb_1.npy"],
            r"x/text_emb/text_emb_0\.npy is missing",
        ),
    ],
)
def test_a_file_that_fits_no_shard_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pair_files(names, "x")


def test_grouping_reports_all_faults_and_goes_on() -> None:
    faults: list[str] = []
    names = ["img_emb/img_emb_0.npy", "img_emb/img_emb_00.npy", "img_emb/other.npy", "text_emb/text_emb_3.npy"]
    groups = group_files(names, "x", faults.append)
    assert groups == {0: {"img_emb": names[0]}, 3: {"text_emb": names[3]}}
    assert len(faults) == 2


def test_missing_kinds_are_named_with_the_digits_of_the_others() -> None:
    (fault,) = missing_kinds({"img_emb": "img_emb/img_emb_007.npy"}, ["img_emb", "metadata"], "x")
    assert fault.startswith("x/metadata/metadata_007.parquet is missing")


def test_recorded_files_are_those_of_the_record_by_kind() -> None:
    names = ["img_emb/img_emb_0001.npy", "token_states/offsets_0001.npy", "img_emb/img_emb_0002.npy"]
    record = ShardRecord("0001", 1, "", "", {name: FileRecord(1, "") for name in names})
    assert recorded_files(record) == {"img_emb": names[0], "offsets": names[1]}
