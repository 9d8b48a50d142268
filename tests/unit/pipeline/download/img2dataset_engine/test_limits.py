"""Settings that img2dataset does not apply: refused when given, listed when not."""

from __future__ import annotations

from typing import Any

import pytest

from priorkit.pipeline.config import PipelineSettings
from priorkit.pipeline.download.img2dataset_engine.limits import LIMITS, unapplied
from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.errors import SettingsError
from priorkit.pipeline.settings import parse_settings, with_overrides

APPLIED = {
    "bbox_column", "caption_column", "column_names", "concurrency", "downscale_interpolation", "encode_format",
    "encode_quality", "engine", "extract_exif", "guess_columns", "image_size", "img2dataset", "keep_columns",
    "max_aspect_ratio", "max_image_area", "min_image_size", "min_success_rate", "quoting", "reencode_format",
    "resize_mode", "resize_only_if_bigger", "retries", "rows_per_shard", "success_window", "upscale_interpolation",
    "url_column",
}  # fmt: skip
"""Settings that are passed to img2dataset, or that concern the list or the run as a whole."""
OTHER_VALUES: dict[str, Any] = {
    "allow_paths": False,
    "hash_column": "md5", "max_pixels": 1000, "decode_mode": "fast", "exif_orientation": "apply",
    "timeout_seconds": 10, "max_bytes": 1000, "allow_private_addresses": False, "allow_addresses": "10.0.0.0/8",
    "proxy": "none", "user_agent": "me", "robots_txt": True, "connections_per_host": 16, "decode_processes": 0,
    "decode_timeout_seconds": 5, "decode_memory_bytes": 2_000_000_000, "buffer_bytes": 1000,
}  # fmt: skip
"""A value of each limited setting that img2dataset does not apply; some are the defaults."""


def given(*settings: str) -> DownloadSettings:
    """The settings of a command line."""
    values = with_overrides({}, [f"download.{each}" for each in ("engine=img2dataset", *settings)])
    return parse_settings(PipelineSettings, values, "options").download


def test_images_as_they_came_are_refused() -> None:
    with pytest.raises(SettingsError, match="encode_format=original cannot be combined with engine=img2dataset"):
        given("encode_format=original")


def test_every_setting_is_applied_or_limited() -> None:
    """A new setting needs a decision: pass it to img2dataset, or say what img2dataset does instead."""
    assert APPLIED | LIMITS.keys() == DownloadSettings.model_fields.keys()
    assert not APPLIED & LIMITS.keys()


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_a_limited_setting_is_refused_if_it_is_given(name: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        given(f"{name}={OTHER_VALUES[name]}".replace("False", "false").replace("True", "true"))
    message = str(refusal.value)
    assert message.startswith(f"options: download: {name}=")
    assert LIMITS[name].instead in message
    assert "engine=native" in message
    assert len(message) < 300
    assert "\n" not in message


@pytest.mark.parametrize(
    "setting",
    ["hash_column=null", "decode_mode=exact", "exif_orientation=ignore", "allow_private_addresses=true",
     "proxy=null", "robots_txt=false"],
)  # fmt: skip
def test_a_value_that_describes_img2dataset_is_accepted(setting: str) -> None:
    settings = given(setting)
    assert not [note for note in settings.engine_notes() if setting.partition("=")[0] in note]
    assert settings.identity() == given().identity()


def test_one_value_of_a_setting_that_is_applied_is_refused() -> None:
    with pytest.raises(SettingsError, match="encode_format=original cannot be combined with engine=img2dataset"):
        given("encode_format=original")


def test_several_refused_settings_are_all_named() -> None:
    with pytest.raises(SettingsError, match=r"max_bytes=5 cannot .* \(likewise decode_processes, buffer_bytes\)"):
        given("max_bytes=5", "decode_processes=1", "buffer_bytes=9")


def test_defaults_that_are_not_applied_are_notes() -> None:
    notes = given().engine_notes()
    named = [note.partition(" does not apply download.")[2].partition("=")[0] for note in notes]
    assert named == [*unapplied(dict(DownloadSettings())), "concurrency"]
    assert "engine=img2dataset does not apply download.exif_orientation=apply: it stores pixels unrotated" in notes
    assert "engine=img2dataset does not apply download.allow_private_addresses=false: it fetches from" in "\n".join(
        notes
    )
    assert DownloadSettings().engine_notes() == []
