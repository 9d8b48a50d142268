"""Settings of the network, its diffusion, training, sampling and evaluation: frozen data with light imports."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ..pipeline.config import DeviceSettings, Settings

MAX_SEED = 2**63 - 1
"""Largest seed that all generators in use take."""

SamplerName = Literal["ddpm", "ddim"]


class NetworkSettings(Settings):
    """The prior network."""

    width: int = Field(default=512, ge=8)
    """Width of the token stream; independent of the embedding's size."""
    depth: int = Field(default=6, ge=1)
    """Transformer blocks."""
    heads: int = Field(default=8, ge=1)
    """Attention heads; their width is `width / heads`."""
    ff_mult: int = Field(default=4, ge=1)
    """Hidden width of the feed-forward layers, as a multiple of `width`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of attention and feed-forward outputs; 0 keeps a run a pure function of its seed on any worker count."""
    max_text_len: int = Field(default=0, ge=0)
    """Token states that condition the prior besides the pooled text; 0 uses the pooled text alone."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width ({self.width}) must be a multiple of twice heads ({self.heads})")
        return self


class DiffusionSettings(Settings):
    """The diffusion that the network is trained to undo."""

    timesteps: int = Field(default=1000, ge=2)
    """Noise levels; 1000 as in DALL-E 2's prior."""
    noise_schedule: Literal["cosine", "linear"] = "cosine"
    """How noise grows with the timestep: cosine (Nichol and Dhariwal 2021) or linear (Ho et al. 2020)."""
    prediction: Literal["x0", "eps", "v"] = "x0"
    """What the network predicts; x0, as DALL-E 2 found it to work best."""
    text_drop: float = Field(default=0.1, ge=0, le=1)
    """Share of the training draws whose text is dropped, which makes guidance possible; the model card's value."""


class OptimiserSettings(Settings):
    """AdamW, its learning rate, and the averaged weights."""

    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the learning rate grows linearly from 0."""
    decay: Literal["cosine", "constant"] = "cosine"
    """What follows the warmup: cosine to a tenth of the peak by the last step, or the peak throughout."""
    weight_decay: float = Field(default=0.06, ge=0)
    """Decay of matrices (not of vectors); the model card's 6.02e-2."""
    beta2: float = Field(default=0.99, gt=0, lt=1)
    """Decay of the second moment."""
    max_grad_norm: float = Field(default=0.5, gt=0)
    """Gradients are scaled down to this norm; the model card's value."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the averaged weights each step, after a warmup of (1 + step) / (10 + step)."""


class TrainSettings(DeviceSettings):
    """Training of a prior."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"checkpoint_every", "keep_checkpoints"})

    network: NetworkSettings = NetworkSettings()
    """The network."""
    diffusion: DiffusionSettings = DiffusionSettings()
    """The diffusion."""
    optimiser: OptimiserSettings = OptimiserSettings()
    """The optimiser."""
    steps: int = Field(default=100_000, ge=1)
    """Optimiser steps in all."""
    batch_size: int = Field(default=256, ge=1)
    """Rows in one step; the last batch of an epoch is shorter."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of weights, data order, noise, timesteps and text drops."""
    log_every: int = Field(default=50, ge=1)
    """Steps between lines of `metrics.jsonl`."""
    validate_every: int = Field(default=500, ge=1)
    """Steps between validations of the averaged weights."""
    validation_rows: int = Field(default=2048, ge=1)
    """Rows of the validation split that are used, with noise that never changes."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints: at most this much work is lost by a kill."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""


class SampleSettings(Settings):
    """How embeddings are drawn from a prior."""

    sampler: SamplerName = "ddim"
    """`ddpm`: ancestral. `ddim`: deterministic after the first noise (eta 0)."""
    steps: int = Field(default=64, ge=1)
    """Network evaluations for one draw."""
    guidance_scale: float = Field(default=1.0, ge=0)
    """1 follows the text as trained; above 1 exaggerates what the text adds; 0 ignores it."""


class EvaluateSettings(DeviceSettings):
    """Evaluation of a prior on a split it was not trained on."""

    split: Literal["validation", "test"] = "test"
    """Rows to evaluate on."""
    draws: int = Field(default=8, ge=2)
    """Embeddings drawn for each caption; the energy score wants at least 8."""
    max_rows: int = Field(default=10_000, ge=2)
    """Rows of the split that are used at most, the first in a seeded order; the number used is printed."""
    sample: SampleSettings = SampleSettings()
    """How embeddings are drawn."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of draws, of the random baseline and of the bootstrap."""
    bootstrap_samples: int = Field(default=1000, ge=100)
    """Resamplings of the rows for the 95% intervals."""
