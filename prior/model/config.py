"""Prior configuration (`config.json`), construction of the network and normaliser, and checks of sampling settings.

Only this module uses a concrete network class. Other modules use the interface in `network/interface.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, model_validator
from typing_extensions import Self

from ...pipeline.errors import SettingsError
from ...pipeline.settings import Settings
from ..network.families import AnyNetworkSettings
from ..network.family import FamilySettings
from ..network.interface import Network
from ..network.network import PriorNetwork
from ..network.prior_transformer.network import PriorTransformer
from ..network.prior_transformer.settings import PriorTransformerSettings
from ..objective.normaliser import EmbeddingNormaliser
from ..objective.schedule import noise_schedule
from ..objective.settings import DiffusionSettings, check_network
from ..sampling.by_name import sampling_grid
from ..sampling.settings import SampleSettings


class TrainedOn(Settings):
    """Record of the dataset rows that a prior was trained on, so that evaluation can exclude these rows."""

    embeddings: str
    """Fingerprint (hash) of the content of the embedding folder that the prior was trained on."""
    read: dict[str, Any]
    """Settings for reading the training data. They determine which rows were in the training, validation and test
    splits."""


class NormStatistics(Settings):
    """Mean and standard deviation of norms."""

    mean: float
    """Mean."""
    std: float
    """Standard deviation."""


class PriorConfig(Settings):
    """Content of `config.json`: everything needed to build the network and find the prior's CLIP model."""

    embed_dim: int = Field(ge=1)
    """Size of image embeddings."""
    text_dim: int | None = Field(default=None, ge=1)
    """Size of text embeddings; null if they have the same size as image embeddings (`embed_dim`)."""
    token_width: int | None = Field(ge=1)
    """Width of token states (per-token text-encoder outputs); null if the prior uses no token states."""
    network: AnyNetworkSettings
    """Network settings of the prior's family."""
    diffusion: DiffusionSettings
    """Diffusion settings."""
    clip: dict[str, Any]
    """Values that identify the CLIP model that produced the training embeddings, such as a hash of its weights.

    Empty if the model is unknown.
    """
    clip_settings: dict[str, Any]
    """Settings for loading the CLIP model; empty if the settings are unknown."""
    spaces: dict[str, Any] | None = None
    """Names and sizes of the source and the target, by role, if no CLIP made the training embeddings; null for a prior
    of a CLIP. Sources and predictions are then in different spaces, in which cosines between them mean nothing."""
    image_norm: NormStatistics | None = None
    """Norms of the training images' embeddings before they were normalised; null if they are unknown."""
    lora: bool = False
    """True if training trained adapters (LoRA). They are merged into the weights, and also stored alone."""
    trained_on: TrainedOn | None = None
    """Record of the rows that the prior was trained on. Null if they are unknown, for example because the prior was
    imported from a DALLE2-pytorch checkpoint."""

    @property
    def compares_texts(self) -> bool:
        """True if text embeddings and predictions are in one space, so that cosines between them mean something."""
        return self.spaces is None and self.text_dim in (None, self.embed_dim)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        check_network(self.network, self.diffusion)
        return self


def build_network(config: PriorConfig) -> Network:
    """Build the network that the config describes, with random weights.

    Raises:
        SettingsError: the network settings are inconsistent, or the network is too large.
    """
    try:
        sizes: dict[str, Any] = {
            "embed_dim": config.embed_dim, "text_dim": config.text_dim, "token_width": config.token_width,
        }  # fmt: skip
        if isinstance(config.network, PriorTransformerSettings):
            return PriorTransformer(**sizes, settings=config.network)
        return PriorNetwork(**sizes, **config.network.model_dump(exclude={"family"}))
    except ValueError as error:
        raise SettingsError(f"network: {error}") from None
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:  # raised by torch for impossibly large sizes
        reason = str(error).partition("\n")[0]
        raise SettingsError(f"network: it is too large to be made ({reason}); restore its settings") from None


def build_network_with(config: PriorConfig, weights: dict[str, torch.Tensor]) -> Network:
    """Build the network that the config describes, with given weights, which have been checked to fit.

    A `PriorTransformer` takes over the tensors, so that memory holds large weights only once.
    """
    if not isinstance(config.network, PriorTransformerSettings):
        network = build_network(config)
        network.load_state_dict(weights)
        return network
    network = describe_network(config)
    network.load_state_dict(weights, assign=True)
    for name, buffer in list(network.named_buffers()):
        setattr(network, name, torch.zeros_like(buffer, device="cpu"))
    return network


def describe_network(config: PriorConfig) -> Network:
    """Build the network that the config describes without memory for weights, to check names and shapes of weights."""
    with torch.device("meta"):
        return build_network(config)


def build_normaliser(config: PriorConfig) -> EmbeddingNormaliser:
    """Build the image embedding normaliser that the config describes, before any statistics are loaded or fitted.

    If the normaliser uses statistics, they are initialised to a mean of 0 and an identity covariance.
    """
    return EmbeddingNormaliser(config.diffusion.normaliser, config.embed_dim, config.diffusion.embed_scale)


def check_sampling(
    network: FamilySettings, takes_token_states: bool, diffusion: DiffusionSettings, sample: SampleSettings
) -> list[int]:
    """Check that a prior with the given settings supports the sampling settings in `sample`.

    Args:
        network: network settings of the prior.
        takes_token_states: True if the network takes token states as input.
        diffusion: diffusion settings of the prior.
        sample: sampling settings to check.

    Returns:
        Timesteps at which the sampler evaluates the network, noisiest first.

    Raises:
        SettingsError: the prior does not support the sampling settings. The message gives the reason.
    """
    if sample.guidance_scale != 1.0:
        _check_guidance(network, takes_token_states, diffusion, sample)
    if not network.uses_time and sample.sampler != "one-step":
        raise SettingsError(
            f"sampler={sample.sampler}: this prior predicts in one step from noise; use sampler=one-step, steps=1"
        )
    schedule = noise_schedule(diffusion.noise_schedule, diffusion.timesteps)
    if sample.sampler in ("unclip", "unclip-ddpm") and diffusion.noise_schedule != "cosine":
        raise SettingsError(
            f"sampler={sample.sampler} has the cosine noise schedule, this prior {diffusion.noise_schedule}; use ddpm"
        )
    try:
        grid = sampling_grid(sample.sampler, schedule, sample.steps, network.function)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if diffusion.prediction == "eps" and schedule.alpha_bar[grid[0]] == 0:
        raise SettingsError(
            f"sampler={sample.sampler} begins at a timestep of pure noise, where this prior's prediction of eps says "
            "nothing; take dalle2-ddim"
        )
    return grid


def _check_guidance(
    network: FamilySettings, takes_token_states: bool, diffusion: DiffusionSettings, sample: SampleSettings
) -> None:
    """Raise SettingsError if the prior does not support the guidance in `sample`."""
    scale, function = sample.guidance_scale, network.function
    if not network.drops_text:
        raise SettingsError(f"guidance_scale={scale}: in dalle2-pytorch {function} nothing was trained for it; use 1")
    if diffusion.text_drop == 0:
        raise SettingsError(f"guidance_scale={scale}: this prior was trained without dropping text; use 1")
    if sample.guidance == "dalle2" and not (diffusion.image_drop and network.drops_image):
        raise SettingsError("guidance=dalle2: this prior was trained without dropping the image; use guidance=text")
    if sample.guidance == "text" and not (network.drops_pooled_text or takes_token_states):
        raise SettingsError(f"guidance=text: dalle2-pytorch {function} dropped no pooled text; use guidance=dalle2")
