"""Check that positional embeddings loaded from a weight file have the same length as those of the model.

Without this check, open_clip would silently interpolate positional embeddings of a different length.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .convert.torchscript import is_torchscript, read_torchscript
from .plan import ClipPlan
from .settings import ClipSettings

_IMAGE = ("visual.positional_embedding",)
_TEXT = ("text.positional_embedding", "positional_embedding")
"""State dict keys of the positional embeddings of the image tower (`_IMAGE`) and the text tower (`_TEXT`).

open_clip resizes these embeddings to fit the model. Weights for a model with a separate text tower may use either key
in `_TEXT`.
"""


def require_positions(model: torch.nn.Module, plan: ClipPlan, settings: ClipSettings) -> None:
    """Check that the positional embeddings in a weight file have the same length as those of the model.

    Weights from a tag or a hub are not checked. If the settings specify an image size, the image tower is not checked,
    because open_clip then interpolates its positions.

    Args:
        model: model that the weights have been loaded into.
        plan: plan that the model was loaded with.
        settings: settings of the model.

    Raises:
        InputError: the weights are for a different image size or a different text length.
    """
    weights = plan.weights or Path(plan.pretrained or "")
    if not weights.is_absolute():  # weights from a tag or a hub always fit the model
        return
    stored = _stored_lengths(weights)
    lengths = {name: len(value) for name, value in model.state_dict().items() if name in (*_IMAGE, *_TEXT)}
    may_resize = settings.preprocess is not None and settings.preprocess.size is not None
    image, model_image = _first(stored, _IMAGE), _first(lengths, _IMAGE)
    if not may_resize and None not in (image, model_image) and image != model_image:
        raise InputError(
            f"{weights}: these weights are of images of another size ({image} positions) than the model's "
            f"({model_image}); name the model of that size, or set embed.clip.preprocess.size to interpolate them"
        )
    text, model_text = _first(stored, _TEXT), _first(lengths, _TEXT)
    if None not in (text, model_text) and text != model_text:
        raise InputError(
            f"{weights}: these weights are of texts of {text} tokens, the model's are of {model_text}; name the model "
            "that they belong to, or correct context_length in its config"
        )


def _first(lengths: Mapping[str, int], names: tuple[str, ...]) -> int | None:
    return next((lengths[name] for name in names if name in lengths), None)


def _stored_lengths(weights: Path) -> dict[str, int]:
    """Return the number of positions in each positional embedding of a weight file, keyed by tensor name.

    Only the shapes are used. The result is empty if the file is neither a safetensors file, a TorchScript archive nor a
    `torch.save` file that contains only tensors and plain Python values.
    """
    names = (*_IMAGE, *_TEXT)
    if weights.suffix == ".safetensors":
        import safetensors  # installed, because open_clip has already loaded the weights with it

        with safetensors.safe_open(weights, "pt") as file:
            return {name: file.get_slice(name).get_shape()[0] for name in file.keys() if name in names}  # noqa: SIM118
    if is_torchscript(weights):
        return {name: len(value) for name, value in read_torchscript(weights).items() if name in names}
    try:
        content: Any = torch.load(weights, map_location="meta", weights_only=True)
    except Exception:  # NumPy weights, which open_clip has already loaded
        return {}
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    plain = {name.removeprefix("module."): value for name, value in state.items() if isinstance(name, str)}
    return {name: len(value) for name, value in plain.items() if name in names}
