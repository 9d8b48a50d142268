"""Conversion between DALLE2-pytorch prior weights and priorkit weights.

Importing creates a priorkit prior from DALLE2-pytorch weights. Exporting creates a DALLE2-pytorch checkpoint from a
priorkit prior.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ...pipeline.errors import InputError
from ..model.config import PriorConfig, build_network, build_normaliser
from ..model.prior import Prior
from ..network.function_version import LATEST_FUNCTION
from .dalle2_settings import causal_network, require_exportable

_SCHEDULE_TOLERANCE = 1e-2
"""Absolute tolerance for comparing the alpha_bar values (cumulative products of 1 - beta) of two noise schedules.

Differences caused by rounding to half precision are smaller. Differences between schedules are larger.
"""
_ROTARY_TOLERANCE = 4e-3
"""Relative tolerance for comparing rotary frequencies.

Differences caused by rounding to bfloat16 are smaller. Differences caused by a base other than 10,000 are larger.
"""


def import_prior(weights: Mapping[str, torch.Tensor], config: PriorConfig, source: str) -> Prior:
    """Create a priorkit prior from the weights of a DALLE2-pytorch `DiffusionPrior`.

    Args:
        weights: weights, keyed by their names in DALLE2-pytorch.
        config: configuration of the prior.
        source: name of the weights file, for error messages.

    Raises:
        InputError: weights are missing, unknown, not finite or of the wrong shape, or the noise schedule or the rotary
            embedding does not match the settings.
    """
    network = build_network(config)
    prior = Prior(config, network, build_normaliser(config))
    unused = {name for name in weights if not _IGNORED.match(name)}
    ours: dict[str, torch.Tensor] = {}
    missing: list[str] = []
    for name, parameter in network.state_dict().items():
        theirs = _as_upstream(name, parameter, prior)
        unused -= theirs.keys()
        if absent := [other for other in theirs if other not in weights]:
            missing += absent
            continue
        for other, part in theirs.items():
            if weights[other].shape != part.shape:
                raise InputError(
                    f"{source}: {other} has shape {list(weights[other].shape)}, its settings make {list(part.shape)}; "
                    "are they those of this checkpoint?"
                )
        ours[name] = torch.cat([weights[other].float() for other in theirs]).view(parameter.shape)
        if not bool(ours[name].isfinite().all()):
            raise InputError(f"{source}: {' and '.join(theirs)} holds numbers that are not finite")
    if missing or unused:
        problems = [f"lacks {_some(missing)}"] if missing else []
        problems += [f"also holds {_some(sorted(unused))}"] if unused else []
        raise InputError(
            f"{source}: does not fit its settings and function version {network.function}: it {' and '.join(problems)}"
        )
    network.load_state_dict(ours)
    _check_constants(weights, prior, source)
    return prior


_ROTARY = re.compile(r".*\.rotary_emb\.(freqs|inv_freq)$")
"""Pattern for the names of the rotary frequencies, which are not imported because they are constants."""
_IGNORED = re.compile(rf"noise_scheduler\.|clip\.|_dummy$|.*\.rotary_emb\.(dummy|cached_\w+)$|{_ROTARY.pattern}")
"""Pattern for the names of `DiffusionPrior` tensors that are not imported.

The rotary frequencies and the noise schedule are still checked against the settings.
"""


def _check_constants(weights: Mapping[str, torch.Tensor], prior: Prior, source: str) -> None:
    """Check the rotary frequencies and the noise schedule that are stored with the weights of a DALLE2-pytorch prior.

    Both are constants. They must match, within a tolerance, the values that priorkit computes from the prior's
    settings. Weights without a stored noise schedule are accepted.

    Raises:
        InputError: the stored values differ from the computed values, or the weights include a rotary embedding and the
            settings do not, or vice versa.
    """
    rotary = any(".rotary_emb." in name for name in weights)
    if rotary != causal_network(prior.config).rotary_emb:
        has = "has" if rotary else "has no"
        raise InputError(f"{source}: {has} rotary embedding, unlike net.rotary_emb of its settings")
    frequencies = _rotary_frequencies(prior.config)
    for name, value in weights.items():
        if _ROTARY.match(name) and (
            value.shape != frequencies.shape
            or not torch.allclose(value.float(), frequencies, rtol=_ROTARY_TOLERANCE, atol=0)
        ):
            raise InputError(
                f"{source}: {name} holds other rotary frequencies than those of every dalle2-pytorch prior (10,000 to "
                f"the power of -2i/{2 * len(frequencies)}); this prior cannot be computed here"
            )
    theirs = weights.get("noise_scheduler.alphas_cumprod")
    if theirs is None:
        return
    ours = prior.schedule.alpha_bar.float()
    if theirs.shape != ours.shape or not torch.allclose(theirs.float(), ours, atol=_SCHEDULE_TOLERANCE):
        diffusion = prior.config.diffusion
        raise InputError(
            f"{source}: its noise schedule has {theirs.numel()} timesteps and is not the {diffusion.noise_schedule} "
            f"one of {diffusion.timesteps} that its settings say (beta_schedule, timesteps)"
        )


def _rotary_frequencies(config: PriorConfig) -> torch.Tensor:
    """Return the frequencies of the rotary position embedding, in radians per position.

    There is one frequency for each rotated pair of channels in an attention head. At most 32 channels are rotated.
    """
    width = min(32, causal_network(config).dim_head)
    return 1.0 / (10_000.0 ** (torch.arange(0, width, 2).float() / width))


def export_weights(prior: Prior) -> dict[str, torch.Tensor]:
    """Return the weights of a prior with the names and shapes of `DiffusionPrior` in DALLE2-pytorch 1.15.6.

    Raises:
        SettingsError: DALLE2-pytorch does not support the prior's settings.
    """
    require_exportable(prior.config)
    network = prior.network
    theirs: dict[str, torch.Tensor] = {}
    for name, value in network.state_dict().items():
        parts = _as_upstream(name, value.float().cpu(), prior)
        theirs |= {other: part.clone() for other, part in parts.items()}
    settings = causal_network(prior.config)
    if settings.rotary_emb:
        frequencies = _rotary_frequencies(prior.config)
        for layer in range(settings.depth):
            theirs[f"net.causal_transformer.layers.{layer}.0.rotary_emb.freqs"] = frequencies.clone()
    return theirs


def _as_upstream(name: str, value: torch.Tensor, prior: Prior) -> dict[str, torch.Tensor]:
    """Convert one priorkit weight to DALLE2-pytorch weights, keyed by their names in DALLE2-pytorch.

    The result has one item, or two if `value` is a concatenation of two DALLE2-pytorch weights (`to_q` and `to_kv`).

    Args:
        name: name of the weight in the `state_dict` of a priorkit network.
        value: the weight.
        prior: prior that the weight belongs to.
    """
    names = _upstream_names(name, prior)
    if name in ("null_token_states", "null_text", "null_image"):
        value = value[None]
    width = 2 * causal_network(prior.config).dim_head  # rows for keys and values, which follow those for queries
    parts = torch.split(value, [len(value) - width, width]) if len(names) == 2 else (value,)
    return dict(zip(names, parts, strict=True))


def _upstream_names(name: str, prior: Prior) -> list[str]:
    """Return the names of the DALLE2-pytorch weights that correspond to one priorkit weight.

    Most priorkit weights correspond to one DALLE2-pytorch weight. Only `to_qkv.weight` of an attention layer
    corresponds to two: `to_q.weight` and `to_kv.weight`, in this order.
    """
    transformer = "net.causal_transformer"
    if name == "null_token_states":
        has_null_tokens = causal_network(prior.config).function.has_null_tokens
        return ["net.null_text_encodings" if has_null_tokens else "net.null_text_embed"]
    if name in _PLAIN_NAMES:
        return [_PLAIN_NAMES[name]]
    if found := re.fullmatch(r"to_(text|image)\.project\.(\w+)", name):
        return [f"net.to_{found[1]}_embeds.0.{found[2]}"]
    if found := re.fullmatch(r"to_time\.mlp\.(\d)\.(\w+)", name):
        return [f"net.to_time_embeds.0.1.net.{ {'0': '0.0', '2': '1.0', '4': '2'}[found[1]] }.{found[2]}"]
    if found := re.fullmatch(r"attention\.(\d+)\.(.+)", name):
        layer = f"{transformer}.layers.{found[1]}.0"
        if found[2] == "to_qkv.weight":
            return [f"{layer}.to_q.weight", f"{layer}.to_kv.weight"]
        return [f"{layer}.{_ATTENTION_NAMES[found[2]]}"]
    if found := re.fullmatch(r"feed_forward\.(\d+)\.(.+)", name):
        return [f"{transformer}.layers.{found[1]}.1.{_FEED_FORWARD_NAMES[found[2]]}"]
    raise AssertionError(name)


_PLAIN_NAMES = {
    "query": "net.learned_query",
    "null_text": "net.null_text_embeds",
    "null_image": "net.null_image_embed",
    "to_time.table.weight": "net.to_time_embeds.0.weight",
    "norm_in.weight": "net.causal_transformer.init_norm.g",
    "positions.bias.weight": "net.causal_transformer.rel_pos_bias.relative_attention_bias.weight",
    "norm_out.weight": "net.causal_transformer.norm.g",
    "to_embed.weight": "net.causal_transformer.project_out.weight",
}
_ATTENTION_NAMES = {
    "norm.weight": "norm.g", "null": "null_kv", "to_stream.weight": "to_out.0.weight", "out_norm.weight": "to_out.1.g",
}  # fmt: skip
_FEED_FORWARD_NAMES = {
    "norm.weight": "0.g", "to_inner.weight": "1.weight", "inner_norm.weight": "3.g", "to_stream.weight": "5.weight",
}  # fmt: skip


def _some(names: list[str]) -> str:
    """Format names for an error message: the first five, followed by the number of remaining names, if any."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def trainer_checkpoint(weights: dict[str, torch.Tensor], alpha_bar: torch.Tensor) -> dict[str, Any]:
    """Build a checkpoint that `DiffusionPriorTrainer.load` in DALLE2-pytorch 1.15.6 can read.

    The checkpoint represents a trainer before its first step, so its optimiser state contains no moment estimates.
    `weights` are stored as both the online and the averaged weights.

    The optimiser state has two parameter groups: parameters with two or more dimensions, which have weight decay, and
    all other parameters, which have none. A group stores only the indices of its parameters. To build the groups, a
    placeholder tensor with one element therefore stands in for each parameter. In DALLE2-pytorch, all layers share one
    parameter for the rotary frequencies, so a single placeholder stands in for it.

    Args:
        weights: weights of the network, keyed by their names in DALLE2-pytorch.
        alpha_bar: cumulative product of 1 - beta at each diffusion timestep, `[timesteps]`.
    """
    model = {**_schedule_buffers(alpha_bar), **weights}
    names = [name for name in weights if ".rotary_emb." not in name or ".layers.0." in name]
    parameters = [torch.nn.Parameter(torch.zeros([1] * weights[name].ndim)) for name in names]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1]},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.99), eps=1e-6)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lr_lambda=lambda _: 1.0)
    average = {"initted": torch.tensor(True), "step": torch.tensor(0)}
    average |= {f"{part}.{name}": value for part in ("online_model", "ema_model") for name, value in model.items()}
    return {
        "version": LATEST_FUNCTION,
        "step": torch.tensor([0]),
        "model": model,
        "optimizer": optimiser.state_dict(),
        "scheduler": scheduler.state_dict(),
        "ema": average,
        "ema_model": model,
    }


def _schedule_buffers(alpha_bar: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute the noise schedule tensors that DALLE2-pytorch stores with a prior, such as `noise_scheduler.betas`.

    Args:
        alpha_bar: cumulative product of 1 - beta at each diffusion timestep, `[timesteps]`.

    Returns:
        Float32 tensors, `[timesteps]`, keyed by their names in DALLE2-pytorch.
    """
    before = torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar[:-1]])
    alpha = alpha_bar / before
    beta = 1 - alpha
    variance = beta * (1 - before) / (1 - alpha_bar)
    buffers = {
        "betas": beta,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": alpha_bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alpha_bar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alpha_bar).log(),
        "sqrt_recip_alphas_cumprod": (1 / alpha_bar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alpha_bar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": beta * before.sqrt() / (1 - alpha_bar),
        "posterior_mean_coef2": (1 - before) * alpha.sqrt() / (1 - alpha_bar),
        "p2_loss_weight": torch.ones_like(alpha_bar),
    }
    return {f"noise_scheduler.{name}": value.float() for name, value in buffers.items()}
