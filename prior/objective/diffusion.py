"""Diffusion loss of a network on a batch. The caller supplies all random values.

Dimensions: B rows, K draws (pairs of noise and timestep) per row, N = B * K draws in total, D embedding size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..network.interface import Condition, DrawnTexts, Network
from .normaliser import EmbeddingNormaliser
from .randomness import StepRandomness
from .schedule import NoiseSchedule
from .settings import DiffusionSettings

MIN_SNR_GAMMA = 5.0
"""Value at which the `min_snr` loss weight caps the signal-to-noise ratio: gamma in Hang et al. (2023)."""

_LOSSES = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}


def diffusion_loss(
    network: Network,
    schedule: NoiseSchedule,
    diffusion: DiffusionSettings,
    normaliser: EmbeddingNormaliser,
    image_embed: torch.Tensor,
    condition: Condition,
    random: StepRandomness,
) -> torch.Tensor:
    """Return the loss of each of the B rows, `[B]`: the weighted prediction error, averaged over coordinates and draws.

    Each row has K draws, which are pairs of noise and timestep. Each text is encoded once for all draws of its row. If
    the network encodes all dropped texts identically, a single encoding is used for all rows whose text is dropped.

    Args:
        network: network to train.
        schedule, diffusion, normaliser: noise schedule, diffusion settings and normaliser of the prior.
        image_embed: clean image embeddings `[B, D]` (embedding size D) with any norm.
        condition: text inputs for the B rows.
        random: random values for the B rows: noise, timesteps, and masks of dropped inputs.
    """
    rows, draws, _ = random.noise.shape
    with_text, order = rows, None
    if network.has_null_text and random.drop_text.any():  # move rows with dropped text to the end
        with_text, order = int((~random.drop_text).sum()), torch.argsort(random.drop_text, stable=True)
        random, condition = random.take(order), condition.take(order)
        image_embed = image_embed[order.to(image_embed.device)]
    noise, timesteps = random.noise.flatten(0, 1), random.timesteps.flatten()
    x0 = normaliser.encode(image_embed).repeat_interleave(draws, dim=0)  # (N, D)
    x_t = schedule.add_noise(x0, noise, timesteps)
    texts = min(with_text + 1, rows)  # encode one dropped text for all rows with dropped text
    encoded, drop_text = condition.take(torch.arange(texts)), random.drop_text[:texts].to(x_t.device)
    output = network.predict_draws(
        encoded.text_embed, encoded.token_states, drop_text if drop_text.any() else None,
        DrawnTexts(rows, draws, with_text), x_t, timesteps,
        drop_image=random.drop_image.flatten() if diffusion.image_drop else None,
        self_cond=_estimates(network, condition, random.self_cond, x_t, timesteps) if network.takes_self_cond else None,
    )  # fmt: skip
    if diffusion.training_clamp:
        output = F.normalize(output, dim=-1) * normaliser.radius
    target = schedule.target(diffusion.prediction, x0, noise, timesteps)
    losses = _LOSSES[diffusion.loss](output, target, reduction="none").mean(dim=-1)  # (N,)
    if diffusion.loss_weighting == "min_snr":
        losses = losses * min_snr_weight(schedule, diffusion.prediction, timesteps).to(losses.dtype)
    losses = losses.view(rows, draws).mean(dim=1)
    return losses if order is None else losses[torch.argsort(order).to(losses.device)]


@torch.no_grad()
def _estimates(
    network: Network, condition: Condition, chosen: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor | None:
    """Compute the network outputs that training passes back to the network as self-conditioning.

    If the network predicts x0, these outputs are estimates of x0. Each output is computed with the text and the noisy
    image, even if the loss drops the text or the image of the same draw (pair of noise and timestep).

    Args:
        condition: text inputs for the B rows.
        chosen: `[B, K]` bool on the CPU, with K draws per row; True for draws to compute outputs for.
        x_t: noisy image embeddings `[N, D]` of all N = B * K draws (embedding size D).
        timesteps: timestep of each draw, `[N]`.

    Returns:
        The outputs, `[N, D]`, with zeros for all other draws; None if `chosen` is false for every draw.
    """
    texts, indices = chosen.any(dim=1), chosen.flatten().nonzero()[:, 0]
    if len(indices) == 0:
        return None
    condition = condition.take(texts.nonzero()[:, 0])
    prefix = network.prefix(condition.text_embed, condition.token_states)
    text_indices = (texts.cumsum(0) - 1)[indices // chosen.shape[1]].to(x_t.device)
    indices = indices.to(x_t.device)
    estimates = network.suffix(prefix.take(text_indices), x_t[indices], timesteps[indices])
    return torch.zeros_like(x_t).index_copy(0, indices, estimates)


def min_snr_weight(schedule: NoiseSchedule, prediction: str, timesteps: torch.Tensor) -> torch.Tensor:
    """Return the float64 loss weight of each of N timesteps, `[N]` (Hang et al. 2023, arXiv 2303.09556).

    If the network predicts x0, the weight is min(SNR, gamma). For eps and v, the weight is scaled so that the weighted
    squared error is the same as for the corresponding x0 estimate.

    Args:
        prediction: prediction target: `x0`, `eps` or `v`.
    """
    alpha_bar = schedule.alpha_bar.to(timesteps.device)[timesteps]
    ratio = alpha_bar / (1 - alpha_bar)
    if prediction == "x0":
        return ratio.clamp(max=MIN_SNR_GAMMA)
    if prediction == "eps":
        return (MIN_SNR_GAMMA / ratio).clamp(max=1)
    return ratio.clamp(max=MIN_SNR_GAMMA) / (ratio + 1)
