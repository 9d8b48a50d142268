"""Samplers: functions that turn noise into embeddings, given a function that estimates x0.

Samplers do not depend on the network, the text or guidance. Their argument `noise` is an iterator over standard normal
tensors `[N, D]` (N embeddings of size D). The first tensor is the initial noise. Each step that adds noise consumes one
more tensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..network.function_version import FunctionVersion
from ..objective.schedule import NoiseSchedule

_LEAST_HALF_LOG_SNR = -5.1
"""Minimum of 0.5 * log(SNR), where SNR is the signal-to-noise ratio, for the timesteps that `log_snr_grid` chooses.

The minimum does not apply to the first timestep. At the minimum, 1 / 27,000 of the variance is signal.
"""


class Estimate(NamedTuple):
    """Estimate of the clean embeddings (x0) at one sampling step, before and after clamping."""

    x0: torch.Tensor
    """Estimate `[N, D]` (N embeddings of size D), clamped according to the prior's `x0_clamp`."""
    unclamped: torch.Tensor
    """Estimate `[N, D]` before clamping."""


EstimateX0 = Callable[[torch.Tensor, torch.Tensor], Estimate]
"""Function that estimates x0 from noisy embeddings `[N, D]` (N embeddings of size D) and their timesteps `[N]`."""

Sampler = Callable[[EstimateX0, NoiseSchedule, Iterator[torch.Tensor], list[int]], torch.Tensor]
"""Function that samples embeddings `[N, D]` (N embeddings of size D) from noise. Its arguments are those of `ddpm`."""


def ddpm(
    estimate_x0: EstimateX0, schedule: NoiseSchedule, noise: Iterator[torch.Tensor], grid: list[int]
) -> torch.Tensor:
    """Sample embeddings with stochastic ancestral sampling (Ho et al. 2020, arXiv 2006.11239, eq. 7).

    Args:
        estimate_x0: function that estimates x0 (the clean embeddings) at a timestep.
        schedule: noise schedule.
        noise: standard normal tensors `[N, D]` (N embeddings of size D): the initial noise, then one tensor per step.
            The last step multiplies its tensor by 0.
        grid: timesteps at which x0 is estimated, one per step, noisiest first.

    Returns:
        The sampled embeddings, `[N, D]`.
    """
    x_t = next(noise)
    for index, timestep in enumerate(grid):
        x0 = estimate_x0(x_t, full_timesteps(x_t, timestep)).x0
        now = schedule.alpha_bar[timestep]
        after = schedule.alpha_bar[grid[index + 1]] if index + 1 < len(grid) else torch.ones_like(now)
        alpha = now / after
        mean_x0 = after.sqrt() * (1 - alpha) / (1 - now)
        mean_xt = alpha.sqrt() * (1 - after) / (1 - now)
        deviation = ((1 - alpha) * (1 - after) / (1 - now)).sqrt()
        x_t = float(mean_x0) * x0 + float(mean_xt) * x_t + float(deviation) * next(noise)
    return x_t


def ddim(
    estimate_x0: EstimateX0, schedule: NoiseSchedule, noise: Iterator[torch.Tensor], grid: list[int]
) -> torch.Tensor:
    """Sample embeddings with deterministic DDIM, eta = 0 (Song et al. 2020, arXiv 2010.02502, eq. 12).

    Only the first tensor of `noise` is used. x0 is estimated once at each timestep in `grid`, and the last estimate is
    returned. See `ddpm` for the arguments and the result.
    """
    x_t = next(noise)
    for timestep, after in itertools.pairwise(grid):
        timesteps = full_timesteps(x_t, timestep)
        x0 = estimate_x0(x_t, timesteps).x0
        x_t = schedule.add_noise(x0, schedule.to_eps(x0, x_t, timesteps), full_timesteps(x_t, after))
    return estimate_x0(x_t, full_timesteps(x_t, grid[-1])).x0


def dpmsolver_pp(
    estimate_x0: EstimateX0, schedule: NoiseSchedule, noise: Iterator[torch.Tensor], grid: list[int]
) -> torch.Tensor:
    """Sample embeddings with DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    Only the first tensor of `noise` is used. x0 is estimated once at each timestep in `grid`. The final step is
    first-order: it removes all remaining noise and returns the last estimate. See `ddpm` for the arguments and the
    result.
    """
    x_t = next(noise)
    half_log_snr = 0.5 * torch.logit(schedule.alpha_bar)  # -inf at pure noise
    last_x0, last_width = None, math.inf
    for timestep, after in itertools.pairwise(grid):
        x0 = estimate_x0(x_t, full_timesteps(x_t, timestep)).x0
        width = float(half_log_snr[after] - half_log_snr[timestep])
        slope = torch.zeros_like(x0) if last_x0 is None else (x0 - last_x0) * (width / (2 * last_width))
        signal, now, sigma = (
            float(share.sqrt())
            for share in (schedule.alpha_bar[after], 1 - schedule.alpha_bar[timestep], 1 - schedule.alpha_bar[after])
        )
        x_t = sigma / now * x_t - signal * math.expm1(-width) * (x0 + slope)
        last_x0, last_width = x0, width
    return estimate_x0(x_t, full_timesteps(x_t, grid[-1])).x0


def dalle2_ddim(
    estimate_x0: EstimateX0,
    schedule: NoiseSchedule,
    noise: Iterator[torch.Tensor],
    grid: list[int],
    *,
    function: FunctionVersion,
    prediction: str,
) -> torch.Tensor:
    """Sample with stochastic DDIM, eta = 1, exactly as the given DALLE2-pytorch release does.

    As in DALLE2-pytorch, alpha_bar is float32, and a step at timestep t uses `alpha_bar[t - 1]`, or 1 if t is 0.

    Args:
        function: DALLE2-pytorch release to reproduce.
        prediction: prediction target of the network: `x0`, `eps` or `v`.
    """
    x_t = next(noise)
    shares = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alpha_bar[:-1]]).float()
    ends = [*grid[1:], -1 if function.ddim_ends_at_x0 else 0]
    for timestep, after in zip(grid, ends, strict=True):
        timesteps = full_timesteps(x_t, timestep)
        x0, unclamped = estimate_x0(x_t, timesteps)
        if after < 0:
            return x0
        basis = x0 if function.ddim_noise_follows_clamp(prediction) else unclamped
        sign = 1.0 if prediction == "eps" and basis is unclamped else function.ddim_noise_sign
        eps = sign * schedule.to_eps(basis, x_t, timesteps)
        share, share_after = shares[timestep], shares[after]
        deviation = ((1 - share / share_after) * (1 - share_after) / (1 - share)).sqrt()
        rest = ((1 - share_after) - deviation.square()).sqrt()
        x_t = x0 * float(share_after.sqrt()) + float(rest) * eps
        if after > 0:
            x_t = x_t + float(deviation) * next(noise)
    return x_t


def log_snr_grid(schedule: NoiseSchedule, steps: int) -> list[int]:
    """Return `steps` timesteps for `dpmsolver++`, noisiest first, evenly spaced in log-SNR.

    SNR is the signal-to-noise ratio. The grid is chosen as follows:

    - The first timestep is the noisiest of the schedule. The grid then skips the timesteps at which x_t is almost all
      noise.
    - The last timestep is the one at which an evenly spaced grid would end with four times as many steps. It must have
      little noise, because `dpmsolver++` returns the x0 estimate at this timestep. With more noise, this estimate would
      be an average of many possible embeddings.

    `dpmsolver++` needs fewer steps than other samplers, because it is second-order in log-SNR: one of its steps does
    the work of several of theirs.
    """
    timesteps = len(schedule)
    last = timesteps - 1 - (min(4 * steps, timesteps) - 1) * timesteps // min(4 * steps, timesteps)
    half_log_snr = 0.5 * torch.logit(schedule.alpha_bar)
    start = max(float(half_log_snr[-1]), _LEAST_HALF_LOG_SNR)
    grid = [timesteps - 1]
    for index, value in enumerate(torch.linspace(start, float(half_log_snr[last]), steps).tolist()[1:], start=1):
        nearest = int((half_log_snr - value).abs().argmin())
        grid.append(min(max(nearest, steps - 1 - index), grid[-1] - 1))  # distinct, with room for later steps
    return grid


def generator_noise(
    shape: tuple[int, int], generator: torch.Generator | Sequence[torch.Generator], device: torch.device
) -> Iterator[torch.Tensor]:
    """Yield standard normal tensors of the given shape indefinitely.

    They are drawn on the generator's device and moved to `device`. With several generators, one for each row, each
    row is drawn from its own, as in diffusers.
    """
    while True:
        if isinstance(generator, torch.Generator):
            yield torch.randn(shape, generator=generator, device=generator.device).to(device)
        else:
            rows = [torch.randn(1, shape[1], generator=each, device=each.device).to(device) for each in generator]
            yield torch.cat(rows)


def seeded_noise(
    seed: int, first: int, texts: int, draws: int, embed_dim: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Yield standard normal tensors `[B * K, D]` indefinitely, for B texts with K draws (embeddings to sample) each.

    The noise for a text depends only on the seed, the text's index among all texts to sample, the number of draws per
    text, and the embedding size D.

    Args:
        first: index of the first text, counted from 0.
        texts: number of texts, B.
        draws: number of draws per text, K.
    """
    generators = [np.random.Generator(np.random.Philox(key=[seed, first + text])) for text in range(texts)]
    while True:
        noise = np.stack([generator.standard_normal((draws, embed_dim), np.float32) for generator in generators])
        yield torch.from_numpy(noise).flatten(0, 1).to(device)


def full_timesteps(x_t: torch.Tensor, timestep: int) -> torch.Tensor:
    """Return the timestep for each of N noisy embeddings `[N, D]`, as an int64 tensor `[N]` on their device."""
    return torch.full((x_t.shape[0],), timestep, dtype=torch.int64, device=x_t.device)
