"""Conversion of prior settings between diffusers' config files and priorkit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, Field

from ....pipeline.errors import InputError, SettingsError
from ....pipeline.settings import Settings, parse_settings
from ...model.config import PriorConfig
from ...network.prior_transformer.settings import ActivationName, NormType, PriorTransformerSettings

_SettingsType = TypeVar("_SettingsType", bound=Settings)
CLASS_NAME = "PriorTransformer"
"""Class of diffusers that this package reads and writes."""
_TIME_FIELDS = ("time_embed_act_fn", "time_embed_dim")
"""Settings of the timestep's token, which ECLIPSE's priors lack."""
_NETWORK_FIELDS = (
    "num_attention_heads", "attention_head_dim", "num_layers", "num_embeddings", "dropout", "norm_in_type",
    "embedding_proj_norm_type",
)  # fmt: skip
"""Settings that have the same names and meanings in diffusers and in priorkit."""
_SAMPLERS = {"beta_schedule": ("squaredcos_cap_v2",), "thresholding": (False,), "trained_betas": (None,)}
"""Values of a scheduler that the samplers `unclip` and `unclip-ddpm` reproduce."""


class TransformerConfig(Settings):
    """Content of `config.json` of a `PriorTransformer`, without the keys that begin with `_`."""

    num_attention_heads: int = Field(default=32, ge=1)
    """Number of attention heads."""
    attention_head_dim: int = Field(default=64, ge=1)
    """Width of an attention head."""
    num_layers: int = Field(default=20, ge=1, le=1000)
    """Number of transformer layers."""
    embedding_dim: int = Field(default=768, ge=1)
    """Size of image embeddings, and width of token states."""
    num_embeddings: int = Field(default=77, ge=1)
    """Maximum number of token states."""
    additional_embeddings: int = 4
    """Number of tokens besides the token states: 4, or 3 without a timestep's token (ECLIPSE)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate in training."""
    time_embed_act_fn: ActivationName = "silu"
    """Activation function of the timestep embedding."""
    norm_in_type: NormType | None = None
    """Norm of the tokens before the first layer."""
    embedding_proj_norm_type: NormType | None = None
    """Norm of the pooled text embedding."""
    encoder_hid_proj_type: Any = "linear"
    """Projection of token states: `linear`. Shap-E has none."""
    added_emb_type: Any = "prd"
    """Query token: `prd`. Shap-E has none."""
    time_embed_dim: int | None = Field(default=None, ge=1)
    """Inner width of the timestep embedding; null for the width of the token stream."""
    embedding_proj_dim: int | None = Field(default=None, ge=1)
    """Size of text embeddings; null for `embedding_dim`."""
    clip_embed_dim: int | None = Field(default=None, ge=1)
    """Size of predicted image embeddings; null for `embedding_dim`."""


class SchedulerConfig(Settings):
    """The values in `scheduler_config.json` that affect sampling from a prior. Other keys are ignored."""

    model_config = ConfigDict(extra="ignore")

    num_train_timesteps: int = Field(default=1000, ge=2)
    """Number of timesteps in the noise schedule."""
    prediction_type: str = "epsilon"
    """Quantity that the network predicts; `sample` for x0."""
    clip_sample: bool = True
    """Clamp the coordinates of x0 estimates."""
    clip_sample_range: float = Field(default=1.0, gt=0)
    """Limit of the coordinates, if `clip_sample` is true."""
    variance_type: str = "fixed_small_log"
    """Variance of the noise that a step adds."""


def to_prior_config(described: Any, scheduler: Any, source: str, scheduler_source: str) -> PriorConfig:
    """Convert the config files of a prior of diffusers to a priorkit configuration, which names no CLIP.

    Args:
        described: parsed `config.json` of the `PriorTransformer`.
        scheduler: parsed `scheduler_config.json`; None if the prior has no scheduler.
        source: name of the `config.json`, for messages.
        scheduler_source: name of the `scheduler_config.json`, for messages.

    Raises:
        InputError: a key is unknown, or a value is invalid or belongs to a network of another kind.
    """
    given = {name: value for name, value in described.items() if not str(name).startswith("_")}
    config = _parse(TransformerConfig, given, source)
    for name, needed in (("encoder_hid_proj_type", "linear"), ("added_emb_type", "prd")):
        if getattr(config, name) != needed:
            raise InputError(
                f"{source}: {name}={_json(getattr(config, name))} belongs to another network, such as Shap-E's, which "
                f"priorkit does not have; it reads priors of Karlo, Kandinsky and ECLIPSE ({name}={needed})"
            )
    if config.clip_embed_dim not in (None, config.embedding_dim):
        raise InputError(
            f"{source}: clip_embed_dim={config.clip_embed_dim} is not embedding_dim={config.embedding_dim}; priorkit "
            "reads priors that predict embeddings of the size of their noisy input"
        )
    if config.additional_embeddings not in (3, 4):
        raise InputError(
            f"{source}: additional_embeddings={config.additional_embeddings}: known are 4, and 3 for ECLIPSE"
        )
    has_time = config.additional_embeddings == 4
    network = {name: getattr(config, name) for name in (*_NETWORK_FIELDS, *(_TIME_FIELDS if has_time else ()))}
    values = {
        "embed_dim": config.embedding_dim,
        "text_dim": None if config.embedding_proj_dim == config.embedding_dim else config.embedding_proj_dim,
        "token_width": config.embedding_dim,
        "network": {"family": "prior-transformer", "time_token": has_time, **network},
        "diffusion": {
            "normaliser": "clip_stats",
            "text_drop": 0.1 if has_time else 0.0,  # ECLIPSE's priors are not trained for guidance
            **({} if scheduler is None or not has_time else _diffusion_of(scheduler, scheduler_source)),
        },
        "clip": {},
        "clip_settings": {},
    }
    return _parse(PriorConfig, values, source)


def _diffusion_of(described: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the diffusion settings that a scheduler implies: number of timesteps, and clamping of x0 estimates."""
    config = _parse(SchedulerConfig, described, source)
    if config.prediction_type != "sample":
        raise InputError(
            f"{source}: prediction_type={config.prediction_type}: a {CLASS_NAME} predicts x0, which is prediction_type="
            "sample; is this the scheduler of the decoder?"
        )
    if config.variance_type not in ("fixed_small_log", "fixed_small"):
        raise InputError(f"{source}: variance_type={config.variance_type}: priorkit has only fixed_small_log")
    for name, known in _SAMPLERS.items():
        if described.get(name, known[0]) not in known:
            raise InputError(f"{source}: {name}={_json(described[name])}: priorkit has only {_json(known[0])}")
    clamp = {"x0_clamp": "range", "clip_sample_range": config.clip_sample_range} if config.clip_sample else {}
    return {"timesteps": config.num_train_timesteps, **clamp}


def to_transformer_config(config: PriorConfig) -> dict[str, Any]:
    """Return the content of `config.json` for a prior that `require_exportable` accepts."""
    network = transformer_network(config)
    names = (*_NETWORK_FIELDS, *(_TIME_FIELDS if network.time_token else ()))
    return {
        "_class_name": CLASS_NAME,
        **{name: getattr(network, name) for name in names},
        "embedding_dim": config.embed_dim,
        "additional_embeddings": network.additional_embeddings,
        "encoder_hid_proj_type": "linear",
        "added_emb_type": "prd",
        "embedding_proj_dim": config.text_dim,
        "clip_embed_dim": None,
    }


def to_scheduler_config(config: PriorConfig) -> dict[str, Any]:
    """Return the content of `scheduler_config.json`, with the sampler and the clamping that the prior needs."""
    diffusion = config.diffusion
    clamp = {} if diffusion.clip_sample_range is None else {"clip_sample_range": diffusion.clip_sample_range}
    return {
        "_class_name": "UnCLIPScheduler",
        "num_train_timesteps": diffusion.timesteps,
        "variance_type": "fixed_small_log",
        "clip_sample": diffusion.x0_clamp == "range",
        **clamp,
        "prediction_type": "sample",
        "beta_schedule": "squaredcos_cap_v2",
    }


def transformer_network(config: PriorConfig) -> PriorTransformerSettings:
    """Return the network settings of a prior of the family `prior-transformer`.

    Raises:
        SettingsError: the network belongs to another family.
    """
    if not isinstance(config.network, PriorTransformerSettings):
        raise SettingsError(
            f"diffusers has no network for a {config.network.family}; give a decoder the embeddings of `priorkit "
            "sample`, or train a prior with train.network.family=prior-transformer"
        )
    return config.network


def require_exportable(config: PriorConfig) -> None:
    """Check that diffusers' `PriorTransformer` can represent a prior with this configuration.

    Raises:
        SettingsError: it cannot. The message lists every setting that prevents it.
    """
    network, diffusion, dim = transformer_network(config), config.diffusion, config.embed_dim
    one_step = not network.time_token
    reasons = {
        f"token states have width {config.token_width}, and image embeddings size {dim}, which must be equal": (
            config.token_width != dim
        ),
        f"diffusion.noise_schedule={diffusion.noise_schedule} is not cosine": diffusion.noise_schedule != "cosine",
        "diffusion.x0_clamp=range needs a scheduler, which a prior of one step has not": (
            one_step and diffusion.x0_clamp == "range"
        ),
        "no CLIP made its embeddings, and diffusers' pipelines need one": config.spaces is not None,
    }
    if found := [reason for reason, applies in reasons.items() if applies]:
        raise SettingsError(f"a {CLASS_NAME} of diffusers cannot hold this prior: {'; '.join(found)}")


def _parse(cls: type[_SettingsType], values: Mapping[str, Any], source: str) -> _SettingsType:
    """Create settings from the content of a file.

    Raises:
        InputError: a key or value is invalid.
    """
    try:
        return parse_settings(cls, values, source)
    except SettingsError as error:
        raise InputError(str(error)) from None


def _json(value: Any) -> str:
    """Return a value of a config file as JSON shows it, such as `null`, in at most 60 characters."""
    text = {None: "null", True: "true", False: "false"}.get(value) if value is None or value in (True, False) else None
    return text or str(value)[:60]
