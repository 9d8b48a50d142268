"""The text tower of a prior: found by name, and held against the CLIP that the prior was trained with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest

from priorkit.pipeline.clip.encoder import identify_clip
from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.compute.settings import DeviceSettings
from priorkit.pipeline.errors import InputError
from priorkit.prior.model.text_encoder import find_text_encoder

from ....conftest import TINY_CLIP_CONFIG

HERE = DeviceSettings(device="cpu", threads=1)


@pytest.fixture
def of_openai(tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A model of open_clip's without QuickGELU, and its tag of OpenAI's weights, which have it."""
    (tmp_path / "priorkit-old.json").write_text(json.dumps(TINY_CLIP_CONFIG["model_cfg"]))
    open_clip.add_model_config(tmp_path / "priorkit-old.json")
    tag = {"file": str(tiny_clip / "open_clip_model.safetensors"), "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "priorkit-old", {"openai": tag})
    yield {"model": "priorkit-old", "pretrained": "openai"}
    open_clip.factory._MODEL_CONFIG_PATHS.remove(tmp_path / "priorkit-old.json")
    del open_clip.factory._MODEL_CONFIGS["priorkit-old"]


def test_the_clip_of_an_imported_prior_has_openais_activation(of_openai: dict[str, str]) -> None:
    """DALLE2-pytorch's settings name it without; open_clip refuses the mix."""
    assert find_text_encoder(of_openai, {}, "", HERE).identity["activation"] == "quick_gelu"


def test_the_same_weights_under_another_activation_are_refused(tiny_clip: Path) -> None:
    place = {"model": f"local-dir:{tiny_clip}", "pretrained": None}
    known = {**identify_clip(ClipSettings(**place)), "dtype": "float32"}
    assert find_text_encoder(place, known, "of the prior", HERE).identity["activation"] == "gelu"
    with pytest.raises(InputError, match=r"other activation: 'gelu' -> 'quick_gelu' than the one of the prior"):
        find_text_encoder({**place, "quick_gelu": True}, known, "of the prior", HERE)
