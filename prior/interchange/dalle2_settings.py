"""The settings of DALLE2-pytorch's priors as ours, and back.

Its `DiffusionPriorNetwork` and `DiffusionPrior` are described by the JSON of its training script.
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
_OPENAI_CLIPS = {
    "RN50": "RN50", "RN101": "RN101", "RN50x4": "RN50x4", "RN50x16": "RN50x16", "RN50x64": "RN50x64",
    "ViT-B/32": "ViT-B-32", "ViT-B/16": "ViT-B-16", "ViT-L/14": "ViT-L-14", "ViT-L/14@336px": "ViT-L-14-336",
}  # fmt: skip
"""OpenAI's names of its CLIPs, and open_clip's."""


class NetworkConfig(Settings):
    """Arguments of DALLE2-pytorch's `DiffusionPriorNetwork`."""

    dim: int = Field(ge=8)
    """Size of embeddings and width of the network."""
    depth: int = Field(ge=1)
    """Layers."""
    max_text_len: int | None = Field(default=None, ge=0)
    """Token states; null is the network's own default of 256."""
    num_timesteps: int | None = None
    """Rows of the table of timesteps; null takes sinusoids."""
    num_time_embeds: int = 1
    """Tokens for the timestep."""
    num_image_embeds: int = 1
    """Tokens for the image."""
    num_text_embeds: int = 1
    """Tokens for the pooled text."""
    dim_head: int = 64
    """Width of a head."""
    heads: int = 8
    """Attention heads."""
    ff_mult: float = 4
    """Width of the feed-forward layers."""
    norm_in: bool = False
    """Norm before the first layer."""
    norm_out: bool = True
    """Norm after the last layer."""
    attn_dropout: float = 0.0
    """Dropout of attention."""
    ff_dropout: float = 0.0
    """Dropout of feed-forward layers."""
    final_proj: bool = True
    """Projection of the prediction."""
    normformer: bool = False
    """Norm inside the feed-forward layers."""
    rotary_emb: bool = True
    """Rotary position embedding."""
    self_cond: bool = False
    """Self-conditioning."""


class DiffusionConfig(Settings):
    """Arguments of DALLE2-pytorch's `DiffusionPrior`, as the JSON of its training script has them under `prior`."""

    net: NetworkConfig
    """The network."""
    clip: dict[str, Any] | None = None
    """The CLIP: `make` and `model`."""
    image_embed_dim: int | None = None
    """Size of image embeddings; null is the network's."""
    image_size: int | None = None
    """Of no meaning to a prior."""
    image_channels: int = 3
    """Of no meaning to a prior."""
    timesteps: int = Field(default=1000, ge=2)
    """Noise levels."""
    sample_timesteps: int | None = None
    """Its default number of sampling steps; not taken over."""
    cond_drop_prob: float = Field(default=0.0, ge=0, le=1)
    """Share of draws without condition."""
    text_cond_drop_prob: float | None = Field(default=None, ge=0, le=1)
    """The same for the text alone."""
    image_cond_drop_prob: float | None = Field(default=None, ge=0, le=1)
    """The same for the image alone."""
    loss_type: Literal["l1", "l2", "huber"] = "l2"
    """Loss."""
    predict_x_start: bool = True
    """Predict x0; else eps."""
    predict_v: bool = False
    """Predict v, whatever `predict_x_start` says."""
    beta_schedule: Literal["cosine", "linear", "quadratic", "jsd", "sigmoid"] = "cosine"
    """Noise schedule."""
    condition_on_text_encodings: bool = True
    """Take token states."""
    sampling_clamp_l2norm: bool = False
    """Scale estimates of x0 to the norm of embeddings while sampling."""
    sampling_final_clamp_l2norm: bool = False
    """Scale the result."""
    training_clamp_l2norm: bool = False
    """Scale predictions in training."""
    init_image_embed_l2norm: bool = False
    """Scale the first noise."""
    image_embed_scale: float | None = Field(default=None, gt=0)
    """Norm of embeddings in the network; null is sqrt(dim)."""
    clip_adapter_overrides: dict[str, Any] = Field(default_factory=dict)
    """Of no meaning here."""


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
"""Settings of published priors: the code of LAION's model card."""


def parse_config(described: Any, source: str) -> DiffusionConfig:
    """The settings of a prior, from the JSON of a whole training run or its part `prior`.

    Raises:
        SettingsError: a key is unknown or missing, or a value is out of range; names it.
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
    """Our settings for a prior of DALLE2-pytorch.

    Raises:
        SettingsError: the release had no such prior.
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
        text_drop = image_drop = 0.0  # what was dropped stayed visible
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
    """Where open_clip has an OpenAI CLIP; nothing for others, whose weights the settings do not name."""
    if clip is None or clip.get("make", "openai") != "openai":
        return {}
    name = clip.get("model", "ViT-L/14")
    return {"model": _OPENAI_CLIPS[name], "pretrained": "openai"} if name in _OPENAI_CLIPS else {}


def to_dalle2_config(config: PriorConfig) -> dict[str, Any]:
    """The part `prior` of the JSON of DALLE2-pytorch's training script, for a prior that can be exported."""
    network, diffusion = config.network, config.diffusion
    net = network.model_dump(exclude={"width", "function_version"})
    return {
        "net": {"dim": config.embed_dim, **net, "ff_mult": int(network.ff_mult)},
        "image_embed_dim": config.embed_dim,
        "image_size": 224,  # asked for, and of no meaning
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
    """SettingsError if DALLE2-pytorch's newest release has no such prior; names the settings."""
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
