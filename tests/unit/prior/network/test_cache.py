"""Keys and values: appended, repeated for draws, selected, expanded and stacked."""

from __future__ import annotations

import pytest
import torch

from priorkit.prior.network.cache import KeysValues, PrefixCache
from priorkit.prior.network.interface import DrawnTexts


def values(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def keys_values(rows: int, positions: int, seed: int = 1) -> KeysValues:
    return KeysValues(values(rows, positions, 4, seed=seed), values(rows, positions, 4, seed=seed + 1))


def test_appending_to_one_row_repeats_it() -> None:
    one, three = keys_values(1, 2), keys_values(3, 1, seed=5)
    joined = one.append(three)
    assert joined.keys.shape == (3, 3, 4)
    for row in range(3):
        assert torch.equal(joined.keys[row], torch.cat([one.keys[0], three.keys[row]]))
        assert torch.equal(joined.values[row], torch.cat([one.values[0], three.values[row]]))


@pytest.mark.parametrize(("texts", "indices"), [(3, [0, 0, 1, 1, 2, 2]), (1, [0, 0, 1, 1, 1, 1]), (0, [0] * 6)])
def test_draws_see_the_prefix_of_their_text_or_the_shared_one(texts: int, indices: list[int]) -> None:
    draws, prefixes = DrawnTexts(rows=3, draws=2, texts=texts), keys_values(min(texts + 1, 3), 5)
    repeated = prefixes.repeat_for(draws)
    assert draws.indices(torch.device("cpu")).tolist() == indices
    assert torch.equal(repeated.keys, prefixes.keys[indices])
    assert torch.equal(repeated.values, prefixes.values[indices])


def test_caches_are_stacked_selected_and_expanded() -> None:
    one, more = PrefixCache([keys_values(1, 4)]), PrefixCache([keys_values(2, 4, seed=7)])
    stacked = one.stacked_with(more)
    assert (stacked.texts, stacked.tokens) == (3, 3)  # the null position does not count
    assert torch.equal(stacked.layers[0].keys, torch.cat([one.layers[0].keys, more.layers[0].keys]))
    assert torch.equal(stacked.layers[0].values, torch.cat([one.layers[0].values, more.layers[0].values]))
    assert torch.equal(
        stacked.take(torch.tensor([2, 0, 2])).layers[0].values[:, 0, 0], stacked.layers[0].values[[2, 0, 2], 0, 0]
    )
    expanded = one.expand(3)
    assert expanded.texts == 3
    assert expanded.layers[0].keys.data_ptr() == one.layers[0].keys.data_ptr()  # no copy
