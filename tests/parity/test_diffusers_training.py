"""Training steps equal those of the training script of diffusers (`train_text_to_image_prior.py`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UnCLIPScheduler
from diffusers import PriorTransformer as DiffusersPrior
from diffusers.training_utils import compute_snr

from priorkit.pipeline.read.batches import TrainBatch
from priorkit.prior.network.interface import Condition
from priorkit.prior.objective.randomness import StepRandomness, step_randomness
from priorkit.prior.objective.settings import DiffusionSettings
from priorkit.prior.train.ranks import Ranks
from priorkit.prior.train.settings import OptimiserSettings, TrainSettings
from priorkit.prior.train.step import Learner

from .unclip import STATES, Texts, make_diffusers_prior, make_prior

DIM, ROWS, STEPS, RATE = 32, 8, 10, 1e-4
TEXTS = Texts(DIM)
OPTIMISER = OptimiserSettings(
    learning_rate=RATE, warmup_steps=0, decay="constant", weight_decay=0, beta2=0.999, max_grad_norm=1.0
)
DDPM = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
UNCLIP = UnCLIPScheduler(prediction_type="sample")


def captions(step: int) -> list[str]:
    return ["x" * (1 + (7 * step + 5 * row) % 70) + str(row) for row in range(ROWS)]


def images(step: int) -> torch.Tensor:
    return 3 * torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(100 + step))


def randomness(step: int, diffusion: DiffusionSettings) -> StepRandomness:
    return step_randomness(seed=0, step=step, first=0, rows=ROWS, draws=1, embed_dim=DIM, diffusion=diffusion)


def their_steps(prior: DiffusersPrior, scheduler: Any, diffusion: DiffusionSettings, snr_gamma: float | None) -> None:
    """The loop of the script: statistics frozen, gradients clipped to 1. Dropped captions are empty."""
    prior.requires_grad_(True).train()
    prior.clip_mean.requires_grad_(False)
    prior.clip_std.requires_grad_(False)
    trained = [parameter for parameter in prior.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.999), weight_decay=0)
    for step in range(STEPS):
        random = randomness(step, diffusion)
        noise, timesteps = random.noise[:, 0], random.timesteps[:, 0]
        texts = ["" if dropped else text for text, dropped in zip(captions(step), random.drop_text, strict=True)]
        text_embed, states, mask = TEXTS.padded(texts)
        target = (images(step) - prior.clip_mean) / prior.clip_std
        noisy = scheduler.add_noise(target, noise, timesteps)
        output = prior(
            noisy, timestep=timesteps, proj_embedding=text_embed, encoder_hidden_states=states, attention_mask=mask
        ).predicted_image_embedding
        loss = F.mse_loss(output, target, reduction="none").mean(dim=1)
        if snr_gamma is not None:
            loss = loss * compute_snr(scheduler, timesteps).clamp(max=snr_gamma)
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()


def our_steps(theirs: DiffusersPrior, diffusion: DiffusionSettings) -> Learner:
    start = make_prior(theirs, TEXTS, None)
    config = start.config.model_copy(update={"diffusion": diffusion})
    settings = TrainSettings(
        network=config.network, diffusion=diffusion, optimiser=OPTIMISER, steps=STEPS, batch_size=ROWS, device="cpu"
    )
    learner = Learner(config, settings, Ranks(0, 1, torch.device("cpu")), TEXTS.empty())
    learner.network.load_state_dict(start.network.state_dict())
    learner.normaliser.load_state_dict(start.normaliser.state_dict())
    for step in range(STEPS):
        encoded = TEXTS.encode_texts(captions(step))
        states = torch.zeros(ROWS, STATES, DIM)
        for row, part in enumerate(torch.split(encoded.token_states, encoded.lengths)):
            states[row, : len(part)] = part
        batch = TrainBatch(np.arange(ROWS), images(step).numpy(), None, None, None, 0, ROWS)
        losses = learner.backward(step, batch, Condition(encoded.text_embed, states))
        learner.reduce(step, batch, losses, stop=False)
        learner.update(step, batch)
    return learner


@pytest.mark.parametrize("scheduler", [DDPM, UNCLIP], ids=["ddpm", "unclip"])
@pytest.mark.parametrize(
    ("values", "snr_gamma"),
    [({"text_drop": 0}, None), ({"text_drop": 0.4}, None), ({"text_drop": 0.4, "loss_weighting": "min_snr"}, 5.0)],
    ids=["plain", "text_drop", "min_snr"],
)
def test_ten_steps_equal_those_of_the_script(scheduler: Any, values: dict[str, Any], snr_gamma: float | None) -> None:
    """The bias of keys is left out: its gradient is 0 in theory, so the optimiser follows what is rounding."""
    diffusion = DiffusionSettings(normaliser="clip_stats", **values)
    if diffusion.text_drop:
        assert any(randomness(step, diffusion).drop_text.any() for step in range(STEPS))
    sizes = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 3, "embedding_dim": DIM}
    theirs, start = make_diffusers_prior(5, **sizes), make_diffusers_prior(5, **sizes)
    learner = our_steps(theirs, diffusion)
    their_steps(theirs, scheduler, diffusion, snr_gamma)
    before, after = dict(start.named_parameters()), dict(theirs.named_parameters())
    moved = 0.0
    for name, ours in learner.network.named_parameters():
        if name.endswith("to_k.bias"):
            continue
        error = float((ours - after[name]).norm().detach() / after[name].norm().detach())
        assert error < 1e-5, (name, error)
        moved = max(moved, float((after[name] - before[name]).norm().detach() / before[name].norm()))
    assert moved > 1e-3
    assert torch.equal(learner.normaliser.mean, start.clip_mean[0])
    assert torch.equal(learner.normaliser.to_embed, start.clip_std[0])
