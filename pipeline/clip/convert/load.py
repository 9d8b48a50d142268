"""Load CLIP models of other packages as models of open_clip's architecture.

The weights are converted exactly. Batching, token states, packed blocks and compilation then work as for open_clip's
own models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..file_kinds import require_weights
from ..files import require_content
from ..settings import ClipSettings
from .siglip import Siglip
from .torchscript import is_torchscript, openai_config, read_torchscript, stated_activation
from .transformers_folder import TransformersPlan
from .transformers_processor import Tokenizer, transform
from .transformers_weights import read_tensors, to_open_clip


class LoadedClip(NamedTuple):
    """CLIP model in evaluation mode, with all that is needed to use it."""

    model: Any
    preprocess: Any
    """Image transform for inference."""
    tokenizer: Any
    config: dict[str, Any]
    """open_clip config of the model."""
    processor_sha256: str | None = None
    """Hash of the preprocessing and the tokenizer if they are not those of open_clip, otherwise None."""


def load_transformers(plan: TransformersPlan, dtype: torch.dtype, device: str, library: Any) -> LoadedClip:
    """Load a CLIP or SigLIP model of transformers.

    Args:
        plan: plan for loading the model.
        dtype: dtype to compute in.
        device: torch device.
        library: the open_clip module.
    """
    model = build_model(plan.config, library, dtype, device)
    load_state(model, to_open_clip(read_tensors(plan.weights), plan.family), library, may_resize=plan.may_resize)
    size = plan.config["vision_cfg"]["image_size"]
    transformed = transform(plan.preprocess, size, library)
    library.set_model_preprocess_cfg(model, _described(plan.preprocess, size))
    text = plan.config["text_cfg"]
    if plan.has_tokenizer:
        tokenizer: Any = Tokenizer(plan.folder, text["context_length"], text["vocab_size"])
    else:
        tokenizer = library.SimpleTokenizer(context_length=text["context_length"])
    return LoadedClip(model.eval(), transformed, tokenizer, plan.config, plan.processor_hash())


def load_openai(settings: ClipSettings, path: Path, dtype: torch.dtype, device: str, library: Any) -> LoadedClip:
    """Load weights of OpenAI's package. Their shapes determine the architecture.

    Args:
        settings: settings of the model. They may replace OpenAI's preprocessing and activation.
        path: TorchScript archive or file of a state dict.
        dtype: dtype to compute in.
        device: torch device.
        library: the open_clip module.

    Raises:
        InputError: the weights are not those of a model of OpenAI's package.
    """
    require_content(path)
    require_weights(path)
    if is_torchscript(path):
        state, stated = read_torchscript(path), stated_activation(path)
    else:
        state, stated = library.factory.load_state_dict(str(path)), None
    config = openai_config(state, path)
    config["quick_gelu"] = next(value for value in (settings.quick_gelu, stated, True) if value is not None)
    given = settings.overrides().get("preprocess", {})
    config["vision_cfg"]["image_size"] = size = given.get("size", config["vision_cfg"]["image_size"])
    model = build_model(config, library, dtype, device)
    load_state(model, state, library, may_resize="size" in given)
    values = {name: value for name, value in given.items() if name != "size"}
    preprocess = library.transform.PreprocessCfg(size=(size, size), **values)
    library.set_model_preprocess_cfg(model, vars(preprocess))
    tokenizer = library.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    return LoadedClip(model.eval(), library.transform.image_transform_v2(preprocess, is_train=False), tokenizer, config)


def load_state(model: nn.Module, state: dict[str, torch.Tensor], library: Any, *, may_resize: bool) -> None:
    """Copy weights into a model.

    Args:
        model: model to copy them into.
        state: weights, keyed by the names in the model.
        library: the open_clip module.
        may_resize: True to interpolate the position embeddings of images if the model has another image size.

    Raises:
        RuntimeError: a tensor is missing, unknown or of another shape.
    """
    if "logit_scale" in state:
        state["logit_scale"] = state["logit_scale"].reshape(())
    if may_resize:
        library.model.resize_pos_embed(state, model)
    model.load_state_dict(state)


def build_model(config: dict[str, Any], library: Any, dtype: torch.dtype, device: str) -> nn.Module:
    """Create a model with random weights. With a dtype of 16 bits, the norms remain in float32, as in open_clip."""
    low = None if dtype == torch.float32 else dtype
    if config["vision_cfg"].get("pool_type") == "map":
        siglip = Siglip(config, library, low).to(device=device, dtype=dtype)
        for module in siglip.modules():
            if isinstance(module, nn.LayerNorm):
                module.float()
        return siglip
    model: nn.Module = library.CLIP(**config, cast_dtype=low).to(device)
    if low is not None:
        library.convert_weights_to_lp(model, dtype=low)
    return model


def _described(preprocess: dict[str, Any], size: int) -> dict[str, Any]:
    """Return preprocessing values in the form that open_clip records for its own models."""
    return {"size": (size, size), "mode": "RGB", **preprocess, "fill_color": 0}
