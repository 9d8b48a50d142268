"""Priors of diffusers with random weights, the same priors here, and texts with made-up encodings."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from diffusers import PriorTransformer as DiffusersPrior

from priorkit.pipeline.contract.empty_inputs import EmptyInputs
from priorkit.prior.model.config import PriorConfig, build_network, build_normaliser
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.prior_transformer.settings import PriorTransformerSettings
from priorkit.prior.objective.settings import DiffusionSettings

STATES = 77
NAMES = {
    "num_attention_heads", "attention_head_dim", "num_layers", "num_embeddings", "dropout", "time_embed_act_fn",
    "time_embed_dim", "norm_in_type", "embedding_proj_norm_type",
}  # fmt: skip
"""Config keys that both have."""


def make_diffusers_prior(seed: int, **config: Any) -> DiffusersPrior:
    """Return a prior of diffusers with random weights; see `randomise`."""
    prior = DiffusersPrior(**config).eval().requires_grad_(False)
    randomise(prior, torch.Generator().manual_seed(seed))
    return prior


def randomise(prior: DiffusersPrior, generator: torch.Generator) -> None:
    """Fill a prior with weights of about the size that trained ones have, and with clip statistics that matter."""
    for parameter in prior.parameters():
        scale = 0.3 if parameter.squeeze().ndim < 2 else parameter.shape[-1] ** -0.5
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    prior.clip_std.copy_(0.5 + torch.rand(prior.clip_std.shape, generator=generator))


def make_prior(theirs: DiffusersPrior, texts: Texts | None = None, clip_range: float | None = 5.0) -> Prior:
    """The same prior here."""
    config = dict(theirs.config)
    dim = config["embedding_dim"]
    described = PriorConfig(
        embed_dim=dim,
        text_dim=config["embedding_proj_dim"],
        token_width=dim,
        network=PriorTransformerSettings(**{name: config[name] for name in NAMES}),
        diffusion=DiffusionSettings(
            normaliser="clip_stats",
            x0_clamp="none" if clip_range is None else "range",
            clip_sample_range=clip_range,
        ),
        clip={},
        clip_settings={},
    )
    network, normaliser = build_network(described), build_normaliser(described)
    weights = dict(theirs.state_dict())
    normaliser.load_state_dict({"mean": weights.pop("clip_mean")[0], "to_embed": weights.pop("clip_std")[0]})
    network.load_state_dict(weights)
    prior = Prior(described, network.requires_grad_(False), normaliser, None if texts is None else texts.empty())
    if texts is not None:
        prior.__dict__["text_encoder"] = texts
    return prior


@dataclasses.dataclass
class Encoded:
    text_embed: torch.Tensor
    token_states: torch.Tensor
    lengths: list[int]


class Texts:
    """Text encoder that gives each text an embedding of norm about 10, and as many token states as it has letters."""

    def __init__(self, size: int) -> None:
        self.identity = {"embed_dim": size}
        self._size = size

    def one(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """`[D]` and `[len(text) + 2, D]`"""
        generator = torch.Generator().manual_seed(sum((i + 1) * ord(letter) for i, letter in enumerate(text)))
        embed = 10 / self._size**0.5 * torch.randn(self._size, generator=generator)
        return embed, torch.randn(len(text) + 2, self._size, generator=generator)

    def encode_texts(self, texts: list[str], token_states: bool = False) -> Encoded:
        pairs = [self.one(text) for text in texts]
        lengths = [len(states) for _, states in pairs]
        return Encoded(torch.stack([embed for embed, _ in pairs]), torch.cat([states for _, states in pairs]), lengths)

    def empty(self) -> EmptyInputs:
        embed, states = (part.numpy() for part in self.one(""))
        return EmptyInputs(np.ones(self._size, np.float32), embed, states)

    def padded(self, texts: list[str], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the inputs of a pipeline: embeddings, states padded to 77 with random numbers, and the mask."""
        encoded = self.encode_texts(texts)
        states = torch.randn(len(texts), STATES, self._size, generator=torch.Generator().manual_seed(seed))
        mask = torch.zeros(len(texts), STATES, dtype=torch.bool)
        for row, own in enumerate(torch.split(encoded.token_states, encoded.lengths)):
            states[row, : len(own)] = own
            mask[row, : len(own)] = True
        return encoded.text_embed, states, mask
