"""Settings for the diffusion objective."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ...pipeline.settings import Settings
from ..network.family import FamilySettings


class DiffusionSettings(Settings):
    """Settings for the diffusion process, such as noise levels, training loss, and normalisation of embeddings."""

    later_fields: ClassVar[frozenset[str]] = frozenset({"clip_sample_range"})

    timesteps: int = Field(default=1000, ge=2, le=1_000_000)
    """Number of noise levels; DALL-E 2's prior uses 1000."""
    noise_schedule: Literal["cosine", "linear", "quadratic", "jsd", "sigmoid"] = "cosine"
    """Noise schedule, which sets the noise level of each timestep; DALL-E 2's prior uses `cosine` (Nichol and Dhariwal
    2021)."""
    prediction: Literal["x0", "eps", "v"] = "x0"
    """Quantity that the network predicts; the DALL-E 2 authors found that `x0` works best."""
    loss: Literal["l2", "l1", "huber"] = "l2"
    """Loss function: squared error (`l2`), absolute error (`l1`), or squared below 1 and linear above (`huber`)."""
    loss_weighting: Literal["none", "min_snr"] = "none"
    """Loss weight per timestep: equal (`none`), or signal-to-noise ratio capped at 5 (`min_snr`, Hang et al. 2023)."""
    text_drop: float = Field(default=0.1, ge=0, le=1)
    """Fraction of captions dropped in training, for classifier-free guidance. Guidance requires a value above 0.
    LAION's prior was trained with 0.1."""
    image_drop: float = Field(default=0.0, ge=0, le=1)
    """Fraction of noisy images dropped in training. Only `guidance: dalle2` requires a value above 0."""
    normaliser: Literal["sqrt_dim", "standardise", "whiten", "clip_stats"] = "sqrt_dim"
    """Normalisation of image embeddings: to norm sqrt(D) (`sqrt_dim`), to mean 0 and variance 1 per coordinate
    (`standardise`), or to identity covariance (`whiten`). `standardise` and `whiten` use the mean and the variances or
    covariance of training embeddings. These three ignore the norms of embeddings. `clip_stats` standardises embeddings
    with the norms that the CLIP model gave them, so that the prior predicts norms too; decoders need them."""
    embed_scale: float | None = Field(default=None, gt=0)
    """Norm that `sqrt_dim` scales embeddings to; null means sqrt(D), where D is the embedding size."""
    x0_clamp: Literal["none", "unit_box", "sphere", "range"] = "none"
    """Clamping of x0 estimates during sampling: no clamping (`none`), each coordinate to [-1, 1] (`unit_box`) or to
    [-`clip_sample_range`, `clip_sample_range`] (`range`), or the embedding to norm 1 (`sphere`)."""
    clip_sample_range: float | None = Field(default=None, gt=0)
    """Limit of each coordinate of x0 estimates, in normalised embeddings, for `x0_clamp: range`. Karlo uses 5 and
    Kandinsky 10."""
    training_clamp: bool = False
    """Rescale the network output to the norm of normalised embeddings before the loss is computed. This norm is
    `embed_scale`, or sqrt(D) if `embed_scale` is null."""
    init_clamp: bool = False
    """Rescale the initial noise before sampling, to norm `embed_scale`, or to norm sqrt(D) if `embed_scale` is null."""
    output_norm: Literal["unit", "none"] = "unit"
    """Normalisation of sampled embeddings: to norm 1 (`unit`), or no normalisation (`none`). With
    `normaliser: clip_stats`, samples have the norms that the prior predicts unless other norms are asked for."""

    @property
    def takes_raw_images(self) -> bool:
        """True if image embeddings must have the norms that the CLIP model gave them."""
        return self.normaliser == "clip_stats"

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.x0_clamp == "range" and self.clip_sample_range is None:
            raise ValueError("x0_clamp=range needs clip_sample_range, such as 10")
        if self.x0_clamp != "range" and self.clip_sample_range is not None:
            raise ValueError(f"clip_sample_range has no effect with x0_clamp={self.x0_clamp}; set x0_clamp=range")
        if self.normaliser == "clip_stats" and self.x0_clamp in ("sphere", "unit_box"):
            raise ValueError(f"x0_clamp={self.x0_clamp} does not fit normaliser=clip_stats; use range or none")
        if self.normaliser == "clip_stats" and self.init_clamp:
            raise ValueError("init_clamp does not fit normaliser=clip_stats; leave it out")
        if self.embed_scale is not None and self.normaliser != "sqrt_dim":
            raise ValueError(f"embed_scale has no meaning for normaliser={self.normaliser}")
        if self.training_clamp and self.normaliser != "sqrt_dim":
            raise ValueError(f"training_clamp needs normaliser=sqrt_dim, not {self.normaliser}")
        if self.noise_schedule in ("linear", "quadratic", "sigmoid") and self.timesteps <= 20:
            raise ValueError(f"timesteps={self.timesteps}: {self.noise_schedule} needs more than 20")
        return self


def check_network(network: FamilySettings, diffusion: DiffusionSettings) -> None:
    """Check that the diffusion settings fit the network.

    Raises:
        ValueError: they do not. The message gives the reason.
    """
    if network.most_timesteps is not None and network.most_timesteps < diffusion.timesteps:
        raise ValueError(
            f"network.num_timesteps={network.most_timesteps} is fewer than diffusion.timesteps={diffusion.timesteps}"
        )
    if network.takes_raw_text and diffusion.normaliser != "clip_stats":
        raise ValueError(
            f"diffusion.normaliser={diffusion.normaliser}: a {network.family} works with embeddings that are not "
            "normalised; set diffusion.normaliser=clip_stats"
        )
    if network.takes_raw_text and diffusion.prediction != "x0":
        raise ValueError(f"diffusion.prediction={diffusion.prediction}: a {network.family} predicts x0")


def check_drops(network: FamilySettings, diffusion: DiffusionSettings) -> None:
    """Check that a network can be trained by diffusion, and that training can drop texts and images.

    Raises:
        ValueError: the network ignores the timestep, or texts or images are to be dropped, but nothing can stand for
            them in the network.
    """
    if not network.uses_time:
        raise ValueError(
            "network.time_token=false: without the timestep, a network cannot be trained by diffusion; priors of "
            "ECLIPSE can only be sampled, with sampler=one-step"
        )
    if not network.drops_text and (diffusion.text_drop or diffusion.image_drop):
        raise ValueError(
            f"dalle2-pytorch {network.function} had nothing in place of what is dropped: set diffusion.text_drop and "
            "diffusion.image_drop to 0, or leave out network.function_version"
        )
    if not network.drops_image and diffusion.image_drop:
        raise ValueError(f"diffusion.image_drop: a {network.family} cannot drop the noisy image; set it to 0")
