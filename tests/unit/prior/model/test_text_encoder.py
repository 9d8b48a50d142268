"""The CLIP of a prior: loading with a check of its weights, and comparison with that of a folder of embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest

from priorkit.pipeline.clip.encoder import identify_clip
from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.compute.settings import DeviceSettings
from priorkit.pipeline.errors import InputError
from priorkit.prior.model.config import PriorConfig, TrainedOn
from priorkit.prior.model.text_encoder import clip_named, find_text_encoder, match_clips

from ....conftest import TINY_CLIP_CONFIG
from ..conftest import MakeConfig

HERE = DeviceSettings(device="cpu", threads=1)


@pytest.fixture
def openai_tag(tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """An open_clip model without QuickGELU, with a tag of OpenAI's weights, which use it."""
    (tmp_path / "priorkit-old.json").write_text(json.dumps(TINY_CLIP_CONFIG["model_cfg"]))
    open_clip.add_model_config(tmp_path / "priorkit-old.json")
    tag = {"file": str(tiny_clip / "open_clip_model.safetensors"), "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "priorkit-old", {"openai": tag})
    yield {"model": "priorkit-old", "pretrained": "openai"}
    open_clip.factory._MODEL_CONFIG_PATHS.remove(tmp_path / "priorkit-old.json")
    del open_clip.factory._MODEL_CONFIGS["priorkit-old"]


def test_the_clip_of_an_imported_prior_has_openais_activation(openai_tag: dict[str, str]) -> None:
    """DALLE2-pytorch's settings do not name it, and open_clip refuses the mix."""
    assert find_text_encoder(openai_tag, {}, "", HERE).identity["activation"] == "quick_gelu"


def test_the_same_weights_under_another_activation_are_refused(tiny_clip: Path) -> None:
    place = {"model": f"local-dir:{tiny_clip}", "pretrained": None}
    known = {**identify_clip(ClipSettings(**place)), "dtype": "float32"}
    assert find_text_encoder(place, known, "of the prior", HERE).identity["activation"] == "gelu"
    with pytest.raises(InputError, match=r"other activation: 'gelu' -> 'quick_gelu' than the one of the prior"):
        find_text_encoder({**place, "quick_gelu": True}, known, "of the prior", HERE)


# comparison

OPENAI = {"model": "ViT-B-32", "pretrained": "openai"}


def config_with(make_config: MakeConfig, **values: Any) -> PriorConfig:
    return make_config().model_copy(update=values)


def folder(clip: dict[str, Any] | None, location: dict[str, Any] | None = None, content: str = "folder") -> Any:
    return SimpleNamespace(
        spaces=None, clip_if_known=clip or {}, clip_settings=location or {}, content_fingerprint=content
    )


def test_the_training_folder_is_recognised_by_its_content(make_config: MakeConfig) -> None:
    config = config_with(make_config, clip={}, trained_on=TrainedOn(embeddings="folder", read={}))
    assert match_clips(config, folder(None)) == "same"
    assert match_clips(config, folder(None, content="another")) == "unknown"


def test_hashes_decide_before_names(make_config: MakeConfig) -> None:
    config = config_with(make_config, clip={"weights_sha256": "a"}, clip_settings=OPENAI)
    assert match_clips(config, folder({"weights_sha256": "a"}, {"model": "x", "pretrained": "y"})) == "same"
    assert match_clips(config, folder({"weights_sha256": "b"}, OPENAI)) == "other"


def test_the_activation_matters_and_the_preprocessing_does_not(make_config: MakeConfig) -> None:
    identity = {"weights_sha256": "a", "preprocess": {"mean": [0.5]}, "activation": "gelu"}
    config = config_with(make_config, clip=identity)
    assert match_clips(config, folder({**identity, "preprocess": {"mean": [0.4]}})) == "same"
    assert match_clips(config, folder({**identity, "activation": "quick_gelu"})) == "other"
    place = {**OPENAI, "preprocess": {"mean": [0.5]}}
    config = config_with(make_config, clip={"source": place}, clip_settings=place)
    assert match_clips(config, folder({"source": OPENAI}, OPENAI)) == "same"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (OPENAI, "same"),
        ({"model": "ViT-B/32", "pretrained": "OpenAI"}, "same"),
        ({**OPENAI, "quick_gelu": True}, "unknown"),
        ({"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}, "other"),
        ({"model": "ViT-B-16", "pretrained": "openai"}, "other"),
        ({"model": "ViT-B-32-quickgelu", "pretrained": "openai"}, "unknown"),
        ({"model": "ViT-B-32", "pretrained": "/weights/a.pt"}, "unknown"),
        ({"model": "local-dir:/clip", "pretrained": None}, "unknown"),
        ({"model": "priorkit:demo", "pretrained": None}, "unknown"),
    ],
)
def test_names_decide_if_hashes_are_unknown(make_config: MakeConfig, location: dict[str, Any], expected: str) -> None:
    config = config_with(make_config, clip={}, clip_settings=OPENAI)
    assert match_clips(config, folder({"weights_sha256": "a"}, location)) == expected


def test_a_clip_is_named_by_model_and_weights() -> None:
    assert clip_named(OPENAI) == "ViT-B-32 (openai)"
    assert clip_named({"model": "priorkit:demo", "pretrained": None}) == "priorkit:demo"
    assert clip_named({}) == ""
