"""Noise schedules, and conversions between the prediction targets x0 (clean embeddings), eps (noise) and v.

A schedule defines `alpha_bar[t]`, the fraction of the variance that is signal at timestep t. With Gaussian noise `eps`:

- `x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps` (Ho et al. 2020, arXiv 2006.11239)
- `v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0` (Salimans and Ho 2022, arXiv 2202.00512)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_COSINE_OFFSET = 0.008
"""Offset in the cosine schedule that keeps the first betas from being too small, as in Nichol and Dhariwal (2021)."""
_MAX_BETA = 0.999
"""Maximum beta in the cosine schedule, as in Nichol and Dhariwal (2021)."""
_BETAS = (1e-4, 0.02)
"""Range of beta in the `linear`, `quadratic` and `sigmoid` schedules with 1000 timesteps, as in Ho et al. (2020)."""


@dataclass(frozen=True)
class NoiseSchedule:
    """Noise schedule: coefficients of the forward (noising) process at each timestep."""

    alpha_bar: torch.Tensor
    """Fraction of the variance that is signal at each timestep: `[timesteps]` float64, decreasing."""

    def __len__(self) -> int:
        return len(self.alpha_bar)

    def coefficients(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sqrt(alpha_bar) and sqrt(1 - alpha_bar) at B timesteps `[B]`, as two float32 tensors `[B, 1]`."""
        alpha_bar = self.alpha_bar.to(timesteps.device)[timesteps].unsqueeze(-1)
        return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the noisy embeddings `x_t` at the given timesteps.

        Args:
            x0: clean embeddings `[B, D]` (B embeddings of size D).
            noise: standard normal noise `[B, D]`.
            timesteps: one timestep per embedding, `[B]`.
        """
        signal, sigma = self.coefficients(timesteps)
        return signal * x0 + sigma * noise

    def target(self, prediction: str, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the values that the network should predict: clean embeddings, noise or v.

        Args:
            prediction: prediction target of the network: `x0`, `eps` or `v`.
            x0: clean embeddings `[B, D]` (B embeddings of size D).
            noise: noise `[B, D]` added to the embeddings.
            timesteps: one timestep per embedding, `[B]`.

        Returns:
            The values, `[B, D]`.
        """
        if prediction == "x0":
            return x0
        if prediction == "eps":
            return noise
        signal, sigma = self.coefficients(timesteps)
        return signal * noise - sigma * x0

    def to_x0(self, prediction: str, output: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Convert a network's prediction of x0, eps or v to an estimate of x0 (the clean embeddings).

        Args:
            prediction: prediction target of the network: `x0`, `eps` or `v`.
            output: output of the network `[B, D]` (B embeddings of size D).
            x_t: noisy embeddings `[B, D]` that the network received.
            timesteps: one timestep per embedding, `[B]`.

        Returns:
            The estimate, `[B, D]`.
        """
        if prediction == "x0":
            return output
        signal, sigma = self.coefficients(timesteps)
        if prediction == "eps":
            return (x_t - sigma * output) / signal
        return signal * x_t - sigma * output

    def to_eps(self, x0: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the noise that turns the clean embeddings `x0` into the noisy embeddings `x_t` at the given timesteps.

        `x0`, `x_t` and the result have the shape `[B, D]` (B embeddings of size D).
        """
        signal, sigma = self.coefficients(timesteps)
        return (x_t - signal * x0) / sigma


def noise_schedule(name: str, timesteps: int) -> NoiseSchedule:
    """Return one of DALLE2-pytorch's noise schedules.

    - `cosine`: Nichol and Dhariwal 2021, arXiv 2102.09672.
    - `linear` (Ho et al. 2020), `quadratic` and `sigmoid`: for 1000 timesteps, betas rise from about 0.0001 to
      about 0.02. For other numbers of timesteps, both values are multiplied by 1000 / timesteps, so that the final
      noise level stays about the same.
    - `jsd` (Sohl-Dickstein et al. 2015, arXiv 1503.03585): alpha_bar falls linearly to 0, which is pure noise.

    Raises:
        ValueError: the name is unknown, or `timesteps` is too small for the schedule.
    """
    if name == "cosine":
        grid = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        signal = torch.cos((grid + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
        beta = (1 - signal[1:] / signal[:-1]).clamp(max=_MAX_BETA)
        return NoiseSchedule(torch.cumprod(1 - beta, dim=0))
    if name == "jsd":
        remaining = torch.arange(timesteps - 1, -1, -1, dtype=torch.float64)
        return NoiseSchedule(remaining / timesteps)  # equals the cumulative product of 1 - 1 / (timesteps - t)
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
