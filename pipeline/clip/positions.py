"""Check of positional embeddings, because open_clip silently interpolates embeddings of a different length."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .plan import ClipPlan
from .settings import ClipSettings

_IMAGE = ("visual.positional_embedding",)
_TEXT = ("text.positional_embedding", "positional_embedding")
"""Names of the tensors that open_clip resizes. Weights of a separate text tower may use either name in `_TEXT`."""


def require_positions(model: torch.nn.Module, plan: ClipPlan, settings: ClipSettings) -> None:
    """Check that a weight file has as many positions as the model that it was loaded into.

    Raises:
        InputError: the weights are for another image size or another text length.
    """
    weights = plan.weights or Path(plan.pretrained or "")
    if not weights.is_absolute():  # weights of a tag or a hub model fit their model
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
    """Return the lengths of a file's positional embeddings without reading their values.

    The result is empty if the file is neither safetensors nor a plain `torch.save` file.
    """
    names = (*_IMAGE, *_TEXT)
    if weights.suffix == ".safetensors":
        import safetensors  # installed, because open_clip has already loaded the weights with it

        with safetensors.safe_open(weights, "pt") as file:
            return {name: file.get_slice(name).get_shape()[0] for name in file.keys() if name in names}  # noqa: SIM118
    try:
        content: Any = torch.load(weights, map_location="meta", weights_only=True)
    except Exception:  # TorchScript or NumPy weights, which open_clip has already loaded
        return {}
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    plain = {name.removeprefix("module."): value for name, value in state.items() if isinstance(name, str)}
    return {name: len(value) for name, value in plain.items() if name in names}
