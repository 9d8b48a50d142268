"""Timesteps as tokens, against their formula; what else tokens promise is tested on the whole network."""

from __future__ import annotations

import pytest
import torch

from priorkit.prior.network.tokens import _sinusoid


@pytest.mark.parametrize("timestep", [0, 1, 500, 999])
def test_sinusoids_are_their_formula(timestep: int) -> None:
    """Sines, then cosines, at frequencies from 1 to 1 / 10,000; float32 at an angle of 999 is good to 6e-5."""
    angles = [timestep * 10_000 ** (-index / 7) for index in range(8)]
    expected = torch.tensor(angles, dtype=torch.float64)
    expected = torch.cat([expected.sin(), expected.cos()])
    torch.testing.assert_close(_sinusoid(torch.tensor([timestep]), 16)[0].double(), expected, rtol=0, atol=6e-5)
