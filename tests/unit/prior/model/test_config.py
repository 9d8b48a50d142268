"""What a prior's config refuses, and what is built of it; how priors may be sampled is tested by sampling them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError

from priorkit.pipeline.errors import SettingsError
from priorkit.prior.model.config import PriorConfig, build_network, build_normaliser

MakeConfig = Callable[..., PriorConfig]


def test_a_table_of_too_few_timesteps_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ValidationError, match=r"network\.num_timesteps=50 is fewer than diffusion\.timesteps=100"):
        make_config(num_timesteps=50)
    assert make_config(num_timesteps=100).network.num_timesteps == 100


def test_a_network_that_cannot_be_built_is_named(make_config: MakeConfig) -> None:
    with pytest.raises(SettingsError, match=r"network: final_proj=False needs a width \(16\) equal to .* \(8\)"):
        build_network(make_config(final_proj=False))


def test_build_normaliser_takes_the_settings(make_config: MakeConfig) -> None:
    assert build_normaliser(make_config(diffusion={"embed_scale": 2.5})).radius == 2.5
    whiten = build_normaliser(make_config(diffusion={"normaliser": "whiten"}))
    assert torch.equal(whiten.to_network, torch.eye(8))
