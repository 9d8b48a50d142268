"""Comparison of a prior's CLIP with the one that made a folder of embeddings, by what is known of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..pipeline.read import EmbeddingDataset
from .prior_config import PriorConfig

_ACTIVATION = "-quickgelu"
"""Ending of open_clip's names of models with the activation of OpenAI's."""
Match = Literal["same", "other", "unknown"]


def match_clips(config: PriorConfig, dataset: EmbeddingDataset) -> Match:
    """Compare the CLIP of a prior with the one that made some embeddings.

    The folder that the prior was trained on is known by its fingerprint. Else hashes of weights decide, else the names
    of models and tags in open_clip; weights from a path have no name.
    """
    if config.trained_on is not None and config.trained_on.embeddings == dataset.content_fingerprint:
        return "same"
    wanted, there = config.clip.get("weights_sha256"), dataset.clip_if_known.get("weights_sha256")
    if wanted is not None and there is not None:
        return "same" if wanted == there else "other"
    if not dataset.clip_if_known:
        return "unknown"
    own, others = _name(config.clip_settings), _name(dataset.clip_settings)
    if own is None or others is None:
        return "unknown"
    if own == others:
        return "same"
    # a tag's weights go by the name of either activation
    return (
        "unknown"
        if [name.removesuffix(_ACTIVATION) for name in own] == [name.removesuffix(_ACTIVATION) for name in others]
        else "other"
    )


def clip_named(location: Mapping[str, Any]) -> str:
    """A CLIP as messages name it; empty where it is not known."""
    model, pretrained = location.get("model"), location.get("pretrained")
    return f"{model} ({pretrained})" if model and pretrained else str(model or "")


def _name(location: Mapping[str, Any]) -> tuple[str, str] | None:
    """Model and tag of open_clip; None where either is a path, or not known."""
    model, pretrained = location.get("model"), location.get("pretrained")
    if not model or not pretrained or ":" in model or "/" in pretrained or "\\" in pretrained:
        return None
    return model.replace("/", "-"), pretrained.replace("-", "_")  # open_clip takes either spelling
