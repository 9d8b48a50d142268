"""Checks of disk space."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from priorkit.pipeline.compute.stage import StagePlan, require_space
from priorkit.pipeline.embed import stage as embedding
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.errors import FolderError

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
