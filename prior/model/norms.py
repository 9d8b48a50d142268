"""Norms of sampled embeddings and of text embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...pipeline.errors import SettingsError
from ..sampling.settings import NormName
from .config import PriorConfig

_UNIT_TOLERANCE = 2e-3
"""Maximum deviation from 1 of a norm that counts as 1, because embeddings may have been rounded to float16."""


def default_norm(config: PriorConfig, norm: NormName | None) -> NormName | None:
    """Return the norm that sampled embeddings get: `unit`, `raw`, or None if they are left as the network gives them.

    Args:
        config: configuration of the prior.
        norm: norm that the user asks for; None for the prior's default.

    Raises:
        SettingsError: the name is unknown, or the prior knows no norms of images.
    """
    if norm not in (None, "unit", "raw"):
        raise SettingsError(f"norm={norm!r}: known are unit and raw")
    if norm == "raw" and not config.diffusion.takes_raw_images and config.image_norm is None:
        raise SettingsError(
            "norm=raw: this prior predicts no norms, and the norms of its training images are not known; train it on a "
            "folder of `priorkit embed`, or use norm=unit"
        )
    if norm is not None:
        return norm
    if config.diffusion.takes_raw_images:
        return "raw"
    return "unit" if config.diffusion.output_norm == "unit" else None


def convert_norms(embeds: torch.Tensor, config: PriorConfig, norm: NormName | None) -> torch.Tensor:
    """Return sampled embeddings `[N, D]`, in the normaliser's image space, with the norms that `norm` names.

    A prior that does not predict norms scales all embeddings to the mean norm of its training images.
    """
    chosen = default_norm(config, norm)
    if chosen is None or (chosen == "raw" and config.diffusion.takes_raw_images):
        return embeds
    units = F.normalize(embeds, dim=-1)
    if chosen == "unit":
        return units
    assert config.image_norm is not None
    return units * config.image_norm.mean


def require_raw(text_embed: torch.Tensor) -> None:
    """Check that text embeddings `[B, S]` are not normalised.

    Raises:
        SettingsError: all of them have norm 1.
    """
    norms = text_embed.norm(dim=-1)
    if len(norms) and bool(((norms - 1).abs() < _UNIT_TOLERANCE).all()):
        raise SettingsError(
            "text_embed has rows of norm 1, but this prior takes text embeddings as the CLIP gives them; multiply each "
            "row by its norm (the metadata column text_norm), or give prompts"
        )
