"""The status of stages, with folders that are missing, finished, damaged, or of another format."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from priorkit.pipeline.contract.commit import ShardCommit, open_stage
from priorkit.pipeline.contract.manifest import Manifest
from priorkit.pipeline.contract.storage import Store
from priorkit.recipes.recipe import Recipe, load_recipe
from priorkit.recipes.status import StageState, stage_states

NAMES = ("images", "embeddings", "prior", "evaluation")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "urls.csv").write_text("url,caption\nhttp://h/0.jpg,c\n")
    places = [f"folders.{name}={tmp_path / name}" for name in NAMES]
    return load_recipe(None, [f"urls={tmp_path / 'urls.csv'}", *places])


def write_shards(folder: Path | str, stage: str, rows: list[int]) -> None:
    """Commit one shard of one file for each number of rows."""
    store = Store(str(folder))
    with open_stage(store, Manifest(stage, {}, {})) as opened:
        for number, count in enumerate(rows):
            commit = ShardCommit(store, f"{number:04d}", settings=opened.manifest.settings_fingerprint)
            with commit.create(f"{number:04d}.bin") as file:
                file.write(b"content")
            opened.add(commit.commit(rows=count))
        opened.finish()


def states(recipe: Recipe, *, plan_too: bool = False) -> list[str]:
    return [state.state for state in stage_states(recipe, plan_too=plan_too)]


def test_missing_folders_are_not_started(recipe: Recipe, tmp_path: Path) -> None:
    assert stage_states(recipe, plan_too=False) == [
        StageState(stage, str(tmp_path / folder), 0, 0, "not started")
        for stage, folder in zip(("download", "embed", "train", "evaluate"), NAMES, strict=True)
    ]
    assert not (tmp_path / "images").exists()


def test_with_a_recipe_the_remaining_work_is_counted(recipe: Recipe) -> None:
    assert states(recipe, plan_too=True) == ["1 of 1 shards to do", "not started", "not started", "not started"]


def test_shards_and_rows_are_counted(recipe: Recipe, tmp_path: Path) -> None:
    write_shards(tmp_path / "embeddings", "embed", [7, 5])
    write_shards(tmp_path / "prior", "train", [])
    found = stage_states(recipe, plan_too=False)
    assert [(state.shards, state.rows) for state in found] == [(0, 0), (2, 12), (0, 0), (0, 0)]
    assert [state.state for state in found] == ["not started", "there", "unfinished", "not started"]
    assert found[1].to_json() == {
        "stage": "embed", "folder": str(tmp_path / "embeddings"), "shards": 2, "rows": 12, "state": "there",
    }  # fmt: skip


def test_shards_that_lack_files_are_counted(recipe: Recipe, tmp_path: Path) -> None:
    write_shards(tmp_path / "embeddings", "embed", [7, 5, 3])
    (tmp_path / "embeddings/0001.bin").unlink()
    assert states(recipe)[1] == "there; 1 shards lack files and will be done again"


def test_a_stage_that_cannot_be_planned_shows_the_reason(recipe: Recipe, tmp_path: Path) -> None:
    write_shards(tmp_path / "images", "download", [3])
    assert "other settings" in states(recipe, plan_too=True)[0]
    assert states(recipe)[0] == "there"


def test_a_damaged_manifest_is_the_status(recipe: Recipe, tmp_path: Path) -> None:
    for folder, text in (("images", "{ not json"), ("embeddings", json.dumps({"format_version": 99}))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "manifest.json").write_text(text)
    found = states(recipe)
    assert "is not JSON" in found[0]
    assert "format version 99" in found[1]
    assert found[2:] == ["not started"] * 2


def test_requests_do_not_grow_with_the_number_of_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = []
    for method in ("info", "ls"):
        original = getattr(MemoryFileSystem, method)

        def counted(self: MemoryFileSystem, *args: Any, _original: Any = original, **options: Any) -> Any:
            answered.append(args)
            return _original(self, *args, **options)

        monkeypatch.setattr(MemoryFileSystem, method, counted)
    numbers = []
    for shards in (2, 20):
        url = f"memory://{uuid.uuid4().hex}"
        write_shards(f"{url}/images", "download", [2] * shards)
        answered.clear()
        stage_states(load_recipe(None, [f"folders.{name}={url}/{name}" for name in NAMES]), plan_too=False)
        numbers.append(len(answered))
    assert numbers[0] == numbers[1]
