"""Reference implementation of the prior network and DDIM in float64: no cache, no packing, no sharing.

Every token of a text stands in one sequence under one causal mask, repeated for every draw and every step.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from priorkit.prior.network.network import PriorNetwork
from priorkit.prior.network.settings import NetworkSettings


@dataclass(frozen=True)
class Release:
    """Properties of a release of DALLE2-pytorch, read from its source."""

    attention: Literal["dot", "cosine"]
    self_cond: Literal["none", "zeros", "for query", "before query"]
    drop: Literal["nothing", "tokens", "text"]
    """Replaced part of a dropped text; `tokens` keeps the pooled text."""
    sinusoids: Literal["integer", "real"]


RELEASES = {
    "0.23.10": Release("dot", "none", "nothing", "integer"),
    "1.4.2": Release("dot", "none", "nothing", "integer"),
    "1.4.3": Release("cosine", "none", "nothing", "integer"),
    "1.6.1": Release("cosine", "zeros", "nothing", "integer"),
    "1.8.4": Release("cosine", "for query", "nothing", "integer"),
    "1.9.0": Release("cosine", "for query", "tokens", "integer"),
    "1.10.3": Release("cosine", "for query", "tokens", "integer"),
    "1.10.4": Release("cosine", "for query", "text", "integer"),
    "1.10.8": Release("cosine", "for query", "text", "real"),
    "1.12.0": Release("cosine", "for query", "text", "real"),
    "1.12.1": Release("cosine", "before query", "text", "real"),
    "1.15.6": Release("cosine", "before query", "text", "real"),
}


class Text(NamedTuple):
    """Input texts of a network."""

    embed: torch.Tensor
    """`[B, D]`."""
    states: torch.Tensor | None = None
    """`[B, T', W]`, padded with zeros."""

    def repeat(self, draws: int) -> Text:
        """Repeat each text `draws` times, side by side."""
        states = None if self.states is None else self.states.repeat_interleave(draws, 0)
        return Text(self.embed.repeat_interleave(draws, 0), states)


def randomise(network: PriorNetwork, seed: int = 3) -> PriorNetwork:
    """Give every parameter a value that affects the output: gains near 1, matrices that preserve the norm."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name.endswith("weight") and "norm" in name:
                values = 1 + 0.2 * values.clamp(-2, 2)
            elif name == "positions.bias.weight":
                values = values / network.positions.bias_scale
            elif name.endswith("bias"):
                values = 0.3 * values
            elif name.endswith("weight") and "table" not in name:
                values = values / math.sqrt(parameter.shape[1])
            parameter.copy_(values)
    return network


def single_pass(
    network: PriorNetwork,
    settings: NetworkSettings,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    text: Text,
    *,
    drop_text: torch.Tensor | None = None,
    drop_image: torch.Tensor | None = None,
    self_cond: torch.Tensor | None = None,
) -> torch.Tensor:
    """Predict `[N, D]` for noisy embeddings `[N, D]` at timesteps `[N]`, with one text each."""
    weights = {name: value.detach().double() for name, value in network.state_dict().items()}
    release, nobody = RELEASES[settings.function_version], torch.zeros(len(noisy), dtype=torch.bool)
    no_text = nobody if drop_text is None else drop_text
    no_image = nobody if drop_image is None else drop_image
    assert release.drop != "nothing" or not (no_text.any() or no_image.any())

    def embedded(name: str, embed: torch.Tensor) -> list[torch.Tensor]:
        """Project an embedding to one or more tokens."""
        if f"{name}.project.weight" in weights:
            embed = weights[f"{name}.project.weight"] @ embed.double() + weights[f"{name}.project.bias"]
        return list(embed.double().view(-1, settings.width))

    rows = []
    for row in range(len(noisy)):
        tokens = []
        for position in range(settings.max_text_len):
            padding = text.states is None or position >= text.states.shape[1] or not text.states[row, position].any()
            if padding or no_text[row]:
                tokens.append(weights["null_token_states"][position])
            else:
                assert text.states is not None
                tokens += embedded("to_token_states", text.states[row, position])
        dropped = no_text[row] and release.drop == "text"
        tokens += list(weights["null_text"]) if dropped else embedded("to_text", text.embed[row])
        tokens += _time_tokens(weights, settings, release, int(timesteps[row]))
        image = [weights["null_image"]] * settings.num_image_embeds if no_image[row] else None
        image = image or embedded("to_image", noisy[row])
        tokens += image
        if settings.self_cond:
            assert release.self_cond != "none"
            given = torch.zeros_like(noisy[row]) if self_cond is None else self_cond[row]
            if release.self_cond == "zeros":
                tokens += [*image, torch.zeros(settings.width, dtype=torch.float64)]
            elif release.self_cond == "for query":
                tokens += [*image, *embedded("to_self_cond", given)]
            else:
                tokens += [*embedded("to_self_cond", given), weights["query"]]
        else:
            tokens.append(weights["query"])
        rows.append(torch.stack(tokens))
    return _transformer(weights, settings, release, torch.stack(rows))


def guided(
    network: PriorNetwork,
    settings: NetworkSettings,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    text: Text,
    *,
    scale: float,
    guidance: str,
    self_cond: torch.Tensor | None = None,
) -> torch.Tensor:
    """Whole passes over rows with text and rows without, and null + scale * (with text - null)."""
    if scale == 1:
        return single_pass(network, settings, noisy, timesteps, text, self_cond=self_cond)

    def twice(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values, values])

    drop = torch.arange(2 * len(noisy)) >= len(noisy)
    rows = single_pass(
        network, settings, twice(noisy), twice(timesteps),
        Text(twice(text.embed), None if text.states is None else twice(text.states)),
        drop_text=drop, drop_image=drop if guidance == "dalle2" else None,
        self_cond=None if self_cond is None else twice(self_cond),
    )  # fmt: skip
    output, null = rows[: len(noisy)], rows[len(noisy) :]
    return null + scale * (output - null)


def cosine_alpha_bar(timesteps: int) -> list[float]:
    """Nichol and Dhariwal's schedule: f(t + 1) / f(0), with the last beta capped at 0.999."""
    share = [math.cos((step / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(timesteps + 1)]
    values = [value / share[0] for value in share[1:-1]]
    return [*values, values[-1] * (1 - 0.999)]


def uncached_ddim(
    network: PriorNetwork,
    settings: NetworkSettings,
    noise: torch.Tensor,
    text: Text,
    grid: list[int],
    *,
    timesteps: int,
    scale: float,
    guidance: str,
) -> torch.Tensor:
    """Sample unit embeddings `[N, D]` from noise `[N, D]` by DDIM, for a prior that predicts x0 on the cosine schedule.

    Args:
        grid: timesteps to evaluate at, of `timesteps`.
    """
    alpha_bar = cosine_alpha_bar(timesteps)
    x, x0 = noise.double(), None
    for index, timestep in enumerate(grid):
        x0 = guided(
            network, settings, x, torch.full((len(x),), timestep), text,
            scale=scale, guidance=guidance, self_cond=x0,
        )  # fmt: skip
        if index + 1 == len(grid):
            break
        # coefficients in float32, as those of a schedule: small random networks amplify the difference
        shares = torch.tensor([alpha_bar[timestep], alpha_bar[grid[index + 1]]], dtype=torch.float64)
        (signal, signal_after), (sigma, sigma_after) = shares.sqrt().float(), (1 - shares).sqrt().float()
        x = signal_after * x0 + sigma_after * (x - signal * x0) / sigma
    assert x0 is not None
    return x0 / x0.norm(dim=-1, keepdim=True)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    found, expected = found.detach().double(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


Weights = dict[str, torch.Tensor]


def _time_tokens(weights: Weights, settings: NetworkSettings, release: Release, timestep: int) -> list[torch.Tensor]:
    if settings.num_timesteps is not None:
        return list(weights["to_time.table.weight"][timestep].view(-1, settings.width))
    half = settings.width // 2
    # the angles in float32, as upstream has them: at timestep 1000 their rounding shows
    frequencies = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, dtype=torch.float32))
    angles = (timestep * frequencies).double()
    hidden = torch.cat([angles.sin(), angles.cos()])
    if release.sinusoids == "integer":
        hidden = hidden.float().trunc().double()
    for index in (0, 2, 4):
        hidden = weights[f"to_time.mlp.{index}.weight"] @ hidden + weights[f"to_time.mlp.{index}.bias"]
        if index < 4:
            hidden = hidden * torch.sigmoid(hidden)
    return list(hidden.view(-1, settings.width))


def _transformer(weights: Weights, settings: NetworkSettings, release: Release, stream: torch.Tensor) -> torch.Tensor:
    """Run tokens `[N, L, C]` through all layers; return the output at the last token, `[N, D]`."""

    def norm(name: str, values: torch.Tensor) -> torch.Tensor:
        centred = values - values.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"]

    length, width = stream.shape[1], settings.dim_head
    bias = weights["positions.bias.weight"][_buckets(length)] * (
        128 if release.attention == "dot" else 1
    )  # (L, 1 + L, H)
    future = torch.ones(length, length + 1).triu(2).bool()
    if settings.norm_in:
        stream = norm("norm_in", stream)
    for layer in range(settings.depth):
        name = f"attention.{layer}"
        mixed = norm(f"{name}.norm", stream) @ weights[f"{name}.to_qkv.weight"].T
        *queries, key, value = mixed.split(width, dim=-1)
        null_key, null_value = weights[f"{name}.null"].expand(len(stream), 1, 2, width).unbind(2)
        keys = torch.cat([null_key, _rotated(key) if settings.rotary_emb else key], dim=1)
        values = torch.cat([null_value, value], dim=1)
        heads = []
        for head, query in enumerate(queries):
            query = _rotated(query) if settings.rotary_emb else query
            if release.attention == "cosine":
                logits = 16 * F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).mT
            else:
                logits = query @ keys.mT / math.sqrt(width)
            heads.append((logits + bias[..., head]).masked_fill(future, -math.inf).softmax(-1) @ values)
        stream = stream + norm(f"{name}.out_norm", torch.cat(heads, -1) @ weights[f"{name}.to_stream.weight"].T)
        name = f"feed_forward.{layer}"
        hidden, gate = (norm(f"{name}.norm", stream) @ weights[f"{name}.to_inner.weight"].T).chunk(2, dim=-1)
        hidden = hidden * gate * torch.sigmoid(gate)
        if settings.normformer:
            hidden = norm(f"{name}.inner_norm", hidden)
        stream = stream + hidden @ weights[f"{name}.to_stream.weight"].T
    last = stream[:, -1]
    if settings.norm_out:
        last = norm("norm_out", last / last.amax(-1, keepdim=True))
    return last @ weights["to_embed.weight"].T if settings.final_proj else last


@functools.cache
def _buckets(length: int) -> torch.Tensor:
    """Return the bucket of each distance from a token to a key, `[L, 1 + L]`. Key 0 is the null."""
    return torch.tensor([[_bucket(max(token - key, 0)) for key in range(length + 1)] for token in range(length)])


def _bucket(distance: int) -> int:
    """T5's causal buckets: 16 exact ones, then 16 logarithmic ones up to 128."""
    if distance < 16:
        return distance
    return min(16 + int(math.log(distance / 16) / math.log(128 / 16) * 16), 31)


def _rotated(x: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs of the first 32 coordinates of `[N, L, A]` by their position."""
    size = min(32, x.shape[-1])
    turned = torch.view_as_complex(x[..., :size].unflatten(-1, (-1, 2)).contiguous()) * _rotations(x.shape[1], size)
    return torch.cat([torch.view_as_real(turned).flatten(-2), x[..., size:]], dim=-1)


@functools.cache
def _rotations(length: int, size: int) -> torch.Tensor:
    """Return the rotation of each pair at each position, as complex numbers `[L, size / 2]`."""
    angles = torch.tensor(
        [[place / 10_000 ** (pair / size) for pair in range(0, size, 2)] for place in range(length)]
    ).double()  # by way of float32, as upstream
    return torch.polar(torch.ones_like(angles), angles)
