"""Adopt settings that contradict each other."""

from __future__ import annotations

import pytest

from priorkit.pipeline.adopt.settings import AdoptSettings
from priorkit.pipeline.errors import SettingsError
from priorkit.pipeline.settings import parse_settings

CLIP = {"model": "ViT-B-32", "pretrained": "openai"}


def test_what_made_the_embeddings_must_be_said_once() -> None:
    for values in ({}, {"clip": CLIP, "not_clip": "clap"}):
        with pytest.raises(SettingsError, match="say which CLIP made the embeddings"):
            parse_settings(AdoptSettings, values, "adopt")
    assert parse_settings(AdoptSettings, {"not_clip": "clap"}, "adopt").clip is None


@pytest.mark.parametrize("setting", ["normalise", "skip_invalid", "key_column", "caption_column", "rows_per_shard"])
def test_settings_that_change_files_do_not_go_with_in_place(setting: str) -> None:
    value = {"normalise": True, "skip_invalid": True, "rows_per_shard": 1_000_000}.get(setting, "name")
    with pytest.raises(SettingsError, match=f"{setting} has no effect with in_place"):
        parse_settings(AdoptSettings, {"not_clip": "clap", "in_place": True, setting: value}, "adopt")


def test_the_manifest_records_no_locations() -> None:
    settings = AdoptSettings(not_clip="clap", source="/a/b", target="/c")
    assert "/" not in str(settings.manifest_settings(None))
