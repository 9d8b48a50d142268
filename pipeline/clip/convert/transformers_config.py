"""Config of a CLIP or SigLIP model of transformers, converted to the form of open_clip's configs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from ...errors import InputError
from ...json_text import parse_json
from .transformers_files import CONFIG_FILE

Family = Literal["clip", "siglip"]

_TEXT_DEFAULTS: dict[Family, dict[str, Any]] = {
    "clip": {
        "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
        "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        "eos_token_id": 49407,
    },
    "siglip": {
        "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}  # fmt: skip
_VISION_DEFAULTS: dict[Family, dict[str, Any]] = {
    "clip": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
    "siglip": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_channels": 3, "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}  # fmt: skip
"""Values that transformers uses for keys that a config lacks, keyed by family."""
_TORCH_EPS = 1e-5
"""Default of torch's layer norm, which open_clip uses if its config has no other value."""
_OLD_EOS = 2
"""End-of-text token in old configs. transformers then uses the token with the highest number."""
_ONE_TOWER = "only one tower of a model, and embed needs the image tower and the text tower"
_OTHER_TYPES = {
    "clip_text_model": _ONE_TOWER,
    "clip_vision_model": _ONE_TOWER,
    "siglip_text_model": _ONE_TOWER,
    "siglip_vision_model": _ONE_TOWER,
    "siglip2": "a SigLIP 2 for images of any shape (NaFlex); SigLIP 2 models of a fixed size have the type siglip",
}
"""Descriptions of model types that are similar to the supported types, for error messages."""


def read_config(folder: Path) -> tuple[Family, dict[str, Any]]:
    """Read a folder's `config.json`, and convert it to an open_clip config.

    Returns:
        The model's family and its config in open_clip's form. The image tower of SigLIP has the `pool_type` "map",
        which only `Siglip` implements.

    Raises:
        InputError: the file is not a config of CLIP or SigLIP, or a value is not supported by open_clip's blocks.
    """
    path = folder / CONFIG_FILE
    try:
        values = parse_json(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    kind = values.get("model_type") if isinstance(values, dict) else None
    family: Family | None = "clip" if kind == "clip" else "siglip" if kind == "siglip" else None
    if family is None:
        raise InputError(_explain_type(path, kind))
    text = {**_TEXT_DEFAULTS[family], **_part(values, "text_config", path)}
    vision = {**_VISION_DEFAULTS[family], **_part(values, "vision_config", path)}
    _require_supported(vision, path)
    convert = _clip if family == "clip" else _siglip
    try:
        return family, convert(values, text, vision, path)
    except (TypeError, ZeroDivisionError) as error:
        raise InputError(f"{path}: a size is not a whole number above 0 ({error})") from None


def _clip(values: dict[str, Any], text: dict[str, Any], vision: dict[str, Any], path: Path) -> dict[str, Any]:
    if text["hidden_act"] != vision["hidden_act"]:
        raise InputError(
            f"{path}: its towers have different activations ({text['hidden_act']} and {vision['hidden_act']}), and a "
            "model of open_clip has one; embed with transformers, and read the vectors with `priorkit adopt`"
        )
    quick_gelu, activation = _activation(text["hidden_act"], path)
    last_token = text["eos_token_id"] in (_OLD_EOS, text["vocab_size"] - 1)
    pooling = {} if last_token else {"pool_type": "eos", "eos_id": text["eos_token_id"]}
    return {
        "embed_dim": values.get("projection_dim", 512),
        "quick_gelu": quick_gelu,
        "vision_cfg": {**_vision(vision), **activation, **_eps(vision)},
        "text_cfg": {**_text(text), **pooling, **activation, **_eps(text)},
    }


def _siglip(values: dict[str, Any], text: dict[str, Any], vision: dict[str, Any], path: Path) -> dict[str, Any]:
    if not vision.get("vision_use_head", True):
        raise InputError(
            f"{path}: vision_use_head=false, so the model has no image embedding; use the SigLIP that it was made from"
        )
    parts = {}
    for name, part in (("text_cfg", text), ("vision_cfg", vision)):
        quick_gelu, activation = _activation(part["hidden_act"], path)
        if quick_gelu:
            raise InputError(f"{path}: hidden_act=quick_gelu, which no SigLIP has; correct the config")
        parts[name] = {**activation, **_eps(part)}
    size = text.get("projection_size") or text["hidden_size"]
    if size != vision["hidden_size"]:
        raise InputError(
            f"{path}: its towers give embeddings of different sizes ({size} and {vision['hidden_size']}); correct the "
            "config"
        )
    pooling = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    return {
        "embed_dim": size,
        "vision_cfg": {**_vision(vision), "pool_type": "map", **parts["vision_cfg"]},
        "text_cfg": {**_text(text), **pooling, **parts["text_cfg"]},
    }


def _vision(values: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_size": values["image_size"],
        "layers": values["num_hidden_layers"],
        "width": values["hidden_size"],
        "head_width": values["hidden_size"] // values["num_attention_heads"],
        "patch_size": values["patch_size"],
        "mlp_ratio": _mlp_ratio(values),
    }


def _text(values: dict[str, Any]) -> dict[str, Any]:
    return {
        "context_length": values["max_position_embeddings"],
        "vocab_size": values["vocab_size"],
        "width": values["hidden_size"],
        "heads": values["num_attention_heads"],
        "layers": values["num_hidden_layers"],
        "mlp_ratio": _mlp_ratio(values),
    }


def _mlp_ratio(values: dict[str, Any]) -> float:
    """Return the ratio of the MLP's inner width to the width, so that open_clip's rounding gives the inner width."""
    width, inner = values["hidden_size"], values["intermediate_size"]
    ratio: float = inner / width
    return ratio if int(width * ratio) == inner else math.nextafter(ratio, math.inf)


def _eps(values: dict[str, Any]) -> dict[str, Any]:
    eps = values["layer_norm_eps"]
    return {} if eps == _TORCH_EPS else {"norm_kwargs": {"eps": eps}}


def _activation(name: Any, path: Path) -> tuple[bool, dict[str, Any]]:
    """Return True if the activation is QuickGELU, and the other settings of the activation in open_clip's form."""
    known: dict[Any, tuple[bool, dict[str, Any]]] = {
        "quick_gelu": (True, {}),
        "gelu": (False, {}),
        "gelu_pytorch_tanh": (False, {"act_kwargs": {"approximate": "tanh"}}),
    }
    if name not in known:
        raise InputError(
            f"{path}: hidden_act={name!r} is none of {', '.join(known)}, the activations that open_clip has; embed "
            "with transformers, and read the vectors with `priorkit adopt`"
        )
    return known[name]


def _part(values: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """Return a tower's part of a config. In old configs, the key with the suffix `_dict` has the valid values."""
    part = values.get(f"{name}_dict") or values.get(name) or {}
    if not isinstance(part, dict):
        raise InputError(f"{path}: {name} must be an object (got {str(part)[:100]})")
    return part


def _require_supported(vision: dict[str, Any], path: Path) -> None:
    if vision["num_channels"] != 3 or not isinstance(vision["image_size"], int):
        raise InputError(
            f"{path}: images of {vision['num_channels']} channels and size {vision['image_size']}; priorkit embeds "
            "square RGB images"
        )


def _explain_type(path: Path, kind: Any) -> str:
    if not isinstance(kind, str):
        return (
            f"{path}: not a config of transformers, which has a model_type. A folder of a CLIP holds the config and "
            "the weights as save_pretrained writes them, or open_clip_config.json and weights of open_clip"
        )
    described = _OTHER_TYPES.get(kind, "neither CLIP nor SigLIP, the types that priorkit can load")
    return (
        f"{path}: model_type={kind!r} is {described}.\nUse a folder of a whole CLIP or SigLIP, or embed with "
        "transformers and read the vectors with `priorkit adopt`"
    )
