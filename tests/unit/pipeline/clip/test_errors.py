"""Errors of a CLIP that cannot be loaded: reported once, with a fix."""

from __future__ import annotations

import logging
from typing import Any

import open_clip
import pytest

from priorkit.pipeline.clip.encoder import ClipEncoder
from priorkit.pipeline.clip.errors import explain
from priorkit.pipeline.clip.settings import ClipSettings, EncoderSettings
from priorkit.pipeline.errors import InputError

SETTINGS = EncoderSettings(clip=ClipSettings(), device="cpu", threads=1)


class LocalEntryNotFoundError(Exception):
    """Stand-in for huggingface_hub's exception: not in the cache, and the hub is unreachable."""


def failing(first: Exception, second: Exception) -> Any:
    def load(*args: Any, **kwargs: Any) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("thrown while requesting HEAD")
        try:
            try:
                raise OSError("[Errno -2] Name or service not known")
            except OSError as error:
                raise first from error
        except Exception as error:
            logging.error("Failed to download weights")
            raise second from error

    return load


def test_an_unreachable_hub_is_reported_once_with_a_fix(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = failing(LocalEntryNotFoundError("no"), RuntimeError("Failed to download"))
    monkeypatch.setattr(open_clip, "create_model_and_transforms", load)
    with pytest.raises(InputError) as raised:
        ClipEncoder(SETTINGS)
    assert str(raised.value) == (
        "embed.clip.model=ViT-B-32, pretrained=laion2b_s34b_b79k: its files are not on this machine, and the hub that "
        "has them cannot be reached ([Errno -2] Name or service not known).\nConnect this machine, or copy the model's "
        "folder (weights and open_clip_config.json) here and give --model local-dir:FOLDER. A file of weights alone "
        "(--pretrained FILE) does not say its preprocessing"
    )
    assert caplog.records == []
    logging.getLogger("huggingface_hub").warning("seen again")
    logging.error("seen too")
    assert [record.message for record in caplog.records] == ["seen again", "seen too"]


def test_weights_that_do_not_fit_are_not_reported_as_a_hub_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "create_model_and_transforms", failing(ValueError("a"), RuntimeError("do not fit")))
    with pytest.raises(InputError, match=r"cannot be loaded \(do not fit\)"):
        ClipEncoder(SETTINGS)


class EntryNotFoundError(Exception):
    """Stand-in for huggingface_hub's exception: the repository has no such file."""


class RepositoryNotFoundError(Exception):
    """Stand-in for huggingface_hub's exception."""


def test_repositories_of_another_kind_and_missing_ones_are_told_apart() -> None:
    wrapped = FileNotFoundError("Failed to download file (open_clip_config.json)")
    wrapped.__context__ = EntryNotFoundError("404")
    message = str(explain(ClipSettings(model="hf-hub:openai/clip-vit-base-patch32"), wrapped))
    assert "holds no open_clip_config.json" in message
    assert message.endswith("\nFor a CLIP or SigLIP of transformers write hf_clip:openai/clip-vit-base-patch32")
    for model in ("hf-hub:a/b", "hf_clip:a/b"):
        message = str(explain(ClipSettings(model=model), RepositoryNotFoundError("401")))
        assert "the hub has no such repository, or it is private.\nCorrect the name" in message


def test_unreachable_models_of_transformers_need_all_their_files() -> None:
    message = str(explain(ClipSettings(model="hf_clip:a/b"), LocalEntryNotFoundError("no")))
    assert "config.json, preprocessor_config.json and the tokenizer) here and give --model local-dir:FOLDER" in message
