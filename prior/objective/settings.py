"""Settings of the diffusion objective."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ...pipeline.settings import Settings


class DiffusionSettings(Settings):
    """Settings of the diffusion that a network is trained to reverse."""

    timesteps: int = Field(default=1000, ge=2, le=1_000_000)
    """Number of noise levels; 1000 as in DALL-E 2's prior."""
    noise_schedule: Literal["cosine", "linear", "quadratic", "jsd", "sigmoid"] = "cosine"
    """Growth of the noise with the timestep; cosine (Nichol and Dhariwal 2021) as in DALL-E 2's prior."""
    prediction: Literal["x0", "eps", "v"] = "x0"
    """Prediction target of the network; DALL-E 2's authors found x0 to work best."""
    loss: Literal["l2", "l1", "huber"] = "l2"
    """Error of the prediction: squared, absolute, or squared below 1 and absolute above."""
    loss_weighting: Literal["none", "min_snr"] = "none"
    """Weights of timesteps in the loss: equal, or the signal-to-noise ratio up to 5 (Hang et al. 2023)."""
    text_drop: float = Field(default=0.1, ge=0, le=1)
    """Share of training captions whose text is dropped, which makes guidance possible; LAION's model card uses 0.1."""
    image_drop: float = Field(default=0.0, ge=0, le=1)
    """Share of training draws whose noisy image is dropped; only `guidance: dalle2` needs it."""
    normaliser: Literal["sqrt_dim", "standardise", "whiten"] = "sqrt_dim"
    """Scaling of image embeddings for diffusion: to norm sqrt(D), or by statistics of the training rows."""
    embed_scale: float | None = Field(default=None, gt=0)
    """Norm that `sqrt_dim` scales to, instead of sqrt(D)."""
    x0_clamp: Literal["none", "unit_box", "sphere"] = "none"
    """Clamp of estimates of x0 during sampling: none, coordinates to [-1, 1], or to unit embeddings."""
    training_clamp: bool = False
    """Scale the network's output to the norm of x0 before the loss."""
    init_clamp: bool = False
    """Scale the first noise of sampling to the norm of x0."""
    output_norm: Literal["unit", "none"] = "unit"
    """Norm of sampled embeddings: 1, or not normalised."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.embed_scale is not None and self.normaliser != "sqrt_dim":
            raise ValueError(f"embed_scale has no meaning for normaliser={self.normaliser}")
        if self.training_clamp and self.normaliser != "sqrt_dim":
            raise ValueError(f"training_clamp needs normaliser=sqrt_dim, not {self.normaliser}")
        if self.noise_schedule in ("linear", "quadratic", "sigmoid") and self.timesteps <= 20:
            raise ValueError(f"timesteps={self.timesteps}: {self.noise_schedule} needs more than 20")
        return self
