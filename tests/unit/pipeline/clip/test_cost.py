"""The operations of a CLIP's towers, against the products of its config counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from priorkit.pipeline.clip.cost import ClipCost
from priorkit.pipeline.clip.encoder import clip_cost
from priorkit.pipeline.clip.settings import ClipSettings


def transformer(layers: int, width: int, tokens: int) -> float:
    """Count the operations of the linear layers: queries, keys, values, output, and an MLP of four times the width."""
    return layers * tokens * 2 * 12 * width**2


@pytest.mark.parametrize(
    ("model", "pretrained", "image", "text"),
    [
        ("ViT-B-32", "openai", (12, 768, 50), (12, 512, 77)),
        ("ViT-L-14", "openai", (24, 1024, 257), (12, 768, 77)),
    ],
)
def test_the_operations_are_those_of_the_transformers_and_a_little_more(
    model: str, pretrained: str, image: tuple[int, int, int], text: tuple[int, int, int]
) -> None:
    """No weights are needed. Patches, attention and projection add at most a sixth."""
    cost = clip_cost(ClipSettings(model=model, pretrained=pretrained))
    assert cost is not None
    assert 1 < cost.image_flops / transformer(*image) < 1.17
    assert 1 < cost.text_flops / transformer(*text) < 1.17
    assert (cost.context_length, cost.can_cut) == (77, True)


def test_a_local_model_and_its_image_size_count(tiny_clip: Path) -> None:
    config = json.loads((tiny_clip / "open_clip_config.json").read_text())["model_cfg"]
    local = {"model": f"local-dir:{tiny_clip}"}
    cost = clip_cost(ClipSettings(**local))
    assert cost is not None
    assert cost.context_length == config["text_cfg"]["context_length"]
    twice = {"size": 2 * config["vision_cfg"]["image_size"]}
    larger = clip_cost(ClipSettings(**local, preprocess=twice))
    assert larger is not None
    assert larger.image_flops > 2 * cost.image_flops
    assert larger.text_flops == cost.text_flops


@pytest.mark.parametrize(
    ("family", "image", "text", "can_cut"),
    [("clip", (12, 768, 50), (12, 512, 77), True), ("siglip", (12, 768, 197), (12, 768, 64), False)],
)
def test_a_folder_of_transformers_counts_by_its_config(
    family: str, image: tuple[int, int, int], text: tuple[int, int, int], can_cut: bool, tmp_path: Path
) -> None:
    """The defaults of transformers are those of a CLIP ViT-B/32, and of a SigLIP ViT-B/16. No weights are needed."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    cost = clip_cost(ClipSettings(model=f"local-dir:{tmp_path}"))
    assert cost is not None
    assert 1 < cost.image_flops / transformer(*image) < 1.17
    assert 1 < cost.text_flops / transformer(*text) < 1.17
    assert (cost.context_length, cost.can_cut) == (text[2], can_cut)


def test_a_model_that_cannot_be_built_has_no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_hf", offline)
    assert clip_cost(ClipSettings(model="hf-hub:nobody/nothing")) is None


def test_short_captions_cost_less_where_they_are_cut() -> None:
    cut = ClipCost(image_flops=1, text_flops=770, context_length=77, can_cut=True)
    assert (cut.flops_of_caption(7), cut.flops_of_caption(100)) == (70, 770)
    padded = ClipCost(image_flops=1, text_flops=770, context_length=77, can_cut=False)
    assert padded.flops_of_caption(7) == 770
