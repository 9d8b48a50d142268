"""Keys and values of one row, continued by several; that parts run joined as they do alone is tested on attention."""

from __future__ import annotations

import torch

from priorkit.prior.network.parts import KeysValues


def values(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_appending_to_one_row_repeats_it() -> None:
    one, three = KeysValues(values(1, 2, 4), values(1, 2, 4)), KeysValues(values(3, 1, 4), values(3, 1, 4, seed=2))
    joined = one.append(three)
    assert joined.keys.shape == (3, 3, 4)
    for row in range(3):
        assert torch.equal(joined.values[row], torch.cat([one.values[0], three.values[row]]))
