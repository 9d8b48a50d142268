"""The plan for loading a CLIP, and the architectures and tags that it compares."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from priorkit.pipeline.clip.encoder import check_clip
from priorkit.pipeline.clip.plan import ClipPlan, architecture, open_clip_defaults, plan_clip
from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.clip.source import parse_source
from priorkit.pipeline.errors import InputError, PriorkitError

from ....conftest import TINY_CLIP_CONFIG
from .conftest import CONFIG, TINY, write_folder

OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]


def plan(settings: ClipSettings) -> ClipPlan:
    return plan_clip(settings, parse_source(settings, lambda model, name: False), open_clip)


def test_open_clip_loads_tags_and_hub_models_itself() -> None:
    assert plan(ClipSettings()) == ClipPlan("ViT-B-32", "laion2b_s34b_b79k", None, {})
    quick = ClipSettings(model="hf-hub:org/name", quick_gelu=True)
    assert plan(quick) == ClipPlan("hf-hub:org/name", None, None, {"quick_gelu": True})


def test_weights_of_a_folder_are_loaded_after_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "clip", {"w.pt": {}})
    monkeypatch.chdir(tmp_path)
    weights = Path.cwd() / "clip/w.pt"
    assert plan(ClipSettings(model="local-dir:clip")) == ClipPlan("local-dir:clip", None, weights, {})


def test_a_file_is_named_by_its_absolute_path(
    tags: Callable[..., None], bare_weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags(a={"interpolation": "bilinear"})
    monkeypatch.chdir(Path(bare_weights).parent)
    planned = plan(ClipSettings(model=TINY, pretrained=Path(bare_weights).name))
    assert (planned.name, planned.weights) == (TINY, None)
    assert planned.pretrained == str(Path.cwd() / Path(bare_weights).name)
    assert planned.trained == {**open_clip_defaults(False, open_clip), "mean": [0.5] * 3, "std": [0.5] * 3,
                               "interpolation": "bilinear"}  # fmt: skip


def test_an_empty_file_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    with pytest.raises(InputError, match="an empty file"):
        plan(ClipSettings(pretrained=str(tmp_path / "w.pt"), quick_gelu=True))


def test_open_clips_defaults_are_openais() -> None:
    defaults = open_clip_defaults(True, open_clip)
    assert (defaults["mean"], defaults["quick_gelu"]) == (OPENAI_MEAN, True)
    assert (defaults["interpolation"], defaults["resize_mode"]) == ("bicubic", "shortest")


@pytest.mark.parametrize(
    ("part", "values", "same"),
    [
        ("text_cfg", {"no_causal_mask": False}, True),
        ("text_cfg", {"heads": 4}, False),
        ("text_cfg", {"hf_model_pretrained": False}, True),
        ("vision_cfg", {"timm_model_pretrained": True}, True),
        ("vision_cfg", {"patch_dropout": 0.5}, True),
        ("vision_cfg", {"patch_size": 8}, False),
    ],
)
def test_an_architecture_leaves_out_defaults_and_what_weights_replace(
    part: str, values: dict[str, Any], same: bool
) -> None:
    config: dict[str, Any] = TINY_CLIP_CONFIG["model_cfg"]
    changed = {**config, part: {**config[part], **values}, "quick_gelu": True, "init_logit_bias": -10}
    assert (architecture(changed, open_clip) == architecture(config, open_clip)) is same


def test_an_unknown_model_is_an_error_with_the_nearest_names() -> None:
    with pytest.raises(
        InputError, match=r"embed\.clip\.model=ViT-B-33: open_clip has no such model; nearest: .*ViT-B-32"
    ):
        check_clip(ClipSettings(model="ViT-B-33", pretrained="openai"))


def test_a_config_beside_the_weights_must_fit_the_model(tags: Callable[..., None], bare_weights: str) -> None:
    tags(a={})
    config = json.loads(json.dumps(TINY_CLIP_CONFIG))
    config["model_cfg"]["quick_gelu"] = True
    beside = Path(bare_weights).parent / CONFIG
    beside.write_text(json.dumps(config))
    assert plan(ClipSettings(model=TINY, pretrained=bare_weights)).trained["quick_gelu"] is True
    config["model_cfg"]["text_cfg"]["context_length"] = 25
    beside.write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"the {CONFIG} beside it is not that of {TINY}; give --model local-dir:"):
        plan(ClipSettings(model=TINY, pretrained=bare_weights))


def test_an_unknown_tag_is_an_error_with_the_nearest_tags() -> None:
    with pytest.raises(PriorkitError) as raised:
        check_clip(ClipSettings(model="ViT-B-32", pretrained="laion2b_s34b_b79"))
    assert "nearest: laion2b_s34b_b79k" in str(raised.value)
    assert len(str(raised.value)) < 250


def test_real_tags_that_disagree_are_refused(bare_weights: str) -> None:
    with pytest.raises(InputError, match=r"the activation of .*\n.*quick_gelu: true\} \(as openai and"):
        check_clip(ClipSettings(model="ViT-B-32", pretrained=bare_weights))
    check_clip(ClipSettings(model="ViT-B-32", pretrained=bare_weights, quick_gelu=False))
    check_clip(ClipSettings(model="ViT-B-32-quickgelu", pretrained=bare_weights))


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("openai/clip-vit-large-patch14", r"Write hf_clip:openai/clip-vit-large-patch14 if"),
        ("./ViT-L-14.pt", r"a file, and this setting takes a name.*openai_clip:\./ViT-L-14\.pt"),
        ("./clip", r"a folder, and this setting takes a name; write local-dir:\./clip"),
    ],
)
def test_a_name_of_another_kind_is_an_error_that_says_what_to_write(model: str, named: str) -> None:
    with pytest.raises(InputError, match=rf"embed\.clip\.model={model}: (.|\n)*{named}"):
        check_clip(ClipSettings(model=model))


def test_weights_of_another_kind_are_refused_before_their_preprocessing_is_asked_for(tmp_path: Path) -> None:
    torch.save({"text_model.final_layer_norm.weight": torch.ones(1)}, tmp_path / "w.pt")
    for settings in (
        ClipSettings(model="ViT-B-32", pretrained=str(tmp_path / "w.pt")),
        write_folder(tmp_path / "clip", {"w.pt": {"text_model.final_layer_norm.weight": torch.ones(1)}}),
    ):
        with pytest.raises(InputError, match=r"w\.pt is weights of transformers\.\nPut them beside their config\.json"):
            check_clip(settings)


def test_an_archive_is_loaded_after_the_model_with_what_it_states(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    for activation, constants, quick_gelu in (("sigmoid", "input_resolution context_length vocab_size", True),
                                              ("gelu", "", False)):  # fmt: skip
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/constants.pkl", b"")
            archive.writestr("a/code/model.py", f"{constants}\ntorch.{activation}(x)")
        if quick_gelu:
            planned = plan(ClipSettings(model="ViT-L-14", pretrained=str(path)))
            assert (planned.pretrained, planned.weights) == (None, path)
            assert planned.trained == open_clip_defaults(True, open_clip)
        else:  # another's archive, whose preprocessing is not known
            with pytest.raises(InputError, match="the preprocessing of these weights is not known"):
                plan(ClipSettings(model="ViT-L-14", pretrained=str(path)))
