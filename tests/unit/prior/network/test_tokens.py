"""Tokens of embeddings and timesteps against their formulas."""

from __future__ import annotations

import pytest
import torch

from priorkit.prior.network.tokens import TimeTokens, Tokens, _sinusoid


@pytest.mark.parametrize("timestep", [0, 1, 500, 999])
def test_sinusoids_follow_their_formula(timestep: int) -> None:
    """Sines, then cosines, at frequencies from 1 to 1 / 10,000; float32 at an angle of 999 is good to 6e-5."""
    angles = [timestep * 10_000 ** (-index / 7) for index in range(8)]
    expected = torch.tensor(angles, dtype=torch.float64)
    expected = torch.cat([expected.sin(), expected.cos()])
    torch.testing.assert_close(_sinusoid(torch.tensor([timestep]), 16)[0].double(), expected, rtol=0, atol=6e-5)


def test_one_token_of_the_same_width_is_the_embedding() -> None:
    embed = torch.arange(8.0).view(2, 4)
    tokens = Tokens(4, 4, 1)
    assert not list(tokens.parameters())
    assert torch.equal(tokens(embed), embed[:, None])


@pytest.mark.parametrize(("size", "count"), [(4, 3), (5, 1)])
def test_other_tokens_are_projections_one_after_the_other(size: int, count: int) -> None:
    torch.manual_seed(0)
    embed, tokens = torch.randn(2, size), Tokens(size, 4, count)
    weight, bias = tokens.project.weight, tokens.project.bias
    for index, token in enumerate(tokens(embed).unbind(dim=1)):
        part = slice(4 * index, 4 * (index + 1))
        torch.testing.assert_close(token, embed @ weight[part].T + bias[part])


def test_learned_timesteps_are_rows_of_a_table() -> None:
    tokens = TimeTokens(4, 2, 10, real=True)
    assert tokens.table is not None
    found = tokens(torch.tensor([7, 0]))
    assert torch.equal(found, tokens.table.weight[[7, 0]].view(2, 2, 4))


@pytest.mark.parametrize("real", [True, False])
def test_sinusoids_go_through_the_mlp_truncated_in_old_releases(real: bool) -> None:
    torch.manual_seed(0)
    tokens, timesteps = TimeTokens(4, 2, None, real), torch.tensor([3, 50])
    angles = _sinusoid(timesteps, 4)
    expected = tokens.mlp(angles if real else angles.trunc()).view(2, 2, 4)
    assert torch.equal(tokens(timesteps), expected)
