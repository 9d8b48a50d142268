"""Settings of embed: the part that the encoder reads, and combinations that are refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from priorkit.pipeline.clip.settings import ClipSettings, EncoderSettings
from priorkit.pipeline.contract.samples import SampleFiles
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


def test_settings_of_files_are_recorded_only_if_they_are_set() -> None:
    """Ensure that folders of earlier versions can be resumed."""
    names = {"caption_key", "caption_extension", "image_extensions"}
    default = EmbedSettings().identity()
    assert default["caption_column"] == "caption"
    assert not names & set(default)
    assert EmbedSettings(caption_column="caption").identity() == default
    given = EmbedSettings(caption_key="a", caption_extension="x.json", image_extensions=("jpg",)).identity()
    assert {name: given[name] for name in names} == {
        "caption_key": "a", "caption_extension": "x.json", "image_extensions": ["jpg"],
    }  # fmt: skip


def test_extensions_are_written_as_a_user_types_them() -> None:
    for value in (".input.JPG, png", ["input.jpg", ".PNG"], ("input.jpg", "png")):
        settings = EmbedSettings.model_validate({"image_extensions": value, "caption_extension": ".Outputs.txt"})
        assert settings.sample_files() == SampleFiles(("input.jpg", "png"), "outputs.txt")
    assert EmbedSettings(caption_key="a").sample_files() == SampleFiles((), "json", "a")
    assert EmbedSettings().sample_files() == SampleFiles()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"caption_key": "a", "caption_column": "b"}, "set one of them"),
        ({"caption_extension": "cap", "caption_column": "b"}, "set one of them"),
        ({"caption_key": "a", "text": False}, r"embed\.caption_key has no effect with embed\.text=false"),
        ({"caption_column": "a", "text": False}, r"embed\.caption_column has no effect with embed\.text=false"),
        ({"image_extensions": ["jpg"], "image": False}, r"image_extensions has no effect with embed\.image=false"),
        ({"caption_extension": "json"}, r"set embed\.caption_key"),
        ({"image_extensions": ["txt"]}, "is also in embed.image_extensions"),
        ({"image_extensions": []}, "at least 1 item"),
        ({"image_extensions": "jpg,"}, "must not be empty"),
    ],
)
def test_settings_of_captions_that_contradict_each_other_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EmbedSettings.model_validate(values)
