"""Marks of embedding files, as read from a training's manifest."""

from __future__ import annotations

from priorkit.pipeline.contract.file_marks import FileMark, to_json
from priorkit.pipeline.contract.manifest import Manifest
from priorkit.prior.model.train_manifest import RECORD, STAGE, recorded_files

MARKS = {"img_emb/img_emb_0.npy": FileMark(3, "2020-01-01", "a" * 64)}


def test_the_marks_of_a_training_come_back() -> None:
    assert recorded_files(Manifest("train", {}, input={"sha256": "x", "files": to_json(MARKS)})) == MARKS


def test_another_stage_and_a_missing_manifest_record_no_files() -> None:
    assert recorded_files(Manifest("embed", {}, input={"files": to_json(MARKS)})) == {}
    assert recorded_files(Manifest("train", {}, input={"sha256": "x"})) == {}
    assert recorded_files(None) == {}


def test_the_names_on_disk_stay() -> None:
    assert (STAGE, RECORD) == ("train", "prior")
