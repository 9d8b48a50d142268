"""Positional embeddings of a CLIP's weights: open_clip resizes those of another length without a word."""

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
"""Names of those that open_clip resizes; in the weights of a model with a text tower of its own either may stand."""


def require_positions(model: torch.nn.Module, plan: ClipPlan, settings: ClipSettings) -> None:
    """Check that the weights of a file have as many positions as the model that they were loaded into.

    Raises:
        InputError: they are of images of another size, or of texts of another length.
    """
    weights = plan.weights or Path(plan.pretrained or "")
    if not weights.is_absolute():  # a tag, which open_clip knows to fit, or a model of a hub
        return
    stored = _stored_lengths(weights)
    lengths = {name: len(value) for name, value in model.state_dict().items() if name in (*_IMAGE, *_TEXT)}
    asked = settings.preprocess is not None and settings.preprocess.size is not None
    image, image_here = _first(stored, _IMAGE), _first(lengths, _IMAGE)
    if not asked and None not in (image, image_here) and image != image_here:
        raise InputError(
            f"{weights}: these weights are of images of another size ({image} positions) than the model's "
            f"({image_here}); name the model of that size, or set embed.clip.preprocess.size to interpolate them"
        )
    text, text_here = _first(stored, _TEXT), _first(lengths, _TEXT)
    if None not in (text, text_here) and text != text_here:
        raise InputError(
            f"{weights}: these weights are of texts of {text} tokens, the model's are of {text_here}; name the model "
            "that they belong to, or correct context_length in its config"
        )


def _first(lengths: Mapping[str, int], names: tuple[str, ...]) -> int | None:
    return next((lengths[name] for name in names if name in lengths), None)


def _stored_lengths(weights: Path) -> dict[str, int]:
    """Lengths of the positional embeddings in a file, whose values are not read; none of a file of another kind."""
    names = (*_IMAGE, *_TEXT)
    if weights.suffix == ".safetensors":
        import safetensors  # which open_clip has loaded the weights with

        with safetensors.safe_open(weights, "pt") as file:
            return {name: file.get_slice(name).get_shape()[0] for name in file.keys() if name in names}  # noqa: SIM118
    try:
        content: Any = torch.load(weights, map_location="meta", weights_only=True)
    except Exception:  # TorchScript, or of NumPy: open_clip has loaded it already
        return {}
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    plain = {name.removeprefix("module."): value for name, value in state.items() if isinstance(name, str)}
    return {name: len(value) for name, value in plain.items() if name in names}
