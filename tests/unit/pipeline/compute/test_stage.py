"""Runs of a stage shard by shard, and checks of disk space and success."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.compute.stage import (
    StagePlan,
    StageResult,
    free_bytes,
    require_space,
    require_success,
    run_shards,
)
from priorkit.pipeline.contract.commit import ShardCommit, open_stage
from priorkit.pipeline.contract.manifest import Manifest, ShardRecord
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed import stage as embedding
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.errors import FolderError, InputError

PLAN = StagePlan("embed", "data/embeddings", 3, 3, "shards", 30_000, 2_000_000_000, 1_500_000_000, 60.0)


def test_too_little_space_is_refused_with_both_numbers() -> None:
    with pytest.raises(
        FolderError, match=r"data/embeddings: .* about 2,000\.0 MB, and the disk has 1,500\.0 MB free; .*--limit"
    ):
        require_space(PLAN)


@pytest.mark.parametrize("free", [None, 2_000_000_000])
def test_enough_space_and_object_stores_are_accepted(free: int | None) -> None:
    require_space(dataclasses.replace(PLAN, bytes_free=free))


def test_embed_checks_the_disk_before_it_changes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "a.txt").write_text("a caption")
    settings = EmbedSettings.model_validate({"clip": {"model": "priorkit:demo"}, "image": False})
    monkeypatch.setattr(embedding, "free_bytes", lambda store: 10)
    with pytest.raises(FolderError, match="the disk has"):
        embedding.embed(str(tmp_path / "pairs"), str(tmp_path / "out"), settings)
    assert not (tmp_path / "out").exists()


def run(store: Store, inputs: dict[str, str], reports: list[tuple[int, int | None, str]]) -> StageResult:
    """Run a stage whose shards have one row each."""

    def work(task: str, following: str | None) -> ShardRecord:
        commit = ShardCommit(store, task, input=inputs[task], settings=folder.manifest.settings_fingerprint)
        with commit.create(f"{task}.bin") as file:
            file.write(inputs[task].encode())
        return commit.commit(rows=1, counts={"success": 1})

    def report(done: int, total: int | None, note: str) -> None:
        reports.append((done, total, note))

    with open_stage(store, Manifest("download", {}, {})) as folder:
        return run_shards(folder, lambda names: names, inputs, lambda: work, ComputeSettings(), report)


def test_only_pending_shards_are_done(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    reports: list[tuple[int, int | None, str]] = []
    first = run(store, {"0": "a", "1": "b"}, reports)
    assert (first.units, first.done_now, first.rows, first.counts) == (2, 2, 2, {"success": 2})
    assert reports == [(0, 2, ""), (1, 2, "1 rows"), (2, 2, "2 rows")]
    reports.clear()
    second = run(store, {"0": "a", "1": "new", "2": "c"}, reports)
    assert (second.units, second.done_now, second.rows) == (3, 2, 3)
    assert reports == [(1, 3, ""), (2, 3, "2 rows"), (3, 3, "3 rows")]
    assert (tmp_path / "1.bin").read_bytes() == b"new"


def test_a_stage_without_success_names_the_outcomes_by_their_number() -> None:
    result = StageResult("download", "data/images", 1, 1, "shards", 1203, 1.0, {"http_4xx": 3, "timeout": 1200})
    with pytest.raises(InputError, match=r"^data/images: no row gave an image \(1,200 timeout, 3 http_4xx\); slow\."):
        require_success(result, "an image", "slow")
    with pytest.raises(InputError, match=r"no row gave an image, because the input has none; name another input"):
        require_success(dataclasses.replace(result, counts={}), "an image")
    require_success(dataclasses.replace(result, counts={"success": 1, "timeout": 5}), "an image")


def test_free_space_is_known_for_local_folders_only(tmp_path: Path) -> None:
    assert free_bytes(Store(str(tmp_path / "not/yet"))) == pytest.approx(free_bytes(Store(str(tmp_path))), rel=0.1)
    assert free_bytes(Store("memory://x")) is None
