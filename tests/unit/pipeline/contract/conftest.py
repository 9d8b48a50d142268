"""Small folders of a stage, and an object store whose requests are counted."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from priorkit.pipeline.contract.commit import ShardCommit, StageFolder, open_stage
from priorkit.pipeline.contract.manifest import Manifest, ShardRecord
from priorkit.pipeline.contract.storage import Store

SETTINGS = {"size": 32, "clip": {"model": "tiny"}}


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "folder") if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def planned(stage: str = "download", settings: dict[str, Any] | None = None) -> Manifest:
    return Manifest(stage, dict(SETTINGS if settings is None else settings), {"rows": 4})


def write_shard(folder: StageFolder, name: str, data: bytes = b"data", input: str = "in") -> ShardRecord:
    """Commit a shard like a worker."""
    commit = ShardCommit(folder.store, name, input=input, settings=folder.manifest.settings_fingerprint)
    with commit.create(f"{name}.tar") as file:
        file.write(data)
    commit.write_log(f"{name}_stats.json", {"seconds": 1.5})
    return commit.commit(rows=2, counts={"success": 1, "http_4xx": 1})


def two_shards(store: Store) -> None:
    with open_stage(store, planned()) as folder:
        for name in ("00000", "00001"):
            folder.add(write_shard(folder, name))
        folder.finish()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Requests for listings and for single files that a `memory://` store has answered, as names of methods."""
    answered: list[str] = []
    for method in ("info", "ls"):
        original = getattr(MemoryFileSystem, method)

        def counted(
            self: MemoryFileSystem, *args: Any, _name: str = method, _original: Any = original, **options: Any
        ) -> Any:
            answered.append(_name)
            return _original(self, *args, **options)

        monkeypatch.setattr(MemoryFileSystem, method, counted)
    return answered
