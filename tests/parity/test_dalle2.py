"""Network, objective and samplers against outputs of DALLE2-pytorch's releases, through the import."""

from __future__ import annotations

import collections
import functools

import numpy as np
import pytest
import torch

from priorkit.prior.interchange.dalle2_settings import parse_config, to_prior_config
from priorkit.prior.interchange.dalle2_weights import import_prior
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.function_version import FunctionVersion
from priorkit.prior.network.interface import Condition
from priorkit.prior.objective.diffusion import diffusion_loss
from priorkit.prior.objective.randomness import StepRandomness
from priorkit.prior.sampling.settings import SampleSettings

from .goldens import Golden, load_goldens

GOLDENS = load_goldens()
OUTPUT_TOLERANCE, LOSS_TOLERANCE, SAMPLE_TOLERANCE = 1e-5, 1e-5, 1e-4
WELL_CONDITIONED = 40.0
"""Above this factor, by which a sampler amplifies errors of the network, float32 alone exceeds the tolerance: random
networks that are fed their own predictions can be chaotic. There the tolerance grows with the factor."""

by_name = functools.partial(pytest.mark.parametrize, "golden", ids=lambda golden: golden.name)


_PRIORS: dict[str, Prior] = {}
"""Imported priors by the name of their golden; tests do not change them."""


def imported(golden: Golden) -> Prior:
    """Import the prior of a golden, once."""
    if golden.name not in _PRIORS:
        _PRIORS[golden.name] = import_golden(golden)
    return _PRIORS[golden.name]


def import_golden(golden: Golden) -> Prior:
    """Import the prior of a golden from the settings and weights of its release."""
    config = parse_config({"net": golden.network, **golden.prior}, golden.name)
    state = {name: torch.from_numpy(np.array(value)) for name, value in golden.state_dict().items()}
    return import_prior(state, to_prior_config(config, FunctionVersion.parse(golden.release), golden.name), golden.name)


def condition(golden: Golden, prior: Prior) -> Condition:
    """Text of a golden; token states are zero, as upstream makes them, if the golden does not use them."""
    encodings = golden.text_encodings
    states = None if encodings is None or not prior.network.takes_token_states else torch.from_numpy(encodings)
    if prior.network.takes_token_states and states is None:
        states = torch.zeros(len(golden.text_embed), 1, golden.dim)
    return Condition(torch.from_numpy(golden.text_embed), states)


def relative_error(found: torch.Tensor, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest value."""
    reference = torch.as_tensor(expected)
    return float((found - reference).abs().max() / reference.abs().max())


@by_name(argvalues=GOLDENS)
def test_output(golden: Golden) -> None:
    prior = imported(golden)
    given = condition(golden, prior)
    self_cond = None if golden.self_cond is None else torch.from_numpy(golden.self_cond)
    with torch.inference_mode():
        output = prior.network(
            torch.from_numpy(golden.noisy_image_embed), torch.tensor(golden.times),
            text_embed=given.text_embed, token_states=given.token_states, self_cond=self_cond,
        )  # fmt: skip
    assert relative_error(output, golden.expected["output"]) < OUTPUT_TOLERANCE


@by_name(argvalues=GOLDENS)
def test_loss(golden: Golden) -> None:
    prior = imported(golden)
    rows = len(golden.times)
    random = StepRandomness(
        noise=torch.from_numpy(golden.loss_noise)[:, None],
        timesteps=torch.tensor(golden.times)[:, None],
        drop_text=~torch.tensor(golden.text_keep) & (prior.config.diffusion.text_drop > 0),
        drop_image=~torch.tensor(golden.image_keep)[:, None],
        self_cond=torch.full((rows, 1), golden.self_conditioned),
    )
    with torch.no_grad():
        losses = diffusion_loss(
            prior.network, prior.schedule, prior.config.diffusion, prior.normaliser,
            torch.from_numpy(golden.image_embed), condition(golden, prior), random,
        )  # fmt: skip
    assert relative_error(losses.mean(), golden.expected["loss"]) < LOSS_TOLERANCE


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@by_name(argvalues=GOLDENS)
def test_samples(golden: Golden, sampler: str) -> None:
    if sampler in golden.absent:
        assert sampler not in golden.expected
        return
    prior = imported(golden)
    given = condition(golden, prior)
    settings = SampleSettings(
        sampler="ddpm" if sampler == "ddpm" else "dalle2-ddim",
        steps=golden.timesteps if sampler == "ddpm" else golden.ddim_steps,
        guidance_scale=golden.cond_scale,
        guidance="dalle2",
    )
    noise = map(torch.from_numpy, golden.noise)
    draws = prior.draw(given.text_embed, given.token_states, 1, settings, noise)[:, 0]
    amplification = golden.amplification[sampler]
    allowed = SAMPLE_TOLERANCE if amplification <= WELL_CONDITIONED else 1e-5 * amplification
    assert relative_error(draws, golden.expected[sampler]) < allowed


def test_most_goldens_use_the_plain_tolerance() -> None:
    plain = collections.Counter(
        golden.release for golden in GOLDENS if max(golden.amplification.values(), default=0.0) <= WELL_CONDITIONED
    )
    assert plain["1.15.6"] >= 40
    assert plain["0.23.10"] >= 10
    assert plain["1.8.4"] >= 10
