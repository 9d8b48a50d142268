"""Input tokens of the prior network, computed from embeddings and timesteps.

Dimensions: B embeddings, N timesteps, C stream width (width of a token).
"""

from __future__ import annotations

import math

import torch
from torch import nn

_MAX_PERIOD = 10_000.0
"""Ratio of the longest to the shortest sinusoid period in timestep features, as in DALLE2-pytorch."""


class Tokens(nn.Module):
    """Linear projection of an embedding to `count` tokens.

    If `count` is 1 and the token width equals the embedding size, the embedding is used as the token unchanged.
    """

    def __init__(self, size: int, width: int, count: int) -> None:
        super().__init__()
        self.width, self.count = width, count
        self.project = nn.Linear(size, count * width) if count > 1 or size != width else nn.Identity()

    def forward(self, embed: torch.Tensor) -> torch.Tensor:
        """Map B embeddings, `[B, size]`, to `count` tokens of width C each, `[B, count, C]`."""
        return self.project(embed).view(-1, self.count, self.width)  # type: ignore[no-any-return]


class TimeTokens(nn.Module):
    """Layer that maps each timestep to `count` tokens.

    If `num_timesteps` is given, the tokens come from a learned table with one entry per timestep. Otherwise, a small
    MLP computes them from sinusoidal features of the timestep.
    """

    def __init__(self, width: int, count: int, num_timesteps: int | None, real: bool) -> None:
        super().__init__()
        self.width, self.count, self.real = width, count, real
        self.table = None if num_timesteps is None else nn.Embedding(num_timesteps, count * width)
        if num_timesteps is None:
            hidden = 2 * count * width
            self.mlp = nn.Sequential(
                nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
                nn.Linear(hidden, count * width),
            )  # fmt: skip

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Map N int64 timesteps, `[N]`, to `count` tokens of width C each, `[N, count, C]`."""
        if self.table is not None:
            return self.table(timesteps).view(-1, self.count, self.width)  # type: ignore[no-any-return]
        angles = _sinusoid(timesteps, self.width)
        if not self.real:
            angles = angles.trunc()
        tokens: torch.Tensor = self.mlp(angles.to(self.mlp[0].weight.dtype))  # type: ignore[arg-type]
        return tokens.view(-1, self.count, self.width)


def _sinusoid(timesteps: torch.Tensor, width: int) -> torch.Tensor:
    """Return sinusoidal features of N timesteps, `[N, width]` float32.

    The first half of the columns are sines, and the second half are cosines. Both use frequencies from 1 down to
    1 / 10,000.
    """
    steps = torch.arange(width // 2, device=timesteps.device, dtype=torch.float32)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(_MAX_PERIOD) / (width // 2 - 1) * steps)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
