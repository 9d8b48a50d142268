"""Small priors with random weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from priorkit.prior.config import DiffusionSettings, NetworkSettings
from priorkit.prior.model import Prior, PriorConfig, build_network
from priorkit.prior.network import PriorNetwork

MakeConfig = Callable[..., PriorConfig]
MakeNetwork = Callable[..., PriorNetwork]


@pytest.fixture
def make_config() -> MakeConfig:
    """Builds the config of a small prior: embeddings of 8, token states of 6, given `max_text_len`."""

    def make(
        max_text_len: int = 0, prediction: str = "x0", timesteps: int = 100, schedule: str = "cosine", depth: int = 2
    ) -> PriorConfig:
        return PriorConfig(
            embed_dim=8,
            token_width=6 if max_text_len else None,
            network=NetworkSettings(width=16, depth=depth, heads=2, ff_mult=2, max_text_len=max_text_len),
            diffusion=DiffusionSettings(timesteps=timesteps, noise_schedule=schedule, prediction=prediction),
            clip={"weights_sha256": "0" * 64, "dtype": "float32", "embed_dim": 8, "token_width": 6},
            clip_settings={"model": "local-dir:/nowhere", "pretrained": None},
        )

    return make


@pytest.fixture
def make_network(make_config: MakeConfig) -> MakeNetwork:
    """Builds a small network whose every parameter is far from 0, so that each of them shows in the output."""

    def make(max_text_len: int = 0, depth: int = 2, dtype: torch.dtype = torch.float64) -> PriorNetwork:
        network = build_network(make_config(max_text_len, depth=depth)).to(dtype).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.4)
        return network

    return make


@pytest.fixture
def small_prior(make_config: MakeConfig, make_network: MakeNetwork) -> Prior:
    """A prior of random weights without token states."""
    return Prior(make_config(), make_network(dtype=torch.float32))
