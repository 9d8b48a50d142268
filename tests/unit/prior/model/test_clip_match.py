"""A prior's CLIP against that of a folder of embeddings, by what is known of both."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from priorkit.prior.model.clip_match import clip_named, match_clips
from priorkit.prior.model.config import PriorConfig, TrainedOn

from ..conftest import MakeConfig

OPENAI = {"model": "ViT-B-32", "pretrained": "openai"}


def config_of(make_config: MakeConfig, **values: Any) -> PriorConfig:
    return make_config().model_copy(update=values)


def folder(clip: dict[str, Any] | None, location: dict[str, Any] | None = None, content: str = "folder") -> Any:
    return SimpleNamespace(clip_if_known=clip or {}, clip_settings=location or {}, content_fingerprint=content)


def test_the_folder_that_it_was_trained_on_is_known_by_its_content(make_config: MakeConfig) -> None:
    config = config_of(make_config, clip={}, trained_on=TrainedOn(embeddings="folder", read={}))
    assert match_clips(config, folder(None)) == "same"
    assert match_clips(config, folder(None, content="another")) == "unknown"


def test_hashes_decide_before_names(make_config: MakeConfig) -> None:
    config = config_of(make_config, clip={"weights_sha256": "a"}, clip_settings=OPENAI)
    assert match_clips(config, folder({"weights_sha256": "a"}, {"model": "x", "pretrained": "y"})) == "same"
    assert match_clips(config, folder({"weights_sha256": "b"}, OPENAI)) == "other"


def test_preprocessing_makes_no_other_text_embeddings_and_an_activation_does(make_config: MakeConfig) -> None:
    identity = {"weights_sha256": "a", "preprocess": {"mean": [0.5]}, "activation": "gelu"}
    config = config_of(make_config, clip=identity)
    assert match_clips(config, folder({**identity, "preprocess": {"mean": [0.4]}})) == "same"
    assert match_clips(config, folder({**identity, "activation": "quick_gelu"})) == "other"
    place = {**OPENAI, "preprocess": {"mean": [0.5]}}
    config = config_of(make_config, clip={"source": place}, clip_settings=place)
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
def test_names_decide_where_hashes_are_not_known(
    make_config: MakeConfig, location: dict[str, Any], expected: str
) -> None:
    config = config_of(make_config, clip={}, clip_settings=OPENAI)
    assert match_clips(config, folder({"weights_sha256": "a"}, location)) == expected


def test_a_clip_is_named_as_far_as_it_is_known() -> None:
    assert clip_named(OPENAI) == "ViT-B-32 (openai)"
    assert clip_named({"model": "priorkit:demo", "pretrained": None}) == "priorkit:demo"
    assert clip_named({}) == ""
