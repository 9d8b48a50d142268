"""Settings of the pipeline: frozen, documented, closed to unknown keys, with an exact identity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.config import FolderSettings, PipelineSettings
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.errors import SettingsError
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.pipeline.settings import Settings, parse_settings, settings_kinds, with_overrides
from priorkit.pipeline.urls.settings import UrlListSettings
from priorkit.pipeline.yaml_text import PlainScalar
from priorkit.prior.network.families import FAMILIES
from priorkit.prior.train.settings import TrainSettings
from priorkit.recipes.recipe import Recipe


def kinds_in(kind: type[Settings]) -> Iterator[type[Settings]]:
    """Yield the classes of all sections below a class of settings."""
    for field in kind.model_fields.values():
        for inner in settings_kinds(field.annotation):
            yield inner
            yield from kinds_in(inner)


ALL_SETTINGS = sorted({*kinds_in(Recipe), Recipe, PipelineSettings, UrlListSettings}, key=lambda kind: kind.__name__)


def test_the_walk_reaches_every_class_of_settings() -> None:
    assert {"ClipSettings", "ComputeSettings", "DownloadSettings", "FolderSettings", "PreprocessSettings"} <= {
        kind.__name__ for kind in ALL_SETTINGS
    }
    assert {TrainSettings, *FAMILIES.values()} <= set(ALL_SETTINGS)


@pytest.mark.parametrize("kind", ALL_SETTINGS, ids=lambda kind: kind.__name__)
def test_every_setting_is_described_and_every_runtime_field_exists(kind: type[Settings]) -> None:
    for name, field in kind.model_fields.items():
        assert field.description, f"{kind.__name__}.{name} has no description"
        assert field.description.endswith("."), f"{kind.__name__}.{name}"
    assert kind.runtime_fields <= set(kind.model_fields)


@pytest.mark.parametrize("kind", ALL_SETTINGS, ids=lambda kind: kind.__name__)
def test_settings_are_frozen_and_survive_a_round_trip(kind: type[Settings]) -> None:
    settings = kind(**{name: "x" for name, field in kind.model_fields.items() if field.is_required()})
    name = next(iter(kind.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, name, getattr(settings, name))
    assert parse_settings(kind, settings.model_dump(mode="json"), "again") == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"downlod": {}}, "downlod: unknown key; did you mean 'download'?"),
        ({"download": {"image_sise": 1}}, "download.image_sise: unknown key; did you mean 'image_size'?"),
        ({"embed": {"clip": {"modle": "x"}}}, "embed.clip.modle: unknown key; did you mean 'model'?"),
        (
            {"read": {"qqq": 1}},
            "read.qqq: unknown key; known keys: block_rows, captions, group_column, read_threads, shuffle_window, "
            "test_fraction, validation_fraction",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_settings(PipelineSettings, values, "my.yaml")
    assert str(error.value) == f"my.yaml: {message}"


def test_all_problems_are_named_at_once_with_their_values() -> None:
    with pytest.raises(SettingsError) as error:
        parse_settings(DownloadSettings, {"image_size": 0, "timeout_seconds": "soon", "concurency": 1}, "options")
    text = str(error.value)
    assert "image_size: Input should be greater than or equal to 1 (got 0)" in text
    assert "(got 'soon')" in text
    assert "did you mean 'concurrency'" in text


@pytest.mark.parametrize("values", [[], None, "text", {"download": []}, {"download": None}, {"embed": {"clip": "x"}}])
def test_values_that_are_no_mapping_are_refused(values: Any) -> None:
    with pytest.raises(SettingsError, match=r"^my\.yaml: "):
        parse_settings(PipelineSettings, values, "my.yaml")


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (ComputeSettings, {"workers": 2}, "compute.backend=ray"),
        (ComputeSettings, {"address": "auto"}, "compute.backend=ray"),
        (DownloadSettings, {"encode_format": "png"}, "compression level"),
        (ClipSettings, {"model": "hf-hub:a/b", "pretrained": "x"}, "brings its own weights"),
        (ClipSettings, {"model": "ViT-B-32", "pretrained": None}, "pretrained is needed"),
        (ReadSettings, {"validation_fraction": 0.5, "test_fraction": 0.5}, "nothing is left to train on"),
        (FolderSettings, {"images": "data/x", "embeddings": "data/x/"}, "a folder of its own"),
    ],
)
def test_values_that_contradict_each_other_are_refused(
    kind: type[Settings], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_settings(kind, values, "options")


def test_a_model_with_a_scheme_needs_no_weights_tag() -> None:
    assert ClipSettings(model="local-dir:/x").pretrained is None
    assert ClipSettings().pretrained == "laion2b_s34b_b79k"


def test_the_identity_has_exactly_the_settings_that_change_output() -> None:
    settings = DownloadSettings()
    left_out = DownloadSettings.runtime_fields | DownloadSettings.later_fields
    assert set(settings.identity()) == set(DownloadSettings.model_fields) - left_out
    patient = {"timeout_seconds": 60, "retries": 5, "user_agent": "me/1", "connections_per_host": 1}
    assert settings.identity() == DownloadSettings(**patient).identity()
    assert settings.identity() == DownloadSettings(concurrency=1, decode_processes=9, buffer_bytes=1).identity()
    assert settings.identity() != DownloadSettings(image_size=255).identity()
    assert settings.identity() != DownloadSettings(decode_mode="fast").identity()
    assert EmbedSettings().identity() == EmbedSettings(decode_threads=7, threads=3).identity()
    for changed in (EmbedSettings(batch_size=1), EmbedSettings(dtype="bfloat16")):
        assert changed.identity() != EmbedSettings().identity()


def test_the_identity_of_nested_settings_leaves_out_their_runtime_fields_too() -> None:
    identity = PipelineSettings().identity()
    assert "decode_threads" not in identity["embed"]
    assert identity["embed"]["clip"] == {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}


def test_overrides_are_yaml_at_dotted_names_and_do_not_change_the_source() -> None:
    values = {"download": {"image_size": 256}, "urls": "a"}
    result = with_overrides(
        values,
        ["download.image_size=64", "embed.clip.model=RN50", "download.caption_column=null", "urls=a=b", "x= [1]"],
    )
    assert result["download"] == {"image_size": PlainScalar("64", 64), "caption_column": None}
    assert result["x"] == [PlainScalar("1", 1)]
    del result["x"]
    read = parse_settings(PipelineSettings, result, "options")
    assert (read.download.image_size, read.download.caption_column) == (64, None)
    assert (read.urls, read.embed.clip.model) == ("a=b", "RN50")
    assert values == {"download": {"image_size": 256}, "urls": "a"}


def test_the_last_of_equal_overrides_counts() -> None:
    assert with_overrides({}, ["a.b=1", "a.b=2"]) == {"a": {"b": PlainScalar("2", 2)}}


@pytest.mark.parametrize("override", ["image_size", "", "=1", " =1", "a=[1", "a=1\nb: :"])
def test_an_override_of_another_form_is_refused_and_quoted(override: str) -> None:
    with pytest.raises(SettingsError, match="--set"):
        with_overrides({}, [override])


def test_an_override_below_a_plain_value_is_refused() -> None:
    with pytest.raises(SettingsError, match="urls is a value, it has no keys"):
        with_overrides({"urls": "a"}, ["urls.b=1"])
