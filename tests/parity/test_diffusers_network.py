"""The network of the family `prior-transformer` equals `PriorTransformer` of the installed diffusers."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from priorkit.prior.network.interface import DrawnTexts

from .unclip import make_diffusers_prior, make_prior

pytestmark = pytest.mark.slow  # importing diffusers takes seconds

DRAWS = 2


def random_config(seed: int) -> dict[str, Any]:
    choose = random.Random(seed).choice
    return {
        "num_attention_heads": choose([2, 3, 4]),
        "attention_head_dim": choose([8, 13, 16]),
        "num_layers": choose([1, 2, 4]),
        "embedding_dim": choose([16, 24, 40]),
        "num_embeddings": choose([5, 20, 77]),
        "embedding_proj_dim": choose([None, 12]),
        "time_embed_dim": choose([None, 24]),
        "time_embed_act_fn": choose(["silu", "swish", "mish", "gelu", "relu"]),
        "norm_in_type": choose([None, "layer"]),
        "embedding_proj_norm_type": choose([None, "layer"]),
    }


class Case:
    """A network of diffusers, the same one here, and inputs with captions of 1 to 77 tokens."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        config = random_config(seed)
        self.theirs = make_diffusers_prior(seed, **config).to(dtype)
        self.ours = make_prior(self.theirs).network.to(dtype)
        generator = torch.Generator().manual_seed(seed)
        dim, most = config["embedding_dim"], config["num_embeddings"]
        self.rows = random.Random(seed).choice([1, 3, 6])
        lengths = torch.randint(1, most + 1, (self.rows,), generator=generator)
        self.mask = torch.arange(most) < lengths[:, None]

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        self.text = 3 * normal(self.rows, config["embedding_proj_dim"] or dim)
        self.full_states = normal(self.rows, most, dim)  # with numbers in place of padding, which must not matter
        self.states = self.full_states * self.mask[..., None]
        self.draws = normal(self.rows * DRAWS, dim)
        self.timesteps = torch.randint(0, 1000, (self.rows * DRAWS,), generator=generator)
        self.target = normal(self.rows * DRAWS, dim)

    def their_loss(self) -> torch.Tensor:
        text, states, mask = (part.repeat_interleave(DRAWS, 0) for part in (self.text, self.full_states, self.mask))
        output = self.theirs(self.draws, self.timesteps, text, states, mask).predicted_image_embedding
        return ((output - self.target) ** 2).mean()

    def our_loss(self) -> torch.Tensor:
        draws = DrawnTexts(self.rows, DRAWS, self.rows)
        output = self.ours.predict_draws(self.text, self.states, None, draws, self.draws, self.timesteps)
        return ((output - self.target) ** 2).mean()

    def gradients(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Ours and theirs. The gradient of `to_k.bias` is 0 in theory, so what is computed is rounding."""
        for network, loss in ((self.theirs, self.their_loss), (self.ours, self.our_loss)):
            network.requires_grad_(True)
            loss().backward()  # type: ignore[no-untyped-call]
        theirs = dict(self.theirs.named_parameters())
        pairs = {name: (parameter.grad, theirs[name].grad) for name, parameter in self.ours.named_parameters()}
        return {
            name: (mine, other)
            for name, (mine, other) in pairs.items()
            if mine is not None and other is not None and "to_k.bias" not in name
        }


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("seed", range(30))
def test_predictions_and_losses(seed: int) -> None:
    case = Case(seed)
    first = slice(None, None, DRAWS)
    x, timesteps = case.draws[first], case.timesteps[first]
    expected = case.theirs(x, timesteps, case.text, case.full_states, case.mask).predicted_image_embedding
    assert difference(case.ours(x, timesteps, text_embed=case.text, token_states=case.states), expected) <= 3e-6
    with torch.inference_mode():  # with packed weights
        prefix = case.ours.prefix(case.text, case.states)
        assert difference(case.ours.suffix(prefix, x, timesteps), expected) <= 3e-6
        drawn = case.ours.suffix(prefix, case.draws, timesteps)
    one_timestep = timesteps.repeat_interleave(DRAWS)
    repeated = (part.repeat_interleave(DRAWS, 0) for part in (case.text, case.full_states, case.mask))
    assert difference(drawn, case.theirs(case.draws, one_timestep, *repeated).predicted_image_embedding) <= 3e-6
    assert difference(case.our_loss(), case.their_loss()) <= 1e-6


@pytest.mark.parametrize("seed", range(10))
def test_gradients(seed: int) -> None:
    """In float32, rounding is up to 2e-5 of the smallest gradients, also in diffusers: the bar is for all together."""
    mine, theirs = zip(*Case(seed).gradients().values(), strict=True)
    assert (
        difference(torch.cat([part.flatten() for part in mine]), torch.cat([part.flatten() for part in theirs])) <= 1e-5
    )
    exact = Case(seed, torch.float64).gradients()
    assert len(exact) > 20
    assert max(difference(*pair) for pair in exact.values()) <= 1e-9
