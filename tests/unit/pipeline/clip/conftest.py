"""The tiny CLIP under a name of open_clip's, with tags, and folders of weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch

from priorkit.pipeline.clip.settings import ClipSettings

from ....conftest import TINY_CLIP_CONFIG

TINY = "priorkit-tiny"
WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


@pytest.fixture
def architecture(tmp_path: Path) -> Iterator[str]:
    """The tiny CLIP's architecture, registered with open_clip."""
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / f"{TINY}.json").write_text(json.dumps(TINY_CLIP_CONFIG["model_cfg"]))
    open_clip.add_model_config(folder)
    yield TINY
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    del open_clip.factory._MODEL_CONFIGS[TINY]


@pytest.fixture
def tags(architecture: str, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give the architecture tags, all with the tiny CLIP's weights."""

    def give(**tags: dict[str, Any]) -> None:
        half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "file": str(tiny_clip / WEIGHTS)}
        changed = {tag: {**half, **changes} for tag, changes in tags.items()}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, architecture, changed)

    return give


@pytest.fixture
def bare_weights(tiny_clip: Path, tmp_path: Path) -> str:
    """Path of the tiny CLIP's weights, without a config beside them."""
    shutil.copy(tiny_clip / WEIGHTS, tmp_path / "weights.safetensors")
    return str(tmp_path / "weights.safetensors")


def write_folder(folder: Path, files: dict[str, Any], config: dict[str, Any] = TINY_CLIP_CONFIG) -> ClipSettings:
    """Write a CLIP's folder; contents that are not bytes are saved by torch."""
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config))
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            torch.save(content, folder / name)
    return ClipSettings(model=f"local-dir:{folder}")


def tensors(tiny_clip: Path) -> dict[str, torch.Tensor]:
    """Load the tiny CLIP's weights."""
    return safetensors.torch.load_file(tiny_clip / WEIGHTS)
