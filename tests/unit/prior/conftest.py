"""Small priors with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from priorkit.prior.model.config import PriorConfig, build_network, build_normaliser
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.network import PriorNetwork
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings

from .reference import randomise

MakeConfig = Callable[..., PriorConfig]
MakeNetwork = Callable[..., PriorNetwork]
MakePrior = Callable[..., Prior]


@pytest.fixture
def make_config() -> MakeConfig:
    """Builds the config of a small prior: embeddings of 8, token states of 6, given `max_text_len`.

    Further settings of the network go by their names, those of the diffusion in `diffusion`.
    """

    def make(
        max_text_len: int = 0,
        prediction: str = "x0",
        timesteps: int = 100,
        schedule: str = "cosine",
        depth: int = 2,
        *,
        embed_dim: int = 8,
        text_dim: int | None = None,
        token_width: int | None = 6,
        diffusion: dict[str, Any] | None = None,
        **network: Any,
    ) -> PriorConfig:
        noise = {"timesteps": timesteps, "noise_schedule": schedule, "prediction": prediction}
        small = {"width": 16, "depth": depth, "heads": 2, "dim_head": 8, "ff_mult": 2, "max_text_len": max_text_len}
        return PriorConfig(
            embed_dim=embed_dim,
            text_dim=text_dim,
            token_width=token_width if max_text_len else None,
            network=NetworkSettings(**{**small, **network}),
            diffusion=DiffusionSettings(**{**noise, "image_drop": 0.1, **(diffusion or {})}),
            clip={"weights_sha256": "0" * 64, "dtype": "float32", "embed_dim": 8, "token_width": 6},
            clip_settings={"model": "local-dir:/nowhere", "pretrained": None},
        )

    return make


@pytest.fixture
def make_network(make_config: MakeConfig) -> MakeNetwork:
    """Builds a small network in which every parameter has an effect; takes the arguments of `make_config`."""

    def make(*args: Any, dtype: torch.dtype = torch.float64, **settings: Any) -> PriorNetwork:
        return randomise(build_network(make_config(*args, **settings)).to(dtype).eval())

    return make


@pytest.fixture
def make_prior(make_config: MakeConfig) -> MakePrior:
    """Builds a small prior in which every parameter has an effect; takes the arguments of `make_config`."""

    def make(*args: Any, **settings: Any) -> Prior:
        config = make_config(*args, **settings)
        return Prior(config, randomise(build_network(config)), build_normaliser(config))

    return make


@pytest.fixture
def small_prior(make_prior: MakePrior) -> Prior:
    """A prior with random weights and without token states."""
    return make_prior()
