"""States of a recipe's stages."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from priorkit.pipeline.contract.commit import ShardCommit, open_stage
from priorkit.pipeline.contract.manifest import Manifest
from priorkit.pipeline.contract.storage import Store
from priorkit.recipes.recipe import Recipe
from priorkit.recipes.status import stage_states


def write_shards(url: str, count: int) -> Store:
    store = Store(url)
    with open_stage(store, Manifest("download", {}, {})) as folder:
        for number in range(count):
            commit = ShardCommit(store, f"{number:05d}", settings=folder.manifest.settings_fingerprint)
            with commit.create(f"{number:05d}.tar") as file:
                file.write(b"data")
            folder.add(commit.commit(rows=2))
        folder.finish()
    return store


def recipe(url: str) -> Recipe:
    names = ("images", "embeddings", "prior", "evaluation")
    return Recipe.model_validate({"folders": {name: f"{url}/{name}" for name in names}})


def test_a_shard_without_its_file_is_counted_as_damaged() -> None:
    url = f"memory://{uuid.uuid4().hex}"
    store = write_shards(f"{url}/images", 3)
    images, embeddings, *_ = stage_states(recipe(url), plan_too=False)
    assert (images.stage, images.shards, images.rows, images.state) == ("download", 3, 6, "there")
    assert (embeddings.shards, embeddings.state) == (0, "not started")
    store.remove("00001.tar")
    images, *_ = stage_states(recipe(url), plan_too=False)
    assert images.state == "there; 1 shards lack files and will be done again"


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
        write_shards(f"{url}/images", shards)
        answered.clear()
        stage_states(recipe(url), plan_too=False)
        numbers.append(len(answered))
    assert numbers[0] == numbers[1]
