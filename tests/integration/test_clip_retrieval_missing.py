"""The engine clip-retrieval, refused before anything is embedded; its settings have unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed
from priorkit.pipeline.errors import SettingsError


def test_it_is_refused_before_anything_is_embedded(
    images_folder: Path, embed_settings: EmbedSettings, tmp_path: Path
) -> None:
    wrong = embed_settings.model_copy(update={"engine": "clip-retrieval", "token_states": False})
    with pytest.raises(SettingsError, match=r"embed\.engine=clip-retrieval takes an open_clip name and tag"):
        embed(str(images_folder), str(tmp_path / "out"), wrong)
    embed(str(images_folder), str(tmp_path / "out"), embed_settings)  # the folder is not taken
