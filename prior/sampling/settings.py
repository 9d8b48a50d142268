"""Settings of sampling."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...pipeline.settings import Settings

SamplerName = Literal["ddpm", "ddim", "dpmsolver++", "dalle2-ddim"]
GuidanceName = Literal["text", "dalle2"]
MAX_SEED = 2**63 - 1
"""Largest seed that all generators in use take."""


class SampleSettings(Settings):
    """How embeddings are drawn from a prior."""

    sampler: SamplerName = "ddim"
    """`ddpm`: ancestral. `ddim`: deterministic after the first noise. `dpmsolver++`: as good in fewer steps.
    `dalle2-ddim`: DALLE2-pytorch's."""
    steps: int = Field(default=64, ge=1)
    """Network evaluations for one draw; one fewer of `dalle2-ddim`."""
    guidance_scale: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """1 follows the text as trained; above 1 exaggerates what the text adds; 0 ignores it."""
    guidance: GuidanceName = "text"
    """What the other branch of guidance drops: the text, or the text and the noisy image as DALLE2-pytorch does."""
