"""Conversion between the settings of DALLE2-pytorch's priors and ours.

The JSON of its training script holds the arguments of `DiffusionPriorNetwork` and `DiffusionPrior`.
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
"""Token states of a network whose settings name no number: the default of DALLE2-pytorch."""
_OPENAI_CLIPS = {
    "RN50": "RN50", "RN101": "RN101", "RN50x4": "RN50x4", "RN50x16": "RN50x16", "RN50x64": "RN50x64",
    "ViT-B/32": "ViT-B-32", "ViT-B/16": "ViT-B-16", "ViT-L/14": "ViT-L-14", "ViT-L/14@336px": "ViT-L-14-336",
}  # fmt: skip
"""Names of OpenAI's CLIPs, and the names of the same models in open_clip."""


class NetworkConfig(Settings):
    """Arguments of DALLE2-pytorch's `DiffusionPriorNetwork`."""

    dim: int = Field(ge=8)
    """Size of embeddings, and width of the network."""
    depth: int = Field(ge=1)
    """Number of layers."""
    max_text_len: int | None = Field(default=None, ge=0)
    """Largest number of token states; null is the default of 256."""
    num_timesteps: int | None = None
    """Rows of the learned table of timesteps; null uses sinusoids."""
    num_time_embeds: int = 1
    """Number of tokens for the timestep."""
    num_image_embeds: int = 1
    """Number of tokens for the image."""
    num_text_embeds: int = 1
    """Number of tokens for the pooled text."""
    dim_head: int = 64
    """Width of an attention head."""
    heads: int = 8
    """Number of attention heads."""
    ff_mult: float = 4
    """Width of the feed-forward layers, as a multiple of `dim`."""
    norm_in: bool = False
    """Normalise before the first layer."""
    norm_out: bool = True
    """Normalise after the last layer."""
    attn_dropout: float = 0.0
    """Dropout rate of attention."""
    ff_dropout: float = 0.0
    """Dropout rate of feed-forward layers."""
    final_proj: bool = True
    """Project the output to the embedding."""
    normformer: bool = False
    """Normalise inside the feed-forward layers."""
    rotary_emb: bool = True
    """Use rotary position embeddings."""
    self_cond: bool = False
    """Use self-conditioning."""


class DiffusionConfig(Settings):
    """Arguments of DALLE2-pytorch's `DiffusionPrior`: the part `prior` of its training script's JSON."""

    net: NetworkConfig
    """Arguments of the network."""
    clip: dict[str, Any] | None = None
    """`make` and `model` of the CLIP."""
    image_embed_dim: int | None = None
    """Size of image embeddings; null is `net.dim`."""
    image_size: int | None = None
    """Not used by a prior."""
    image_channels: int = 3
    """Not used by a prior."""
    timesteps: int = Field(default=1000, ge=2)
    """Number of noise levels."""
    sample_timesteps: int | None = None
    """Default number of sampling steps in DALLE2-pytorch; not converted."""
    cond_drop_prob: float = Field(default=0.0, ge=0, le=1)
    """Probability of dropping the condition in training."""
    text_cond_drop_prob: float | None = Field(default=None, ge=0, le=1)
    """Probability of dropping the text; null is `cond_drop_prob`."""
    image_cond_drop_prob: float | None = Field(default=None, ge=0, le=1)
    """Probability of dropping the image; null is `cond_drop_prob`."""
    loss_type: Literal["l1", "l2", "huber"] = "l2"
    """Loss function."""
    predict_x_start: bool = True
    """Predict x0 instead of eps."""
    predict_v: bool = False
    """Predict v; takes precedence over `predict_x_start`."""
    beta_schedule: Literal["cosine", "linear", "quadratic", "jsd", "sigmoid"] = "cosine"
    """Noise schedule."""
    condition_on_text_encodings: bool = True
    """Use token states."""
    sampling_clamp_l2norm: bool = False
    """Scale x0 to the norm of embeddings at each sampling step."""
    sampling_final_clamp_l2norm: bool = False
    """Scale sampled embeddings to the norm of embeddings."""
    training_clamp_l2norm: bool = False
    """Scale predictions to the norm of embeddings in training."""
    init_image_embed_l2norm: bool = False
    """Scale the initial noise to the norm of embeddings."""
    image_embed_scale: float | None = Field(default=None, gt=0)
    """Norm of embeddings inside the network; null is sqrt(dim)."""
    clip_adapter_overrides: dict[str, Any] = Field(default_factory=dict)
    """Not used here."""


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
"""Settings of published priors by name, from the code of LAION's model card."""


def parse_config(described: Any, source: str) -> DiffusionConfig:
    """Parse the settings of a prior, from the JSON of a training script or its part `prior`.

    Raises:
        SettingsError: a key is unknown or missing, or a value is out of range.
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
    """Convert the settings of a DALLE2-pytorch prior to ours.

    Raises:
        SettingsError: the release does not support these settings.
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
        text_drop = image_drop = 0.0  # this release dropped nothing in fact: the condition stayed visible
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
    """Locate an OpenAI CLIP in open_clip; empty for other CLIPs, whose weights the settings do not name."""
    if clip is None or clip.get("make", "openai") != "openai":
        return {}
    name = clip.get("model", "ViT-L/14")
    return {"model": _OPENAI_CLIPS[name], "pretrained": "openai"} if name in _OPENAI_CLIPS else {}


def to_dalle2_config(config: PriorConfig) -> dict[str, Any]:
    """Convert our settings to the part `prior` of a training script's JSON, for a prior that can be exported."""
    network, diffusion = config.network, config.diffusion
    net = network.model_dump(exclude={"width", "function_version"})
    return {
        "net": {"dim": config.embed_dim, **net, "ff_mult": int(network.ff_mult)},
        "image_embed_dim": config.embed_dim,
        "image_size": 224,  # required, but not used
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


def require_exportable(config: PriorConfig) -> None:
    """Raise SettingsError, with all reasons, if the newest release of DALLE2-pytorch has no such prior."""
    function = FunctionVersion.parse(config.network.function_version)
    network, diffusion, dim = config.network, config.diffusion, config.embed_dim
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
