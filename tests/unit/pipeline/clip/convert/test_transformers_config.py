"""Configs of transformers in open_clip's form, and those that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from priorkit.pipeline.clip.convert.transformers_config import read_config
from priorkit.pipeline.errors import InputError

CLIP = {"model_type": "clip", "projection_dim": 20, "text_config": {}, "vision_config": {}}
SIGLIP: dict[str, Any] = {"model_type": "siglip", "text_config": {}, "vision_config": {}}


def read(folder: Path, content: Any) -> tuple[str, dict[str, Any]]:
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return read_config(folder)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_defaults_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    getattr(transformers, f"{kind}Config")().save_pretrained(tmp_path)
    whole = read_config(tmp_path)
    assert whole == read(tmp_path, {"model_type": kind.lower(), "text_config": {}, "vision_config": {}})


def test_the_vision_transformer_of_openai_is_open_clips(tmp_path: Path) -> None:
    family, config = read(tmp_path, {"model_type": "clip"})
    assert family == "clip"
    assert (config["embed_dim"], config["quick_gelu"]) == (512, True)
    assert config["vision_cfg"] == {
        "image_size": 224, "layers": 12, "width": 768, "head_width": 64, "patch_size": 32, "mlp_ratio": 4.0,
    }  # fmt: skip
    assert config["text_cfg"] == {
        "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0,
    }  # fmt: skip


def test_old_configs_hold_their_values_under_another_key(tmp_path: Path) -> None:
    _, config = read(tmp_path, {**CLIP, "text_config": {"vocab_size": 1}, "text_config_dict": {"vocab_size": 2}})
    assert config["text_cfg"]["vocab_size"] == 2


@pytest.mark.parametrize(("width", "inner"), [(1152, 4304), (768, 3072), (7, 19), (1000, 2999)])
def test_the_inner_width_survives_open_clips_rounding(width: int, inner: int, tmp_path: Path) -> None:
    part = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": 1}
    _, config = read(tmp_path, {**SIGLIP, "text_config": part, "vision_config": part})
    assert int(width * config["vision_cfg"]["mlp_ratio"]) == inner


@pytest.mark.parametrize(("end", "pooling"), [(2, None), (49407, None), (7, {"pool_type": "eos", "eos_id": 7})])
def test_texts_end_at_the_token_that_transformers_takes(end: int, pooling: Any, tmp_path: Path) -> None:
    _, config = read(tmp_path, {**CLIP, "text_config": {"eos_token_id": end}})
    found = {name: value for name, value in config["text_cfg"].items() if name in ("pool_type", "eos_id")}
    assert found == (pooling or {})


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not JSON"),
        ("[1]", "not a config of transformers, which has a model_type"),
        ({"model_cfg": {}}, "not a config of transformers"),
        ({"model_type": "clip_text_model"}, r"is only one tower of a model.*\nUse a folder of a whole CLIP"),
        ({"model_type": "siglip2"}, r"NaFlex.*\n"),
        ({"model_type": "blip"}, r"model_type='blip' is neither CLIP nor SigLIP.*\n.*priorkit adopt"),
        ({**CLIP, "text_config": 3}, "text_config must be an object"),
        ({**CLIP, "text_config": {"hidden_act": "gelu"}}, "different activations"),
        ({**CLIP, "text_config": {"hidden_act": "relu"}, "vision_config": {"hidden_act": "relu"}}, "'relu' is none of"),
        ({**CLIP, "vision_config": {"num_channels": 1}}, "square RGB images"),
        ({**CLIP, "vision_config": {"num_attention_heads": 0}}, "a size is not a whole number above 0"),
        ({**SIGLIP, "vision_config": {"vision_use_head": False}}, "no image embedding"),
        ({**SIGLIP, "text_config": {"projection_size": 8}}, r"different sizes \(8 and 768\)"),
        ({**SIGLIP, "text_config": {"hidden_act": "quick_gelu"}}, "which no SigLIP has"),
    ],
)
def test_other_configs_are_refused(content: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=named) as raised:
        read(tmp_path, content)
    assert str(raised.value).startswith(str(tmp_path / "config.json"))
    assert str(raised.value).count("\n") <= 1
