"""Settings of embed: the part that the encoder reads, and combinations that are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from priorkit.pipeline.clip.settings import ClipSettings, EncoderSettings
from priorkit.pipeline.embed.settings import EmbedSettings


def test_encoder_settings_are_copied() -> None:
    clip = ClipSettings(model="priorkit:demo")
    values = {
        "device": "cpu",
        "threads": 3,
        "dtype": "bfloat16",
        "batch_size": 5,
        "token_states": True,
        "compile": True,
    }
    assert {"clip", *values} == set(EncoderSettings.model_fields)
    settings = EmbedSettings.model_validate({"clip": clip, **values, "decode_threads": 7, "caption_column": "text"})
    assert settings.encoder_settings() == EncoderSettings.model_validate({"clip": clip, **values})
    other = settings.model_copy(update={"decode_threads": 1, "caption_column": "caption"})
    assert hash(other.encoder_settings()) == hash(settings.encoder_settings())


def test_something_must_be_embedded() -> None:
    with pytest.raises(ValidationError, match=r"embed\.image and embed\.text are both false"):
        EmbedSettings(image=False, text=False)
    with pytest.raises(ValidationError, match=r"embed\.token_states=true needs embed\.text=true"):
        EmbedSettings(text=False, token_states=True)
