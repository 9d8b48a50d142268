"""The plan of embed: limits, shards that are done, estimates, and the CLIP of a folder."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from priorkit.pipeline.clip.encoder import clip_cost, clip_source, load_encoder
from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.compute.stage import StageResult
from priorkit.pipeline.contract.commit import ShardCommit, open_stage
from priorkit.pipeline.contract.manifest import Manifest, ShardRecord, fingerprint
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed.estimate import SHARD_BYTES, Measured, estimate_bytes, estimate_seconds
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import (
    _compare_counts,
    _first_failure,
    _notes,
    _plan,
    _record_clip,
    embed_manifest,
    plan_embed,
    plan_tasks,
)
from priorkit.pipeline.embed.worker import failures_name
from priorkit.pipeline.errors import FolderError, InputError

from .conftest import write_tar

SETTINGS = EmbedSettings(device="cpu", threads=1)


@pytest.fixture
def images(tmp_path: Path) -> str:
    """A downloaded folder with three shards of two samples."""
    store = Store(str(tmp_path / "images"))
    with open_stage(store, Manifest("download", {}, {})) as folder:
        for number in range(3):
            name = f"{number:05d}"
            write_tar(tmp_path / "tar", 10 * number, 2)
            commit = ShardCommit(store, name, settings=folder.manifest.settings_fingerprint)
            with commit.create(f"{name}.tar") as file:
                file.write((tmp_path / "tar").read_bytes())
            folder.add(commit.commit(rows=2, counts={"success": 2}))
        folder.finish()
    return str(tmp_path / "images")


def limits(images: str, out: Path, limit: int | None, *records: ShardRecord) -> dict[str, int | None]:
    found = Manifest("embed", {}, {}, shards={record.name: record for record in records}) if records else None
    tasks, _ = plan_tasks(images, SETTINGS, limit, found, Store(str(out)))
    return {task.name: task.limit for task in tasks}


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, {"0000": None, "0001": None, "0002": None}),
        (0, {}),
        (1, {"0000": 1}),
        (2, {"0000": None}),
        (3, {"0000": None, "0001": 1}),
        (100, {"0000": None, "0001": None, "0002": None}),
    ],
)
def test_a_limit_selects_the_first_samples(
    images: str, tmp_path: Path, limit: int | None, expected: dict[str, int | None]
) -> None:
    assert limits(images, tmp_path / "out", limit) == expected


def record(images: str, name: str, samples: int | None, **counts: int) -> ShardRecord:
    """Record the first samples of a shard as embedded."""
    tasks, inputs = plan_tasks(images, SETTINGS, None, None, Store(f"{images}/none"))
    (shard,) = (task.shard for task in tasks if task.name == name)
    return ShardRecord(name, counts.get("success", 0), inputs.fingerprint(shard, samples), "", {}, counts)


def test_embedded_shards_are_kept_beyond_the_limit(images: str, tmp_path: Path) -> None:
    whole = record(images, "0001", None, success=2)
    assert limits(images, tmp_path / "out", 1, whole) == {"0000": 1, "0001": None}
    first = record(images, "0001", 1, missing_caption=1)
    assert limits(images, tmp_path / "out", 1, first) == {"0000": 1, "0001": 1}
    assert limits(images, tmp_path / "out", 4, first) == {"0000": None, "0001": None}
    other = ShardRecord("0001", 2, "of other images", "", {}, {"success": 2})
    assert limits(images, tmp_path / "out", 1, other) == {"0000": 1}


def test_embedded_samples_with_several_captions_are_kept_beyond_the_limit(images: str, tmp_path: Path) -> None:
    first = dataclasses.replace(record(images, "0001", 1, success=5), samples=1)
    assert limits(images, tmp_path / "out", 1, first) == {"0000": 1, "0001": 1}


def test_a_shard_that_the_input_does_not_have_is_refused(images: str, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"out holds shard 0007, for which .*images has no input"):
        limits(images, tmp_path / "out", None, ShardRecord("0007", 1, "", "", {}), ShardRecord("0009", 1, "", "", {}))


def test_a_plan_estimates_the_space_of_what_is_pending(images: str, tmp_path: Path) -> None:
    store, manifest = Store(str(tmp_path / "out")), Manifest("embed", {}, {})
    tasks, _ = plan_tasks(images, SETTINGS, 3, None, store)
    plan = _plan(store, SETTINGS, manifest, tasks, None)
    assert (plan.units, plan.pending_units, plan.pending_rows) == (2, 2, 3)
    assert plan.bytes_needed == int(3 * estimate_bytes(SETTINGS)) + 2 * SHARD_BYTES
    assert _plan(store, SETTINGS, manifest, tasks, Measured(0.5, 1000)).bytes_needed == 3000


def test_the_measured_rate_replaces_the_estimate(images: str, tmp_path: Path) -> None:
    """The rate is that of one worker; several divide the time."""
    settings, out = SETTINGS.model_copy(update={"clip": ClipSettings(model="priorkit:demo")}), tmp_path / "out"
    plan = plan_embed(images, str(out), settings)
    assert plan.time_basis == "estimate"
    assert plan.seconds == pytest.approx(6 * estimate_seconds(settings, clip_cost(settings.clip)))
    assert plan.notes == []
    assert plan.to_json()["time_basis"] == "estimate"
    tasks, _ = plan_tasks(images, settings, None, None, Store(str(out)))
    with open_stage(Store(str(out)), embed_manifest(settings, None)) as folder:
        commit = ShardCommit(folder.store, "0000", input=tasks[0].input, settings=folder.manifest.settings_fingerprint)
        with commit.create("img_emb/img_emb_0000.npy") as file:
            file.write(bytes(300))
        commit.write_log("stats/stats_0000.json", {"seconds": 5.0})
        folder.add(commit.commit(rows=2, counts={"success": 2}))
        folder.finish()
    plan = plan_embed(images, str(out), settings)
    assert (plan.pending_units, plan.time_basis) == (2, "measured")
    assert (plan.seconds, plan.bytes_needed) == (pytest.approx(10.0), 600)
    assert plan_embed(images, str(out), settings, overwrite=True).time_basis == "estimate"


def test_a_plan_says_that_the_size_of_the_clip_is_not_known(images: str, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pt")
    model = f"openai_clip:{tmp_path / 'w.pt'}"
    settings = SETTINGS.model_copy(update={"clip": ClipSettings(model=model)})
    plan = plan_embed(images, str(tmp_path / "out"), settings)
    assert plan.seconds == pytest.approx(6 * estimate_seconds(settings, None))
    (note,) = plan.notes
    assert note.startswith(f"the time is estimated for a ViT-L/14, because the size of embed.clip.model={model} is not")


def test_planning_does_nothing(images: str, tmp_path: Path) -> None:
    demo = SETTINGS.model_copy(update={"clip": ClipSettings(model="priorkit:demo")})
    assert plan_embed(images, str(tmp_path / "out"), demo, limit=1).pending_rows == 1
    assert not (tmp_path / "out").exists()


def test_a_plan_refuses_a_model_that_does_not_exist(images: str, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"clip": ClipSettings(model="ViT-B-33", pretrained="openai")})
    with pytest.raises(InputError, match="ViT-B-33: open_clip has no such model; nearest: ViT-B-32"):
        plan_embed(images, str(tmp_path / "out"), settings)


def result(images: str, tmp_path: Path, processed: int | None = None, **counts: int) -> StageResult:
    tasks, _ = plan_tasks(images, SETTINGS, 3, None, Store(str(tmp_path / "out")))
    result = StageResult("embed", "out", 2, 2, "shards", 0, 1.0, counts)
    return _compare_counts(result, tasks, sum(counts.values()) if processed is None else processed)


def test_fewer_outcomes_than_samples_are_an_error_unless_a_shard_is_damaged(images: str, tmp_path: Path) -> None:
    assert result(images, tmp_path, success=2, missing_image=1).statistics == {"input_samples": 3}
    assert result(images, tmp_path, success=1, damaged_shard=1).statistics == {"input_samples": 3}
    with pytest.raises(InputError, match="accounts for 2 of the 3 samples of its input"):
        result(images, tmp_path, success=2)
    with pytest.raises(InputError, match="accounts for 2 of the 3 samples of its input"):
        result(images, tmp_path, processed=2, success=10)  # five captions per image


def test_the_most_frequent_failure_is_shown(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    rows = [("a", "missing_image: none"), ("b", "image_decode: bad"), ("c", "image_decode: worse")]
    table = pa.table({"key": [key for key, _ in rows], "error": [error for _, error in rows]})
    (tmp_path / "failures").mkdir()
    pq.write_table(table, tmp_path / failures_name("0001"))
    counts = {"missing_image": 1, "image_decode": 2}
    shards = {"0000": ShardRecord("0000", 0, "", "", {}), "0001": ShardRecord("0001", 0, "", "", {}, counts)}
    manifest = Manifest("embed", {}, {}, shards=shards)
    assert _first_failure(store, manifest, counts) == "sample 'b': image_decode: bad"
    assert _first_failure(store, Manifest("embed", {}, {}), {}) == ""


def renamed(tiny_clip: Path, folder: Path) -> ClipSettings:
    """Copy the tiny CLIP, with its weights under another name."""
    shutil.copytree(tiny_clip, folder)
    (folder / "open_clip_model.safetensors").rename(folder / "model.safetensors")
    return ClipSettings(model=f"local-dir:{folder}")


def test_a_manifest_keeps_the_name_of_a_clip_that_is_the_same(
    tiny_clip: Path, tmp_path: Path, embed_settings: EmbedSettings
) -> None:
    new = embed_manifest(embed_settings, None)
    assert new.settings == {**embed_settings.identity(), "clip": clip_source(embed_settings.clip)}
    copy = embed_settings.model_copy(update={"clip": renamed(tiny_clip, tmp_path / "copy")})
    assert embed_manifest(copy, None).settings["clip"] != new.settings["clip"]
    new.about["clip"] = load_encoder(embed_settings.encoder_settings()).identity
    with open_stage(Store(str(tmp_path / "out")), new):
        pass
    assert embed_manifest(copy, Store(str(tmp_path / "out"))).settings == new.settings
    other = embed_settings.model_copy(update={"clip": copy.clip.model_copy(update={"quick_gelu": True})})
    assert embed_manifest(other, Store(str(tmp_path / "out"))).settings["clip"] == clip_source(other.clip)


def test_a_folder_of_shards_refuses_another_clip(tmp_path: Path, embed_settings: EmbedSettings) -> None:
    quick = embed_settings.clip.model_copy(update={"quick_gelu": True})
    other = embed_settings.model_copy(update={"clip": quick})
    with open_stage(Store(str(tmp_path / "out")), Manifest("embed", {}, {})) as folder:
        _record_clip(folder, embed_settings)
        assert folder.manifest.about["clip"]["activation"] == "gelu"
        assert folder.manifest.about["clip_settings"]["model"] == embed_settings.clip.model
        _record_clip(folder, other)  # without shards nothing depends on the first CLIP
        assert folder.manifest.about["clip"]["activation"] == "quick_gelu"
        folder.add(ShardRecord("0000", 1, "", "", {}))
        with pytest.raises(FolderError, match=r"made with another CLIP \(activation: 'quick_gelu' -> 'gelu'\)"):
            _record_clip(folder, embed_settings)


def test_the_input_of_a_task_is_the_fingerprint_of_its_first_samples(images: str, tmp_path: Path) -> None:
    tasks, _ = plan_tasks(images, SETTINGS, 3, None, Store(str(tmp_path / "out")))
    assert tasks[0].input == tasks[0].shard.fingerprint
    assert tasks[1].input == fingerprint([tasks[1].shard.fingerprint, 1])


def test_notes_name_tars_that_are_not_sorted_and_shards_of_other_files() -> None:
    assert _notes({"success": 3}, []) == []
    (note,) = _notes({"success": 3, "not_together": 1_000}, [])
    assert note.startswith("1,000 samples: the files of a sample do not stand together; ")
    (note,) = _notes({}, ["0002", "0003"])
    assert note.startswith("2 shards, from 0002 on, had been made from other files and were embedded again")
