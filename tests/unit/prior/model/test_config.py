"""Checks of a prior's config and of sampling settings, and construction of the network and normaliser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from priorkit.pipeline.errors import SettingsError
from priorkit.prior.model.config import (
    PriorConfig,
    build_network,
    build_network_with,
    build_normaliser,
    check_sampling,
    describe_network,
)
from priorkit.prior.network.prior_transformer.settings import PriorTransformerSettings
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings
from priorkit.prior.sampling.settings import SampleSettings

MakeConfig = Callable[..., PriorConfig]


def test_a_table_of_too_few_timesteps_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ValidationError, match=r"network\.num_timesteps=50 is fewer than diffusion\.timesteps=100"):
        make_config(num_timesteps=50)
    assert make_config(num_timesteps=100).network.num_timesteps == 100


def test_a_network_that_cannot_be_built_is_named(make_config: MakeConfig) -> None:
    with pytest.raises(SettingsError, match=r"network: final_proj=False needs a width \(16\) equal to .* \(8\)"):
        build_network(make_config(final_proj=False))


def test_build_normaliser_uses_the_settings(make_config: MakeConfig) -> None:
    assert build_normaliser(make_config(diffusion={"embed_scale": 2.5})).radius == 2.5
    whiten = build_normaliser(make_config(diffusion={"normaliser": "whiten"}))
    assert torch.equal(whiten.to_network, torch.eye(8))


@pytest.mark.parametrize(
    ("release", "takes_token_states", "guidance", "allowed"),
    [
        ("1.15.6", False, "text", True),
        ("1.10.4", False, "text", True),
        ("1.10.3", False, "text", False),
        ("1.10.3", True, "text", True),
        ("1.10.3", False, "dalle2", True),
        ("1.8.4", True, "dalle2", False),
    ],
)
def test_guidance_needs_a_branch_that_was_trained(
    make_config: MakeConfig, release: str, takes_token_states: bool, guidance: str, allowed: bool
) -> None:
    config = make_config(function_version=release)
    sample = SampleSettings(steps=4, guidance_scale=2.0, guidance=guidance)
    if allowed:
        assert check_sampling(config.network, takes_token_states, config.diffusion, sample) == [99, 74, 49, 24]
    else:
        with pytest.raises(SettingsError, match=f"dalle2-pytorch {release}"):
            check_sampling(config.network, takes_token_states, config.diffusion, sample)


@pytest.mark.parametrize("network", [NetworkSettings(width=8, depth=1), PriorTransformerSettings(num_layers=1)])
def test_a_network_with_given_weights_has_them_and_computes_with_them(network: Any) -> None:
    normaliser = "clip_stats" if network.takes_raw_text else "sqrt_dim"
    config = PriorConfig(
        embed_dim=8, token_width=8, network=network, diffusion=DiffusionSettings(normaliser=normaliser), clip={},
        clip_settings={},
    )  # fmt: skip
    torch.manual_seed(0)
    expected = build_network(config)
    assert all(value.is_meta for value in describe_network(config).state_dict().values())
    found = build_network_with(config, expected.state_dict())
    states = torch.randn(2, 3, 8)
    arguments = (torch.randn(2, 8), torch.tensor([1, 9]))
    texts = {"text_embed": torch.randn(2, 8), "token_states": states if expected.takes_token_states else None}
    with torch.no_grad():
        assert torch.equal(found.eval()(*arguments, **texts), expected.eval()(*arguments, **texts))
