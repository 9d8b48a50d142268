"""Settings of a CLIP: the default tag, overrides and their identity, and the encoder's bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from priorkit.pipeline.clip.settings import ClipSettings, EncoderSettings, PreprocessSettings
from priorkit.pipeline.clip.source import clip_location


def test_a_model_with_a_scheme_has_no_tag() -> None:
    assert ClipSettings().pretrained == "laion2b_s34b_b79k"
    assert ClipSettings(model="priorkit:demo").pretrained is None
    with pytest.raises(ValidationError, match="pretrained must be null: 'hf-hub:a/b' brings its own weights"):
        ClipSettings(model="hf-hub:a/b", pretrained="openai")
    with pytest.raises(ValidationError, match="pretrained is needed for 'ViT-B-32'"):
        ClipSettings(pretrained=None)


def test_only_values_that_are_set_are_part_of_the_identity() -> None:
    plain = {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}
    assert ClipSettings().identity() == plain
    assert ClipSettings(preprocess=PreprocessSettings()).identity() == plain
    changed = ClipSettings(preprocess=PreprocessSettings(mean=(0, 0, 1)), quick_gelu=False)
    assert changed.identity() == {**plain, "preprocess": {"mean": [0, 0, 1]}, "quick_gelu": False}
    assert changed.overrides() == {"preprocess": {"mean": [0, 0, 1]}, "quick_gelu": False}


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"batch_size": 0}, {"dtype": "float64"}])
def test_an_encoder_needs_resolved_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        EncoderSettings.model_validate({"clip": {}, "device": "cpu", "threads": 1, **wrong})


def test_paths_are_expanded_and_stay_the_same_when_they_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a$b"
    folder.mkdir()
    (folder / "weights.pt").write_bytes(b"x")
    monkeypatch.setenv("CLIPS", str(folder))
    monkeypatch.setenv("MODEL", "local-dir:~")
    assert ClipSettings(model="ViT-B-32", pretrained="$CLIPS/weights.pt").pretrained == str(folder / "weights.pt")
    assert ClipSettings(model="$MODEL").pretrained is None
    for given in (
        ClipSettings(model="local-dir:$CLIPS"), ClipSettings(model="ViT-B-32", pretrained="$CLIPS/weights.pt")
    ):  # fmt: skip
        assert ClipSettings(**clip_location(given)) == given
