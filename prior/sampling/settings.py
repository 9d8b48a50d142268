"""Sampling settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...pipeline.settings import Settings

SamplerName = Literal["ddpm", "ddim", "dpmsolver++", "dalle2-ddim", "unclip", "unclip-ddpm", "one-step"]
NormName = Literal["unit", "raw"]
GuidanceName = Literal["text", "dalle2"]
MAX_SEED = 2**63 - 1
"""Maximum seed that all random generators used by priorkit accept."""


class SampleSettings(Settings):
    """Settings for sampling from a prior."""

    sampler: SamplerName = "ddim"
    """Sampler: `ddpm` (ancestral), `ddim` (deterministic given the initial noise), `dpmsolver++` (needs fewer
    steps for the same quality), `dalle2-ddim` (the DDIM variant in DALLE2-pytorch), `unclip` (the sampler in diffusers'
    pipelines of Karlo and Kandinsky), `unclip-ddpm` (the one in its Stable unCLIP pipelines) or `one-step` (a single
    evaluation, for ECLIPSE's priors)."""
    steps: int = Field(default=64, ge=1)
    """Number of network evaluations per sampled embedding. For priors that reproduce DALLE2-pytorch 1.10.3 or later,
    `dalle2-ddim` uses one evaluation fewer."""
    guidance_scale: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Scale of classifier-free guidance: 1 uses the text as in training, values above 1 amplify its effect, and 0
    ignores the text."""
    guidance: GuidanceName = "text"
    """Inputs dropped in the unconditional prediction of classifier-free guidance: the text (`text`), or the text and
    the noisy image (`dalle2`), as in DALLE2-pytorch."""
