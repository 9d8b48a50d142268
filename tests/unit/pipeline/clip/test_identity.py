"""Identities of CLIPs, and whether two names are one CLIP."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU

from priorkit.pipeline.clip import encoder as clip_module
from priorkit.pipeline.clip.encoder import clip_location, clip_source, identify_clip
from priorkit.pipeline.clip.identity import (
    clip_difference,
    compare_clips,
    has_quick_gelu,
    hash_weights,
    is_same_clip,
    text_parts,
)
from priorkit.pipeline.clip.settings import ClipSettings, PreprocessSettings

from ....conftest import TINY_CLIP_CONFIG
from .conftest import CONFIG, TINY, WEIGHTS, tensors, write_folder

KNOWN = {
    "source": {"model": "a"}, "weights_sha256": "w", "activation": "gelu", "preprocess": {"size": 32},
    "architecture_sha256": "a", "config_sha256": "c", "dtype": "float32",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({}, ""),
        ({"source": {"model": "b"}}, ""),
        ({"dtype": "bfloat16"}, ""),
        ({"weights_sha256": "x"}, "weights_sha256: 'w' -> 'x'"),
        ({"activation": "quick_gelu"}, "activation: 'gelu' -> 'quick_gelu'"),
        ({"preprocess": {"size": 64}}, "preprocess.size: 32 -> 64"),
        ({"config_sha256": "x"}, ""),
        ({"architecture_sha256": "x"}, ""),
        ({"architecture_sha256": "x", "config_sha256": "y"}, "config_sha256: 'c' -> 'y'"),
    ],
)
def test_only_weights_activation_preprocessing_and_config_are_compared(
    changed: dict[str, Any], difference: str
) -> None:
    assert clip_difference(KNOWN, {**KNOWN, **changed}) == difference


def test_a_strict_comparison_covers_every_value_but_the_source() -> None:
    other = {**KNOWN, "source": {"model": "b"}, "dtype": "bfloat16"}
    assert clip_difference(KNOWN, other, strict=True) == "dtype: 'float32' -> 'bfloat16'"
    lacking = {name: value for name, value in KNOWN.items() if name != "activation"}
    assert clip_difference(KNOWN, lacking) == ""
    assert clip_difference(KNOWN, lacking, strict=True) == "activation: 'gelu' -> absent"


def tag(model: str, pretrained: str | None, **overrides: Any) -> dict[str, Any]:
    return {"model": model, "pretrained": pretrained, **overrides}


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        (tag("ViT-B-32", "openai"), tag("ViT-B-32", "openai"), "same"),
        (tag("ViT-B-32", "laion2b-s34b-b79k"), tag("ViT-B/32", "LAION2B_s34b_b79k"), "same"),
        (tag("ViT-B-32", "openai"), tag("ViT-B-32", "laion2b_e16"), "other"),
        (tag("ViT-B-32", "openai"), tag("ViT-B-16", "openai"), "other"),
        (tag("ViT-B-32", "openai"), tag("ViT-B-32-quickgelu", "openai"), "unknown"),
        (tag("ViT-B-32", "openai", quick_gelu=True), tag("ViT-B-32", "openai"), "unknown"),
        (tag("ViT-B-32", "/a/openai"), tag("ViT-B-32", "openai"), "unknown"),
        (tag("hf-hub:a/b", None), tag("hf-hub:a/b", None), "unknown"),
        ({}, tag("ViT-B-32", "openai"), "unknown"),
    ],
)
def test_locations_are_compared_by_model_and_tag(first: dict[str, Any], second: dict[str, Any], match: str) -> None:
    assert compare_clips({}, first, {}, second) == match
    assert compare_clips({"source": second}, {}, {"source": first}, {}) == match


def test_hashes_take_precedence_over_tags() -> None:
    openai, laion = tag("ViT-B-32", "openai"), tag("ViT-B-32", "laion2b_e16")
    assert compare_clips({"weights_sha256": "w"}, openai, {"weights_sha256": "w"}, laion) == "same"
    assert compare_clips({"weights_sha256": "w"}, openai, {"weights_sha256": "x"}, openai) == "other"


def test_text_parts_leave_out_image_preprocessing() -> None:
    described = {"source": tag("a", "b", preprocess={"size": 1}), "preprocess": {"size": 1}, "activation": "gelu"}
    assert text_parts(described) == {"source": tag("a", "b"), "activation": "gelu"}


def test_weights_are_hashed_by_name_and_value_in_float32() -> None:
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
        model.bias.zero_()
    content = b"bias" + torch.zeros(1).numpy().tobytes() + b"weight" + torch.tensor([1.0, 2.0]).numpy().tobytes()
    assert hash_weights(model) == hashlib.sha256(content).hexdigest()
    assert hash_weights(model.double()) == hashlib.sha256(content).hexdigest()


def test_quick_gelu_is_detected_in_nested_modules() -> None:
    assert has_quick_gelu(torch.nn.Sequential(torch.nn.Sequential(QuickGELU())))
    assert not has_quick_gelu(torch.nn.Sequential(torch.nn.GELU()))


def test_the_same_weights_by_tag_path_and_folder_are_one_clip(
    tags: Callable[..., None], bare_weights: str, tiny_clip: Path
) -> None:
    tags(mine={})
    folder = ClipSettings(model=f"local-dir:{tiny_clip}")
    ways = [
        folder,
        *(ClipSettings(model=TINY, pretrained=name) for name in ("mine", bare_weights, str(tiny_clip / WEIGHTS))),
    ]
    found = [identify_clip(way) for way in ways]
    assert [identity for identity in found if clip_difference(found[0], identity, strict=True)] == []
    assert len({identity["weights_sha256"] for identity in found}) == 1
    for way in ways:
        for other in ways:
            known = {"source": clip_source(other), **identify_clip(other)}
            assert is_same_clip(known, {}, way)
            assert is_same_clip({}, clip_location(other), way)


def test_other_weights_activation_or_preprocessing_are_another_clip(
    tags: Callable[..., None], bare_weights: str, tiny_clip: Path, tmp_path: Path
) -> None:
    tags(mine={})
    folder = ClipSettings(model=f"local-dir:{tiny_clip}")
    known = {"source": clip_source(folder), "embed_dim": 16, **identify_clip(folder)}
    changed = {name: value * 2 if name == "text_projection" else value for name, value in tensors(tiny_clip).items()}
    others = [
        write_folder(tmp_path / "other", {"a.pt": changed}),
        ClipSettings(model=TINY, pretrained=bare_weights, quick_gelu=True),
        ClipSettings(model=TINY, pretrained=bare_weights, preprocess=PreprocessSettings(mean=(0.4, 0.5, 0.5))),
        ClipSettings(model="ViT-B-32", pretrained="openai"),  # of another size: nothing is fetched
    ]
    assert not any(is_same_clip(known, {}, other) for other in others)


def test_two_tags_are_compared_without_loading_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(clip_module, "identify_clip", refuse)
    known = {"source": {"model": "ViT-B-32", "pretrained": "openai"}, "weights_sha256": "0"}
    assert is_same_clip(known, {}, ClipSettings(model="ViT-B-32-quickgelu", pretrained="openai"))
    assert not is_same_clip(known, {}, ClipSettings(model="ViT-B-32", pretrained="laion2b_e16"))


def test_a_config_with_explicit_default_values_is_the_same(tiny_clip: Path, tmp_path: Path) -> None:
    config = json.loads(json.dumps(TINY_CLIP_CONFIG))
    config["model_cfg"]["text_cfg"]["no_causal_mask"] = False
    folder = tmp_path / "clip"
    settings = write_folder(folder, {WEIGHTS: (tiny_clip / WEIGHTS).read_bytes()}, config)
    one, other = identify_clip(ClipSettings(model=f"local-dir:{tiny_clip}")), identify_clip(settings)
    assert one["config_sha256"] != other["config_sha256"]
    assert clip_difference(one, other, strict=True) == ""
    config["model_cfg"]["text_cfg"]["heads"] = 4
    (folder / CONFIG).write_text(json.dumps(config))
    assert clip_difference(one, identify_clip(settings)).startswith("config_sha256: ")
