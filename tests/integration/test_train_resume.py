"""What may change while a training goes on, what is recorded of it, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.contract import file_marks
from priorkit.pipeline.errors import FolderError, InputError
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.interchange.load import load_prior
from priorkit.prior.train.stage import plan_train, train

from .synthetic import SMALL_TRAIN, changed, write_embeddings

SMALL = changed(SMALL_TRAIN, steps=12, checkpoint_every=3, validate_every=3)
CONSTANT = changed(SMALL, optimiser__decay="constant")
CLIP = ClipSettings(model="ViT-B-32", pretrained="openai")
DIM = 16


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embeddings(tmp_path_factory.mktemp("resume") / "embeddings", rows=300)


def about(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["about"]
    return value


def states(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "state").iterdir()}


def results(folder: Path) -> dict[str, bytes]:
    names = ("model.safetensors", "best.safetensors", "metrics.jsonl", "config.json")
    return {**states(folder), **{name: (folder / name).read_bytes() for name in names}}


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_changes_are_recorded_and_runs_with_the_same_changes_are_bitwise_equal(
    embeddings: Path, tmp_path: Path
) -> None:
    values = {
        "threads": 2, "accumulate": 2, "validate_every": 2, "validation_rows": 5, "validate_draws": 2,
        "validate_steps": 3,
    }  # fmt: skip
    other = changed(SMALL, **values)
    for name, stops in (("once", (6,)), ("often", (3, 6, 7, 11))):
        for stop in stops:
            train(str(embeddings), str(tmp_path / name), other if stop > 6 else SMALL, limit=stop)
        assert train(str(embeddings), str(tmp_path / name), other).done_now == 12 - stops[-1]
    recorded = about(tmp_path / "often")
    assert recorded == about(tmp_path / "once")
    assert recorded["started_with"]["train.threads"] == 1
    assert {change["step"] for change in recorded["changes"]} == {6}
    assert {"step": 6, "name": "train.threads", "from": 1, "to": 2} in recorded["changes"]
    assert {change["name"]: change["to"] for change in recorded["changes"]} == {
        f"train.{name}": value for name, value in values.items()
    }
    once, often = results(tmp_path / "once"), results(tmp_path / "often")
    assert {name: once[name] for name in once if name in often} == {name: often[name] for name in often if name in once}
    assert once["model.safetensors"] == often["model.safetensors"]


def test_a_change_that_came_to_nothing_is_not_recorded(embeddings: Path, tmp_path: Path) -> None:
    train(str(embeddings), str(tmp_path), SMALL, limit=3)
    train(str(embeddings), str(tmp_path), changed(SMALL, threads=2), limit=3)
    assert [change["to"] for change in about(tmp_path)["changes"]] == [2]
    train(str(embeddings), str(tmp_path), SMALL, limit=6)
    assert about(tmp_path)["changes"] == []


def test_what_changes_nothing_is_neither_refused_nor_recorded(embeddings: Path, tmp_path: Path) -> None:
    train(str(embeddings), str(tmp_path / "a"), SMALL, limit=6)
    train(str(embeddings), str(tmp_path / "a"), changed(SMALL, log_every=1, checkpoint_every=5, keep_checkpoints=3))
    train(str(embeddings), str(tmp_path / "b"), SMALL)
    assert about(tmp_path / "a")["changes"] == []
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_a_finished_training_with_a_constant_rate_goes_on(embeddings: Path, tmp_path: Path) -> None:
    short, long = changed(CONSTANT, steps=6, log_every=6), changed(CONSTANT, log_every=6)
    train(str(embeddings), str(tmp_path / "a"), short)
    assert plan_train(str(embeddings), str(tmp_path / "a"), long, ReadSettings()).pending_units == 6
    assert train(str(embeddings), str(tmp_path / "a"), long).done_now == 6
    assert train(str(embeddings), str(tmp_path / "a"), long).done_now == 0
    train(str(embeddings), str(tmp_path / "b"), long)
    assert results(tmp_path / "a") == results(tmp_path / "b")  # validations and log lines are at the same steps
    assert about(tmp_path / "a")["changes"] == [{"step": 6, "name": "train.steps", "from": 6, "to": 12}]


def test_steps_may_be_lowered_to_those_that_are_done(embeddings: Path, tmp_path: Path) -> None:
    train(str(embeddings), str(tmp_path), CONSTANT, limit=6)
    with pytest.raises(InputError, match="its training has not ended, 6 steps are done"):
        load_prior(str(tmp_path))
    assert train(str(embeddings), str(tmp_path), changed(CONSTANT, steps=6)).done_now == 0
    load_prior(str(tmp_path))


def test_a_finished_prior_of_more_steps_has_nothing_to_do(embeddings: Path, tmp_path: Path) -> None:
    train(str(embeddings), str(tmp_path), CONSTANT)
    before, fewer = results(tmp_path), changed(CONSTANT, steps=5)
    assert plan_train(str(embeddings), str(tmp_path), fewer, ReadSettings()).pending_units == 0
    result = train(str(embeddings), str(tmp_path), fewer)
    assert result.done_now == 0
    assert result.notes[-1].endswith("its end, 12 steps, more than train.steps=5: nothing to do")
    assert results(tmp_path) == before
    assert train(str(embeddings), str(tmp_path), CONSTANT).notes == result.notes[:-1]


def test_fewer_steps_than_an_unfinished_training_has_done_are_refused(embeddings: Path, tmp_path: Path) -> None:
    train(str(embeddings), str(tmp_path), CONSTANT, limit=6)
    fewer = changed(CONSTANT, steps=5)
    message = rf"train\.steps=5: .* has done 6 steps already.*--init-from {tmp_path} --prior NEW"
    with pytest.raises(FolderError, match=message):
        train(str(embeddings), str(tmp_path), fewer)
    with pytest.raises(FolderError, match=message):
        plan_train(str(embeddings), str(tmp_path), fewer, ReadSettings())
    assert train(str(embeddings), str(tmp_path), fewer, overwrite=True).done_now == 5


def test_more_steps_of_a_decaying_rate_are_refused_with_the_way_out(embeddings: Path, tmp_path: Path) -> None:
    train(str(embeddings), str(tmp_path), SMALL)
    with pytest.raises(FolderError, match=rf"train\.steps: 12 -> 24.*--init-from {tmp_path} --prior NEW"):
        train(str(embeddings), str(tmp_path), changed(SMALL, steps=24))


def test_more_steps_need_the_last_checkpoint(embeddings: Path, tmp_path: Path) -> None:
    train(str(embeddings), str(tmp_path), changed(CONSTANT, steps=6))
    prior = (tmp_path / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(FolderError, match=r"train\.steps=12: .*checkpoints are gone.*--init-from"):
        train(str(embeddings), str(tmp_path), CONSTANT)
    assert (tmp_path / "model.safetensors").read_bytes() == prior
    assert train(str(embeddings), str(tmp_path), changed(CONSTANT, steps=6)).done_now == 0


def test_overwrite_discards_a_prior_that_was_going_on(embeddings: Path, tmp_path: Path) -> None:
    train(str(embeddings), str(tmp_path), changed(CONSTANT, steps=6))
    train(str(embeddings), str(tmp_path), CONSTANT, limit=9)
    train(str(embeddings), str(tmp_path), changed(CONSTANT, seed=5), limit=3, overwrite=True)
    with pytest.raises(InputError, match="its training has not ended, 3 steps are done"):
        load_prior(str(tmp_path))
    assert about(tmp_path)["changes"] == []


def foreign(folder: Path, seed: int = 0) -> Path:
    """Embeddings as clip-retrieval writes them, old enough to be trusted by their times."""
    random = np.random.default_rng(seed)
    for kind in ("img_emb", "text_emb", "metadata"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for shard in range(2):
        for kind in ("img_emb", "text_emb"):
            rows = random.standard_normal((100, DIM))
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            np.save(folder / kind / f"{kind}_{shard}.npy", rows.astype(np.float16))
        names = [f"{shard}{row:04d}" for row in range(100)]
        pq.write_table(pa.table({"image_path": names, "caption": names}), folder / f"metadata/metadata_{shard}.parquet")
    for path in folder.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    return folder


def go_on(folder: Path, prior: Path, limit: int) -> int:
    return train(str(folder), str(prior), SMALL, clip=CLIP, limit=limit).done_now


def test_foreign_embeddings_that_change_while_a_prior_is_trained_are_noticed(tmp_path: Path) -> None:
    folder, prior = foreign(tmp_path / "foreign"), tmp_path / "prior"
    assert go_on(folder, prior, 3) == 3
    image = folder / "img_emb/img_emb_1.npy"
    kept = image.read_bytes()
    np.save(image, np.load(image)[::-1].copy())
    with pytest.raises(FolderError, match=r"on other embeddings \(200 rows\).*\(200 rows; img_emb/img_emb_1\.npy has"):
        go_on(folder, prior, 6)
    with pytest.raises(FolderError, match=r"img_emb/img_emb_1\.npy has changed"):
        plan_train(str(folder), str(prior), SMALL, ReadSettings(), clip=CLIP)  # before anything is done
    image.write_bytes(kept)
    assert go_on(folder, prior, 6) == 3
    moved = folder.rename(tmp_path / "moved")
    assert go_on(moved, prior, 9) == 3
    shutil.copytree(moved, tmp_path / "copied", copy_function=shutil.copyfile)
    assert go_on(tmp_path / "copied", prior, 12) == 3
    recorded = json.loads((prior / "manifest.json").read_text())["input"]["files"]
    assert len(recorded) == 6
    assert set(recorded["img_emb/img_emb_1.npy"]) == {"bytes", "modified", "sha256"}


def test_a_folder_that_cannot_be_written_to_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, prior = foreign(tmp_path / "foreign"), tmp_path / "prior"
    (folder / "selections").write_bytes(b"in the way of what would be kept")
    plan_train(str(folder), str(prior), SMALL, ReadSettings(), clip=CLIP)
    assert go_on(folder, prior, 3) == 3
    monkeypatch.setattr(file_marks, "_HASHES", file_marks._Hashes())  # as in another process
    monkeypatch.setattr(file_marks, "hash_file", None)  # would fail
    assert go_on(folder, prior, 6) == 3


def test_a_plan_of_a_new_prior_hashes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = foreign(tmp_path / "foreign")
    monkeypatch.setattr(file_marks, "hash_file", None)  # would fail
    plan = plan_train(str(folder), str(tmp_path / "prior"), SMALL, ReadSettings(), clip=CLIP)
    assert plan.pending_units == 12
