"""Conversion of prior settings between DALLE2-pytorch and priorkit.

DALLE2-pytorch's training script reads its prior settings from a JSON file. They are the arguments of the classes
`DiffusionPriorNetwork` and `DiffusionPrior`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ...pipeline.errors import SettingsError
from ...pipeline.settings import Settings, parse_settings
from ..model.config import PriorConfig
from ..network.function_version import LATEST_FUNCTION, FunctionVersion
from ..network.settings import NetworkSettings
from ..objective.settings import DiffusionSettings

_DEFAULT_TEXT_LEN = 256
"""Default of `max_text_len` (maximum number of token states per caption) in DALLE2-pytorch."""
_OPENAI_CLIPS = {
    "RN50": "RN50", "RN101": "RN101", "RN50x4": "RN50x4", "RN50x16": "RN50x16", "RN50x64": "RN50x64",
    "ViT-B/32": "ViT-B-32", "ViT-B/16": "ViT-B-16", "ViT-L/14": "ViT-L-14", "ViT-L/14@336px": "ViT-L-14-336",
}  # fmt: skip
"""OpenAI's names of CLIP models, mapped to open_clip's names of the same models."""


class NetworkConfig(Settings):
    """Arguments of `DiffusionPriorNetwork` in DALLE2-pytorch."""

    dim: int = Field(ge=8)
    """Embedding size, which is also the width of the network."""
    depth: int = Field(ge=1)
    """Number of layers."""
    max_text_len: int | None = Field(default=None, ge=0)
    """Maximum number of token states (CLIP text encoder outputs, one per token) per caption; null means 256."""
    num_timesteps: int | None = None
    """Number of learned timestep embeddings; null means that sinusoidal timestep embeddings are used instead."""
    num_time_embeds: int = 1
    """Number of network input tokens that represent the timestep."""
    num_image_embeds: int = 1
    """Number of network input tokens that represent the noisy image embedding."""
    num_text_embeds: int = 1
    """Number of network input tokens that represent the pooled text embedding."""
    dim_head: int = 64
    """Width of an attention head."""
    heads: int = 8
    """Number of attention heads."""
    ff_mult: float = 4
    """Inner width of the feed-forward layers, as a multiple of `dim`."""
    norm_in: bool = False
    """Normalise the tokens before the first layer."""
    norm_out: bool = True
    """Normalise the output of the last layer."""
    attn_dropout: float = 0.0
    """Dropout rate in attention."""
    ff_dropout: float = 0.0
    """Dropout rate in feed-forward layers."""
    final_proj: bool = True
    """Apply a final linear projection to the output."""
    normformer: bool = False
    """Add a normalisation layer inside each feed-forward layer (NormFormer)."""
    rotary_emb: bool = True
    """Use rotary position embeddings."""
    self_cond: bool = False
    """Pass the previous x0 estimate to the network as an additional token (self-conditioning)."""


class DiffusionConfig(Settings):
    """Arguments of `DiffusionPrior` in DALLE2-pytorch: the `prior` section of its training script's JSON file."""

    net: NetworkConfig
    """Arguments of the network."""
    clip: dict[str, Any] | None = None
    """Description of the CLIP model, with the keys `make` (such as `openai`) and `model` (such as `ViT-L/14`)."""
    image_embed_dim: int | None = None
    """Image embedding size; null means `net.dim`."""
    image_size: int | None = None
    """Width and height of the images in pixels. Ignored, because a prior processes only image embeddings."""
    image_channels: int = 3
    """Number of colour channels of the images. Ignored, because a prior processes only image embeddings."""
    timesteps: int = Field(default=1000, ge=2)
    """Number of diffusion timesteps (noise levels)."""
    sample_timesteps: int | None = None
    """Default number of sampling steps in DALLE2-pytorch. Ignored, because it is not part of a priorkit prior."""
    cond_drop_prob: float = Field(default=0.0, ge=0, le=1)
    """Value used for `text_cond_drop_prob` if it is null, and for `image_cond_drop_prob` if it is null."""
    text_cond_drop_prob: float | None = Field(default=None, ge=0, le=1)
    """Probability of dropping the text during training; null means `cond_drop_prob`."""
    image_cond_drop_prob: float | None = Field(default=None, ge=0, le=1)
    """Probability of dropping the noisy image during training; null means `cond_drop_prob`."""
    loss_type: Literal["l1", "l2", "huber"] = "l2"
    """Loss function."""
    predict_x_start: bool = True
    """Predict the clean embedding (x0) if True, or the noise (eps) if False."""
    predict_v: bool = False
    """Predict the velocity (v) if True, regardless of `predict_x_start`."""
    beta_schedule: Literal["cosine", "linear", "quadratic", "jsd", "sigmoid"] = "cosine"
    """Noise schedule."""
    condition_on_text_encodings: bool = True
    """Condition the network on token states in addition to the pooled text embedding."""
    sampling_clamp_l2norm: bool = False
    """Scale the predicted x0 to the norm `image_embed_scale` at each sampling step."""
    sampling_final_clamp_l2norm: bool = False
    """Scale the sampled embedding to the norm `image_embed_scale` after the last sampling step."""
    training_clamp_l2norm: bool = False
    """Scale the network output to the norm `image_embed_scale` before the training loss is computed."""
    init_image_embed_l2norm: bool = False
    """Scale the noise from which sampling starts to the norm `image_embed_scale`."""
    image_embed_scale: float | None = Field(default=None, gt=0)
    """L2 norm to which image embeddings are scaled before noise is added; null means sqrt(`net.dim`)."""
    clip_adapter_overrides: dict[str, Any] = Field(default_factory=dict)
    """Options of DALLE2-pytorch's CLIP adapter. Ignored, because priorkit does not use this adapter."""


NAMED_CONFIGS: dict[str, dict[str, Any]] = {
    "laion-model-card": {
        "net": {
            "dim": 768, "depth": 24, "dim_head": 64, "heads": 32, "normformer": True, "attn_dropout": 0.05,
            "ff_dropout": 0.05, "num_timesteps": 1000, "ff_mult": 4,
        },
        "clip": {"make": "openai", "model": "ViT-L/14"},
        "image_embed_dim": 768, "timesteps": 1000, "cond_drop_prob": 0.1, "loss_type": "l2",
        "condition_on_text_encodings": True,
    },
}  # fmt: skip
"""Built-in settings of published priors, by name.

The settings of `laion-model-card` are copied from the code example in the model card of LAION's prior.
"""


def parse_config(described: Any, source: str) -> DiffusionConfig:
    """Parse and check the settings of a DALLE2-pytorch prior.

    Args:
        described: parsed JSON file of DALLE2-pytorch's training script, or only its `prior` section.
        source: name of the settings, for error messages.

    Raises:
        SettingsError: a key is unknown or missing, a value is out of range, `image_embed_dim` differs from `net.dim`,
            or the network has fewer timestep embeddings than there are timesteps.
    """
    if isinstance(described, dict) and isinstance(described.get("prior"), dict):
        described = described["prior"]
    if not isinstance(described, dict):
        raise SettingsError(f"{source}: holds no settings; the JSON of dalle2-pytorch's training script is needed")
    config = parse_settings(DiffusionConfig, described, source)
    if config.image_embed_dim not in (None, config.net.dim):
        raise SettingsError(f"{source}: image_embed_dim={config.image_embed_dim} differs from net.dim={config.net.dim}")
    rows = config.net.num_timesteps
    if rows is not None and rows < config.timesteps:
        raise SettingsError(f"{source}: net.num_timesteps={rows} is fewer than timesteps={config.timesteps}")
    return config


def to_prior_config(config: DiffusionConfig, function: FunctionVersion, source: str) -> PriorConfig:
    """Convert DALLE2-pytorch prior settings to a priorkit configuration.

    Args:
        config: settings to convert.
        function: DALLE2-pytorch release that the prior was trained with.
        source: name of the settings, for error messages.

    Raises:
        SettingsError: the release or priorkit does not support these settings.
    """
    net = config.net
    shared = net.model_dump(exclude={"dim", "max_text_len"})
    if net.self_cond and not function.takes_self_cond:
        raise SettingsError(f"{source}: net.self_cond=true, but dalle2-pytorch {function} had no self-conditioning")
    network = {
        **shared,
        "width": net.dim,
        "max_text_len": _DEFAULT_TEXT_LEN if net.max_text_len is None else net.max_text_len,
        "function_version": str(function),
    }
    prediction = "v" if config.predict_v else "x0" if config.predict_x_start else "eps"
    clamp = "sphere" if config.sampling_clamp_l2norm else "none"
    drops = (config.text_cond_drop_prob, config.image_cond_drop_prob)
    text_drop, image_drop = (config.cond_drop_prob if drop is None else drop for drop in drops)
    if not function.has_null_tokens:
        text_drop = image_drop = 0.0  # in effect, this release never dropped the condition in training
    diffusion = {
        "timesteps": config.timesteps,
        "noise_schedule": config.beta_schedule,
        "prediction": prediction,
        "loss": config.loss_type,
        "text_drop": text_drop,
        "image_drop": image_drop,
        "embed_scale": config.image_embed_scale,
        "x0_clamp": clamp if config.predict_x_start else "unit_box",
        "training_clamp": config.training_clamp_l2norm and config.predict_x_start,
        "init_clamp": config.init_image_embed_l2norm,
        "output_norm": "unit" if config.sampling_final_clamp_l2norm and config.predict_x_start else "none",
    }
    return PriorConfig(
        embed_dim=net.dim,
        token_width=net.dim if config.condition_on_text_encodings else None,
        network=parse_settings(NetworkSettings, network, source),
        diffusion=parse_settings(DiffusionSettings, diffusion, source),
        clip={},
        clip_settings=_clip_settings(config.clip),
    )


def _clip_settings(clip: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return open_clip's names of a CLIP model and its weights, under the keys `model` and `pretrained`.

    Args:
        clip: description of the CLIP model in DALLE2-pytorch's settings; None if the settings contain no description.

    Returns:
        The names, if the model is a known model from OpenAI. Otherwise, an empty dictionary, because DALLE2-pytorch's
        settings do not name the weights of models from other sources.
    """
    if clip is None or clip.get("make", "openai") != "openai":
        return {}
    name = clip.get("model", "ViT-L/14")
    return {"model": _OPENAI_CLIPS[name], "pretrained": "openai"} if name in _OPENAI_CLIPS else {}


def to_dalle2_config(config: PriorConfig) -> dict[str, Any]:
    """Convert a priorkit configuration to the `prior` section of the JSON file of DALLE2-pytorch's training script.

    Call `require_exportable` first. This function does not check whether DALLE2-pytorch supports the configuration.
    """
    network, diffusion = causal_network(config), config.diffusion
    net = network.model_dump(exclude={"family", "width", "function_version"})
    return {
        "net": {"dim": config.embed_dim, **net, "ff_mult": int(network.ff_mult)},
        "image_embed_dim": config.embed_dim,
        "image_size": 224,  # required by DALLE2-pytorch, but not used
        "timesteps": diffusion.timesteps,
        "text_cond_drop_prob": diffusion.text_drop,
        "image_cond_drop_prob": diffusion.image_drop,
        "loss_type": diffusion.loss,
        "predict_x_start": diffusion.x0_clamp != "unit_box",
        "predict_v": diffusion.prediction == "v",
        "beta_schedule": diffusion.noise_schedule,
        "condition_on_text_encodings": config.token_width is not None,
        "sampling_clamp_l2norm": diffusion.x0_clamp == "sphere",
        "sampling_final_clamp_l2norm": diffusion.output_norm == "unit",
        "training_clamp_l2norm": diffusion.training_clamp,
        "init_image_embed_l2norm": diffusion.init_clamp,
        "image_embed_scale": diffusion.embed_scale,
    }


def causal_network(config: PriorConfig) -> NetworkSettings:
    """Return the network settings of a prior with a network of DALLE2-pytorch.

    Raises:
        SettingsError: the prior has a network of another family.
    """
    if not isinstance(config.network, NetworkSettings):
        raise SettingsError(
            f"dalle2-pytorch has no {config.network.family}; `priorkit export PRIOR FOLDER` writes this prior for "
            "diffusers"
        )
    return config.network


def require_exportable(config: PriorConfig) -> None:
    """Check that the newest DALLE2-pytorch release can represent a prior with this configuration.

    Raises:
        SettingsError: the release cannot represent the prior. The message lists every setting that prevents it.
    """
    network, diffusion, dim = causal_network(config), config.diffusion, config.embed_dim
    function = network.function
    clamped = diffusion.x0_clamp == "unit_box"
    newest = FunctionVersion.parse(LATEST_FUNCTION)
    reasons = {
        f"network.width={network.width} is not embed_dim={dim}": network.width != dim,
        f"text_dim={config.text_dim} is not embed_dim={dim}": config.text_dim not in (None, dim),
        f"token_width={config.token_width} is not embed_dim={dim}": config.token_width not in (None, dim),
        f"network.ff_mult={network.ff_mult} is no whole number": network.ff_mult != int(network.ff_mult),
        f"normaliser={diffusion.normaliser}": diffusion.normaliser != "sqrt_dim",
        f"prediction=x0 with x0_clamp={diffusion.x0_clamp}": diffusion.prediction == "x0" and clamped,
        f"prediction=eps with x0_clamp={diffusion.x0_clamp}": diffusion.prediction == "eps" and not clamped,
        f"output_norm=unit with x0_clamp={diffusion.x0_clamp}": diffusion.output_norm == "unit" and clamped,
        f"training_clamp with x0_clamp={diffusion.x0_clamp}": diffusion.training_clamp and clamped,
        f"function_version={function}, of which 1.15.6 makes other embeddings": any(
            getattr(function, name) != getattr(newest, name)
            for name in ("cosine_attention", "has_null_text", "real_timesteps")
        )
        or (network.self_cond and not function.self_cond_before_query),
    }
    if found := [reason for reason, applies in reasons.items() if applies]:
        raise SettingsError(f"dalle2-pytorch has no such prior: {'; '.join(found)}")
