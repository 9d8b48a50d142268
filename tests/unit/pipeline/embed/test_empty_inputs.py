"""Folders that get the outputs for empty inputs, and those that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from priorkit.pipeline.clip.encoder import load_encoder
from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.contract.commit import StageFolder
from priorkit.pipeline.contract.empty_inputs import FILE_NAME, read_empty_inputs
from priorkit.pipeline.contract.manifest import Manifest
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed.empty_inputs import store_empty_inputs
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.errors import InputError


def folder_of(path: Path, about: dict[str, Any]) -> StageFolder:
    return StageFolder(Store(str(path)), Manifest("embed", {}, {}, about))


def clip_of(settings: EmbedSettings) -> dict[str, Any]:
    return load_encoder(settings.encoder_settings()).identity


def store(folder: StageFolder, settings: EmbedSettings, required: bool = True) -> list[str]:
    return store_empty_inputs(folder, settings, ComputeSettings(), required=required)


@pytest.mark.parametrize("changed", [{}, {"token_states": False}, {"image": False}, {"dtype": "bfloat16"}])
def test_a_folder_gets_the_outputs_of_its_clip_once(
    tmp_path: Path, embed_settings: EmbedSettings, changed: dict[str, Any]
) -> None:
    settings = embed_settings.model_copy(update=changed)
    folder = folder_of(tmp_path, {"clip": clip_of(settings)})
    assert store(folder, settings) == []
    empty = read_empty_inputs(folder.store, folder.store.read_json("manifest.json")["about"])
    expected = load_encoder(settings.encoder_settings()).encode_empty()
    assert empty is not None
    assert empty.token_states is not None
    for name, values in expected.tensors().items():
        assert np.array_equal(getattr(empty, name), values)
    before = (tmp_path / FILE_NAME).stat()
    store(folder, settings)
    assert (tmp_path / FILE_NAME).stat().st_mtime_ns == before.st_mtime_ns
    (tmp_path / FILE_NAME).unlink()
    store(folder, settings)
    assert (tmp_path / FILE_NAME).stat().st_size == before.st_size


def test_folders_of_clip_retrieval_and_folders_without_a_clip_get_none(
    tmp_path: Path, embed_settings: EmbedSettings
) -> None:
    other = embed_settings.model_copy(update={"engine": "clip-retrieval", "token_states": False})
    assert store(folder_of(tmp_path, {"clip": clip_of(embed_settings)}), other) == []
    assert store(folder_of(tmp_path, {}), embed_settings) == []
    assert list(tmp_path.iterdir()) == []


def test_a_clip_that_cannot_be_run_is_an_error_or_a_note(tmp_path: Path, embed_settings: EmbedSettings) -> None:
    folder = folder_of(tmp_path, {"clip": {**clip_of(embed_settings), "weights_sha256": "other"}})
    with pytest.raises(InputError, match="made with another CLIP"):
        store(folder, embed_settings)
    (note,) = store(folder, embed_settings, required=False)
    assert note.startswith("the embeddings are complete, but the outputs for empty inputs are not stored: the folder")
    assert list(tmp_path.iterdir()) == []
