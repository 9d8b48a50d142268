"""Small priors of the family `prior-transformer`, whose weights all have an effect, and made-up texts for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from priorkit.pipeline.contract.empty_inputs import EmptyInputs
from priorkit.prior.model.config import PriorConfig, build_network, build_normaliser
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.prior_transformer.network import PriorTransformer
from priorkit.prior.network.prior_transformer.settings import PriorTransformerSettings
from priorkit.prior.objective.settings import DiffusionSettings

D, S, W, T = 12, 10, 6, 7
"""Sizes of image embeddings, text embeddings and token states, and the maximum number of token states."""
SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "num_embeddings": T}


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill(network: PriorTransformer, seed: int = 0) -> PriorTransformer:
    """Give every parameter random values of about the size that trained ones have."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.3 if parameter.squeeze().ndim < 2 else parameter.shape[-1] ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network


def make_network(dtype: torch.dtype = torch.float32, **settings: Any) -> PriorTransformer:
    sizes = {"embed_dim": D, "text_dim": S, "token_width": W}
    return fill(PriorTransformer(**sizes, settings=PriorTransformerSettings(**{**SMALL, **settings}))).to(dtype).eval()


def make_empty(image: int = D, text: int = S, width: int = W, rows: int = 2) -> EmptyInputs:
    return EmptyInputs(
        draw(image, seed=101, scale=3).numpy(), draw(text, seed=102, scale=3).numpy(),
        draw(rows, width, seed=103).numpy().astype(np.float32),
    )  # fmt: skip


def make_raw_config(
    network: dict[str, Any] | None = None, diffusion: dict[str, Any] | None = None, **config: Any
) -> PriorConfig:
    return PriorConfig(**{
        "embed_dim": D, "text_dim": S, "token_width": W, "clip": {}, "clip_settings": {},
        "network": PriorTransformerSettings(**{**SMALL, **(network or {})}),
        "diffusion": DiffusionSettings(**{"normaliser": "clip_stats", "timesteps": 50, **(diffusion or {})}),
        **config,
    })  # fmt: skip


def make_raw_prior(config: PriorConfig | None = None, empty: EmptyInputs | None = None) -> Prior:
    """A prior whose clip statistics are neither 0 nor 1."""
    config = make_raw_config() if config is None else config
    normaliser = build_normaliser(config)
    normaliser.mean.copy_(draw(config.embed_dim, seed=104))
    normaliser.to_embed.copy_(0.5 + draw(config.embed_dim, seed=105).abs())
    network = build_network(config)
    assert isinstance(network, PriorTransformer)
    return Prior(config, fill(network), normaliser, empty)


def captions(lengths: list[int], seed: int = 0, width: int = W) -> torch.Tensor:
    """Token states `[B, T', W]` of captions with these lengths, padded with zeros to the longest."""
    states = draw(len(lengths), max(lengths), width, seed=seed)
    return states * (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[..., None]
