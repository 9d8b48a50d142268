"""Noise schedules, and conversions between x0, eps and v.

A schedule is the signal share `alpha_bar[t]` of the variance: `x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps`
(Ho et al. 2020, arXiv 2006.11239), `v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0` (Salimans and Ho 2022,
arXiv 2202.00512).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_COSINE_OFFSET = 0.008
"""Offset of the cosine schedule, which keeps the first betas from vanishing; Nichol and Dhariwal's."""
_MAX_BETA = 0.999
"""Upper bound of the betas of the cosine schedule; Nichol and Dhariwal's."""
_BETAS = (1e-4, 0.02)
"""First and last beta of Ho et al.'s 1000 timesteps."""


@dataclass(frozen=True)
class NoiseSchedule:
    """Coefficients of the forward process for each of its timesteps."""

    alpha_bar: torch.Tensor
    """Signal share of the variance, `[timesteps]` float64, decreasing."""

    def __len__(self) -> int:
        return len(self.alpha_bar)

    def coefficients(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the signal and noise coefficients of timesteps `[B]`, each `[B, 1]` float32."""
        alpha_bar = self.alpha_bar.to(timesteps.device)[timesteps].unsqueeze(-1)
        return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return `x_t` for clean `x0` and unit `noise`, all `[B, D]`."""
        signal, sigma = self.coefficients(timesteps)
        return signal * x0 + sigma * noise

    def target(self, prediction: str, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the training target `[B, D]` of a network that predicts `x0`, `eps` or `v`."""
        if prediction == "x0":
            return x0
        if prediction == "eps":
            return noise
        signal, sigma = self.coefficients(timesteps)
        return signal * noise - sigma * x0

    def to_x0(self, prediction: str, output: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Convert a network's output to the clean embedding, `[B, D]`."""
        if prediction == "x0":
            return output
        signal, sigma = self.coefficients(timesteps)
        if prediction == "eps":
            return (x_t - sigma * output) / signal
        return signal * x_t - sigma * output

    def to_eps(self, x0: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the noise that `x0` implies, `[B, D]`."""
        signal, sigma = self.coefficients(timesteps)
        return (x_t - signal * x0) / sigma


def noise_schedule(name: str, timesteps: int) -> NoiseSchedule:
    """Return one of DALLE2-pytorch's schedules.

    - `cosine`: Nichol and Dhariwal 2021, arXiv 2102.09672.
    - `linear` (Ho et al. 2020), `quadratic` and `sigmoid`: betas rise between the same ends, scaled so that any number
      of timesteps ends at the noise of the original 1000.
    - `jsd` (Sohl-Dickstein et al. 2015, arXiv 1503.03585): ends at pure noise.

    Raises:
        ValueError: the name is unknown, or the schedule needs more timesteps.
    """
    if name == "cosine":
        grid = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        signal = torch.cos((grid + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
        beta = (1 - signal[1:] / signal[:-1]).clamp(max=_MAX_BETA)
        return NoiseSchedule(torch.cumprod(1 - beta, dim=0))
    if name == "jsd":
        remaining = torch.arange(timesteps - 1, -1, -1, dtype=torch.float64)
        return NoiseSchedule(remaining / timesteps)  # the product of 1 - 1 / (timesteps - t)
    first, last = (1000 / timesteps * end for end in _BETAS)
    if name == "linear":
        beta = torch.linspace(first, last, timesteps, dtype=torch.float64)
    elif name == "quadratic":
        beta = torch.linspace(math.sqrt(first), math.sqrt(last), timesteps, dtype=torch.float64) ** 2
    elif name == "sigmoid":
        beta = torch.sigmoid(torch.linspace(-6, 6, timesteps, dtype=torch.float64)) * (last - first) + first
    else:
        raise ValueError(f"noise_schedule={name!r}: known are cosine, linear, quadratic, jsd and sigmoid")
    if float(beta.max()) >= 1:
        raise ValueError(
            f"noise_schedule={name} needs more timesteps than {timesteps}: its last ones would be all noise"
        )
    return NoiseSchedule(torch.cumprod(1 - beta, dim=0))
