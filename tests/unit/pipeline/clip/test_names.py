"""Names of CLIPs in the spellings of other tools, as settings and as errors."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
from pydantic import ValidationError

from priorkit.pipeline.clip.names import common_name, explain_name
from priorkit.pipeline.clip.settings import ClipSettings


@pytest.mark.parametrize(
    ("model", "pretrained", "expected"),
    [
        ("ViT-B-32", None, ("ViT-B-32", None)),
        ("ViT-L/14", None, ("ViT-L-14-quickgelu", "openai")),
        ("ViT-L/14@336px", "openai", ("ViT-L-14-336-quickgelu", "openai")),
        ("ViT-L/14", "laion2b_s32b_b82k", ("ViT-L-14", "laion2b_s32b_b82k")),
        ("ViT-L/14", "./own.pt", ("ViT-L-14", "./own.pt")),
        ("RN50", None, ("RN50", None)),  # open_clip has this name too, with other tags
        ("openai_clip:RN50", None, ("RN50-quickgelu", "openai")),
        ("openai_clip:ViT-B/32", None, ("ViT-B-32-quickgelu", "openai")),
        ("openai_clip:/a/b.pt", None, ("openai_clip:/a/b.pt", None)),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", None, ("ViT-B-32", "laion2b_s34b_b79k")),
        ("open_clip:ViT-B/32/laion2b_s34b_b79k", None, ("ViT-B-32", "laion2b_s34b_b79k")),
        ("open_clip:ViT-L-14/openai", None, ("ViT-L-14-quickgelu", "openai")),
        ("open_clip:ViT-B-32//a/own.pt", None, ("ViT-B-32", "/a/own.pt")),
        ("open_clip:ViT-B-32", "own.pt", ("ViT-B-32", "own.pt")),
        ("open_clip:hf-hub:a/b", None, ("hf-hub:a/b", None)),
        ("hf_clip:a/b", None, ("hf_clip:a/b", None)),
        ("local-dir:a:b", None, ("local-dir:a:b", None)),
    ],
)
def test_names_of_other_tools_become_settings(
    model: str, pretrained: str | None, expected: tuple[str, str | None]
) -> None:
    assert common_name(model, pretrained) == expected
    assert common_name(*expected) == expected


def test_every_model_of_openai_has_a_tag_in_open_clip() -> None:
    names = ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"]
    for name in names:
        settings = ClipSettings(model=f"openai_clip:{name}")
        assert settings.pretrained == "openai"
        config = open_clip.pretrained.get_pretrained_cfg(settings.model, settings.pretrained)
        assert config["quick_gelu"]
        assert open_clip.get_model_config(settings.model)["quick_gelu"]


def test_settings_hold_the_names_of_open_clip() -> None:
    assert ClipSettings(model="open_clip:ViT-B-32/laion2b_s34b_b79k") == ClipSettings()
    assert ClipSettings(model="ViT-L/14", pretrained=None).identity() == {
        "model": "ViT-L-14-quickgelu",
        "pretrained": "openai",
    }
    assert ClipSettings(model="hf_clip:a/b").pretrained is None


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model": "open_clip:ViT-B-32"}, "names no weights; write open_clip:ViT-B-32/TAG"),
        ({"model": "open_clip:ViT-B-32/a", "pretrained": "b"}, "pretrained='b' names others; leave one out"),
        ({"model": "openai_clip:ViT-B/32", "pretrained": "b"}, "brings its own weights"),
        ({"model": "hf_clip:a/b", "pretrained": "b"}, "brings its own weights"),
        ({"model": "ja_clip:rinna/japanese-clip-vit-b-16"}, "a Japanese CLIP of rinna.*It loads open_clip:MODEL/TAG"),
        ({"model": "hf:a/b"}, "write hf_clip:ORG/NAME"),
        ({"model": "clip:a"}, "no CLIP names begin with clip:; those with a prefix are open_clip:"),
    ],
)
def test_names_that_cannot_be_loaded_are_refused_with_those_that_can(values: dict[str, str], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        ClipSettings.model_validate(values)


def test_an_unknown_name_is_recognised_as_a_path_or_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert "write local-dir:mine" in explain_name("mine")
    assert "write local-dir:./absent" in explain_name("./absent")
    assert "--pretrained ./w.pt), or write openai_clip:./w.pt" in explain_name("./w.pt")
    assert "Write hf_clip:openai/clip-vit-large-patch14 if" in explain_name("openai/clip-vit-large-patch14")
    assert explain_name("ViT-B/33") == explain_name("ViTB32") == ""
