"""Folders of embeddings: the manifest decides before the names of files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.folder import open_folder


def test_a_manifest_decides_before_file_names(write_embeddings: Callable[..., Path]) -> None:
    folder = write_embeddings([["a", "b"], ["c"]])
    recorded = open_folder(Store(str(folder)))
    assert (recorded.foreign_files, len(recorded.recorded_fingerprint) > 0) == ((), True)
    for path in (folder / "manifest.json", *(folder / "token_states").iterdir()):
        path.unlink()
    foreign = open_folder(Store(str(folder)))
    assert "img_emb/img_emb_0000.npy" in foreign.foreign_files
    assert (foreign.recorded_fingerprint, foreign.about) == ("", {})
    assert [shard.rows for shard in foreign.shards] == [shard.rows for shard in recorded.shards] == [2, 1]


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no embeddings")
    with pytest.raises(InputError, match="holds no result of `priorkit embed`"):
        open_folder(Store(str(tmp_path)))
