"""Settings of sampling."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...pipeline.settings import Settings

SamplerName = Literal["ddpm", "ddim", "dpmsolver++", "dalle2-ddim"]
GuidanceName = Literal["text", "dalle2"]
MAX_SEED = 2**63 - 1
"""Largest seed that all random generators in use accept."""


class SampleSettings(Settings):
    """Settings of sampling from a prior."""

    sampler: SamplerName = "ddim"
    """Sampler: `ddpm` (ancestral), `ddim` (deterministic after the first noise), `dpmsolver++` (as good in fewer steps)
    or `dalle2-ddim` (DALLE2-pytorch's)."""
    steps: int = Field(default=64, ge=1)
    """Number of network evaluations per draw; `dalle2-ddim` makes one fewer."""
    guidance_scale: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Weight of the text: 1 follows it as trained, above 1 exaggerates it, 0 ignores it."""
    guidance: GuidanceName = "text"
    """Inputs that the null branch drops: the text, or (`dalle2`) the text and the noisy image as in DALLE2-pytorch."""
