"""Comparison of a prior's CLIP with the one that made a folder of embeddings, by what is known of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...pipeline.clip.identity import Match, compare_clips, text_parts
from ...pipeline.read.dataset import EmbeddingDataset
from .config import PriorConfig


def match_clips(config: PriorConfig, dataset: EmbeddingDataset) -> Match:
    """Compare the CLIP of a prior with the one that embedded the texts of a folder; nothing is loaded.

    The folder that the prior was trained on is known by its fingerprint. Else `compare_clips` decides.
    """
    if config.trained_on is not None and config.trained_on.embeddings == dataset.content_fingerprint:
        return "same"
    there = dataset.clip_if_known
    location = {} if not there or "source" in there else dataset.clip_settings
    return compare_clips(*map(text_parts, (config.clip, config.clip_settings, there, location)))


def clip_named(location: Mapping[str, Any]) -> str:
    """A CLIP as messages name it; empty where it is not known."""
    model, pretrained = location.get("model"), location.get("pretrained")
    return f"{model} ({pretrained})" if model and pretrained else str(model or "")
