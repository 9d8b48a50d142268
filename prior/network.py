"""The prior network: a causal transformer over `[token states..., pooled text, time, noisy image, query]`.

The prediction is read at the query. Text tokens come first and never see the timestep or the noise, so the network has
two calls: `prefix` turns the text into a cache of keys and values, and `suffix` predicts from the cache. A sampler
calls `prefix` once and `suffix` once a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

_MAX_PERIOD = 10_000.0

KeysValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class PrefixCache:
    """Keys and values of the text in every block: pairs of `[B, H, P, C / H]`."""

    layers: list[KeysValues]

    def repeat(self, times: int) -> PrefixCache:
        """Each row `times` times in a row, for several draws of one caption."""
        if times == 1:
            return self
        return PrefixCache([(k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)) for k, v in self.layers])


class PriorNetwork(nn.Module):
    """Predicts x0, eps or v of an image embedding from its noisy version, the timestep and the text.

    Args:
        embed_dim: D, size of image and text embeddings, which come scaled to norm sqrt(D).
        token_width: W, width of token states; None where there are none.
        width: C, width of the token stream.
        max_text_len: T, token states that are used; shorter captions are padded with learned vectors.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        token_width: int | None,
        width: int,
        depth: int,
        heads: int,
        ff_mult: int,
        dropout: float,
        max_text_len: int,
    ) -> None:
        super().__init__()
        self.max_text_len = max_text_len
        self.embed_dim = embed_dim
        self.project_text = nn.Linear(embed_dim, width)
        self.project_image = nn.Linear(embed_dim, width)
        self.null_text = nn.Parameter(torch.zeros(width))
        if max_text_len:
            if token_width is None:
                raise ValueError(f"max_text_len={max_text_len} needs token states, and there are none")
            self.project_tokens = nn.Linear(token_width, width)
            self.null_tokens = nn.Parameter(torch.zeros(max_text_len, width))
            self.token_positions = nn.Parameter(torch.zeros(max_text_len, width))
        self.time_frequencies = width // 2
        self.embed_time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.query = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(_Block(width, heads, ff_mult, dropout) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width)
        self.to_embed = nn.Linear(width, embed_dim)
        for parameter in self.parameters():
            if parameter.ndim > 1 or parameter is self.query or parameter is self.null_text:
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        noisy_image_embed: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        text_embed: torch.Tensor,
        token_states: torch.Tensor | None = None,
        drop_text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The prediction `[B, D]` for noisy embeddings `[B, D]` at timesteps `[B]`; see `prefix` and `suffix`."""
        return self.suffix(self.prefix(text_embed, token_states, drop_text), noisy_image_embed, timesteps)

    def prefix(
        self,
        text_embed: torch.Tensor,
        token_states: torch.Tensor | None = None,
        drop_text: torch.Tensor | None = None,
    ) -> PrefixCache:
        """Keys and values of the text.

        Args:
            text_embed: `[B, D]`.
            token_states: `[B, T', W]`, rows of zeros being padding, cut at max_text_len; None if the network uses none.
            drop_text: `[B]` bool, rows whose text is replaced by the learned null; None drops nothing.
        """
        keep = torch.ones_like(text_embed[:, :1], dtype=torch.bool) if drop_text is None else ~drop_text[:, None]
        stream = torch.where(keep, self.project_text(text_embed), self.null_text)[:, None]  # [B, 1, C]
        if self.max_text_len:
            if token_states is None:
                raise ValueError("this prior is conditioned on token states: give token_states")
            stream = torch.cat([self._tokens(token_states, keep), stream], dim=1)  # [B, P, C]
        layers: list[KeysValues] = []
        for block in self.blocks:
            stream, keys_values = block(stream, None)
            layers.append(keys_values)
        return PrefixCache(layers)

    def suffix(self, cache: PrefixCache, noisy_image_embed: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The prediction `[B, D]` for `noisy_image_embed` `[B, D]` at `timesteps` `[B]` int64."""
        time = self.embed_time(_sinusoid(timesteps, self.time_frequencies).to(noisy_image_embed.dtype))
        image = self.project_image(noisy_image_embed)
        stream = torch.stack([time, image, self.query.expand_as(image)], dim=1)  # [B, 3, C]
        for block, keys_values in zip(self.blocks, cache.layers, strict=True):
            stream, _ = block(stream, keys_values)
        prediction: torch.Tensor = self.to_embed(self.final_norm(stream[:, -1]))
        return prediction

    def _tokens(self, token_states: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Token states as `[B, T, C]`: padding and dropped text become a learned vector for each position."""
        states = token_states[:, : self.max_text_len]
        states = F.pad(states, (0, 0, 0, self.max_text_len - states.shape[1]))
        real = (states != 0).any(dim=-1) & keep  # [B, T]
        return torch.where(real[..., None], self.project_tokens(states) + self.token_positions, self.null_tokens)


class _Block(nn.Module):
    """Pre-norm attention and feed-forward, attending causally, and to what came before where that is given."""

    def __init__(self, width: int, heads: int, ff_mult: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_stream = nn.Linear(width, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, ff_mult * width), nn.GELU(), nn.Linear(ff_mult * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, stream: torch.Tensor, before: KeysValues | None) -> tuple[torch.Tensor, KeysValues]:
        """`[B, n, C]` -> `[B, n, C]`, and the keys and values of these n tokens."""
        batch, length, width = stream.shape
        qkv = self.to_qkv(self.attention_norm(stream)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, n, C / H]
        keys_values = (key, value)
        if before is None:
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            key, value = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
            mask = torch.ones(length, key.shape[2], dtype=torch.bool, device=key.device).tril(key.shape[2] - length)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        stream = stream + self.dropout(self.to_stream(attended.transpose(1, 2).reshape(batch, length, width)))
        return stream + self.dropout(self.feed_forward(stream)), keys_values


def _sinusoid(timesteps: torch.Tensor, frequencies: int) -> torch.Tensor:
    """Sines and cosines of timesteps `[B]` at geometric frequencies: `[B, 2 * frequencies]` float32."""
    steps = torch.arange(frequencies, device=timesteps.device, dtype=torch.float32)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(_MAX_PERIOD) / frequencies * steps)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
