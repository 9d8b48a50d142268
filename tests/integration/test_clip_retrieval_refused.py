"""The engine clip-retrieval, refused before anything is embedded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed, plan_embed
from priorkit.pipeline.errors import PriorkitError, SettingsError


def test_an_unsupported_setting_is_refused_before_anything_is_embedded(
    images_folder: Path, embed_settings: EmbedSettings, tmp_path: Path
) -> None:
    wrong = embed_settings.model_copy(update={"engine": "clip-retrieval"})
    with pytest.raises(SettingsError, match=r"embed\.token_states=True: embed\.engine=clip-retrieval can only do"):
        embed(str(images_folder), str(tmp_path / "out"), wrong)
    embed(str(images_folder), str(tmp_path / "out"), embed_settings)  # the folder is not taken


def test_a_missing_package_is_named_before_anything_is_embedded(
    images_folder: Path, embed_settings: EmbedSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = embed_settings.model_copy(update={"engine": "clip-retrieval", "token_states": False})
    monkeypatch.setitem(sys.modules, "clip_retrieval", None)
    for call in (embed, plan_embed):
        with pytest.raises(PriorkitError, match=r"pip install --no-deps clip-retrieval all-clip clip-anytorch"):
            call(str(images_folder), str(tmp_path / "out"), wanted)
    assert not (tmp_path / "out").exists()
