"""A prior by its settings: what `config.json` of its folder says, what is built of it, and how it may be sampled."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator
from typing_extensions import Self

from ...pipeline.errors import SettingsError
from ...pipeline.settings import Settings
from ..network.function_version import FunctionVersion
from ..network.interface import Network
from ..network.network import PriorNetwork
from ..network.settings import NetworkSettings
from ..objective.normaliser import EmbeddingNormaliser
from ..objective.schedule import noise_schedule
from ..objective.settings import DiffusionSettings
from ..sampling.samplers import sampling_grid
from ..sampling.settings import SampleSettings


class TrainedOn(Settings):
    """Which rows a prior has seen: what it takes to keep them out of its evaluation."""

    embeddings: str
    """Fingerprint of the embeddings' content."""
    read: dict[str, Any]
    """How their rows were split."""


class PriorConfig(Settings):
    """What `config.json` of a prior's folder says: enough to build the network and find its CLIP."""

    embed_dim: int = Field(ge=1)
    """Size of image embeddings."""
    text_dim: int | None = Field(default=None, ge=1)
    """Size of text embeddings, where they come from another encoder; null where it is that of images."""
    token_width: int | None = Field(ge=1)
    """Width of token states; null where the prior uses none."""
    network: NetworkSettings
    """The network."""
    diffusion: DiffusionSettings
    """The diffusion."""
    clip: dict[str, Any]
    """Identity of the CLIP that made the embeddings it was trained on; empty where that is not known."""
    clip_settings: dict[str, Any]
    """Where that CLIP is to be had; empty where it is not known."""
    trained_on: TrainedOn | None = None
    """Its training rows; null where they are not known, as of imported checkpoints."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        network, diffusion = self.network, self.diffusion
        if network.num_timesteps is not None and network.num_timesteps < diffusion.timesteps:
            raise ValueError(
                f"network.num_timesteps={network.num_timesteps} is fewer than diffusion.timesteps={diffusion.timesteps}"
            )
        return self


def build_network(config: PriorConfig) -> Network:
    """A network with random weights."""
    try:
        return PriorNetwork(
            embed_dim=config.embed_dim, text_dim=config.text_dim, token_width=config.token_width,
            **config.network.model_dump(),
        )  # fmt: skip
    except ValueError as error:
        raise SettingsError(f"network: {error}") from None
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:  # torch's, for sizes that nothing can hold
        reason = str(error).partition("\n")[0]
        raise SettingsError(f"network: it is too large to be made ({reason}); restore its settings") from None


def build_normaliser(config: PriorConfig) -> EmbeddingNormaliser:
    """A normaliser whose statistics, if it has any, are still those of the standard normal distribution."""
    return EmbeddingNormaliser(config.diffusion.normaliser, config.embed_dim, config.diffusion.embed_scale)


def check_sampling(
    network: NetworkSettings, takes_token_states: bool, diffusion: DiffusionSettings, sample: SampleSettings
) -> list[int]:
    """The timesteps that a prior of these settings would be evaluated at.

    Raises:
        SettingsError: it cannot be sampled so; says why.
    """
    function, scale = FunctionVersion.parse(network.function_version), sample.guidance_scale
    if scale != 1.0:
        if not function.has_null_tokens:
            raise SettingsError(
                f"guidance_scale={scale}: in dalle2-pytorch {function} nothing was trained for it; use 1"
            )
        if diffusion.text_drop == 0:
            raise SettingsError(f"guidance_scale={scale}: this prior was trained without dropping text; use 1")
        if sample.guidance == "dalle2" and diffusion.image_drop == 0:
            raise SettingsError("guidance=dalle2: this prior was trained without dropping the image; use guidance=text")
        if sample.guidance == "text" and not (function.has_null_text or takes_token_states):
            raise SettingsError(f"guidance=text: dalle2-pytorch {function} dropped no pooled text; use guidance=dalle2")
    schedule = noise_schedule(diffusion.noise_schedule, diffusion.timesteps)
    try:
        grid = sampling_grid(sample.sampler, schedule, sample.steps, function)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if diffusion.prediction == "eps" and schedule.alpha_bar[grid[0]] == 0:
        raise SettingsError(
            f"sampler={sample.sampler} begins at a timestep of pure noise, where this prior's prediction of eps says "
            "nothing; take dalle2-ddim"
        )
    return grid
